"""Transformers that give a chunk's distribution in one pass: a Gaussian, or a mixture of them (DPPO's baselines).

Each step of the chunk is a learned query. It looks at the other steps, without a mask, and at one token made from the
code; with a single token cross-attention has no choice, and its query and key weights learn nothing (as published).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..contract import Camera
from ..network_specs import GaussianTransformerSpec, GMMTransformerSpec
from .attention import TransformerLayer
from .direct import learned_log_variance
from .encoder import Network, StateEncoder
from .taps import by_quarters, chosen

START = 0.02  # standard deviation of every weight, query and position at the start


def start_small(module: nn.Module) -> None:
    """Weights of a Linear N(0, START), bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=START)
        nn.init.zeros_(module.bias)


class ChunkDecoder(nn.Module):
    """code (B, C) -> a vector for each step of the chunk, (B, H, width), and the layers' outputs, of the same shape."""

    def __init__(self, code_size: int, horizon: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = nn.Linear(code_size, width), nn.Parameter(START * torch.randn(width))
        self.remember = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.queries = nn.Parameter(START * torch.randn(horizon, width))
        self.layers = nn.ModuleList(TransformerLayer(width, heads, cross=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        memory = self.remember(self.token(code) + self.position).unsqueeze(1)  # [B, width] -> [B, 1, width]
        h, features = self.queries.expand(len(code), -1, -1), {}  # [H, width] -> [B, H, width]
        for n, layer in enumerate(self.layers):
            h = features[f"layer{n}"] = layer(h, memory)
        return self.norm(h), features


class GaussianTransformer(Network):
    """The mean of a chunk, within -1..1."""

    def __init__(
        self,
        spec: GaussianTransformerSpec,
        chunk_shape: tuple[int, int],
        state_size: int,
        cameras: Sequence[Camera] = (),
        history: int = 1,
        learn_std: float | None = None,
    ) -> None:
        """`chunk_shape` is (H, Da); `state_size` is To * Do; `learn_std`: where a learned standard deviation starts."""
        super().__init__(chunk_shape, StateEncoder(state_size, ()), spec.vision, state_size, cameras, history)
        H, Da = chunk_shape
        self.decoder = ChunkDecoder(self.encoder.size, H, spec.width, spec.depth, spec.heads).apply(start_small)
        self.mean = nn.Linear(spec.width, Da).apply(start_small)
        self.log_variance = learned_log_variance(learn_std, Da)

    def forward(self, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """code (B, C) -> mean (B, H, Da), features by name, each (B, H, D)."""
        steps, features = self.decoder(code)
        out = features["output"] = self.mean(steps)
        return out.tanh(), self.with_code(code, features)

    def tap(self, layer: str) -> tuple[str, ...]:
        """Layers by quarters. The D2PPO release has no definition for this network: there is no `released_*`."""
        return chosen(layer_taps(self.decoder), layer)


class GMMTransformer(Network):
    """M means of a chunk, within -1..1, step by step, and the logits of their weights from all steps together."""

    def __init__(
        self,
        spec: GMMTransformerSpec,
        chunk_shape: tuple[int, int],
        state_size: int,
        cameras: Sequence[Camera] = (),
        history: int = 1,
        learn_std: float | None = None,
    ) -> None:
        """`chunk_shape` is (H, Da); `state_size` is To * Do; `learn_std`: where a learned standard deviation starts."""
        super().__init__(chunk_shape, StateEncoder(state_size, ()), spec.vision, state_size, cameras, history)
        (H, Da), M = chunk_shape, spec.modes
        self.decoder = ChunkDecoder(self.encoder.size, H, spec.width, spec.depth, spec.heads).apply(start_small)
        self.means = nn.Linear(spec.width, M * Da).apply(start_small)
        self.logits = nn.Linear(H * spec.width, M).apply(start_small)
        self.modes, self.log_variance = M, learned_log_variance(learn_std, M, Da)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """code (B, C) -> means (B, M, H, Da), logits (B, M), features by name, each (B, H, D)."""
        steps, features = self.decoder(code)
        out = features["output"] = self.means(steps)
        means = out.tanh().unflatten(-1, (self.modes, -1)).transpose(1, 2)  # [B, H, M*Da] -> [B, M, H, Da]
        return means, self.logits(steps.flatten(1)), self.with_code(code, features)  # of [B, H*width]

    def tap(self, layer: str) -> tuple[str, ...]:
        """Layers by quarters. The D2PPO release has no definition for this network: there is no `released_*`."""
        return chosen(layer_taps(self.decoder), layer)


def layer_taps(decoder: ChunkDecoder) -> dict[str, str]:
    """Early, mid, late."""
    return {name: f"layer{index}" for name, index in by_quarters(len(decoder.layers)).items()}
