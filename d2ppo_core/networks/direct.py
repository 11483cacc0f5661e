"""MLPs that give a chunk's distribution in one pass: a Gaussian, or a mixture of them (DPPO's other policies)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..contract import Camera
from ..network_specs import GaussianMLPSpec, GMMMLPSpec
from .blocks import Trunk
from .encoder import Network, StateEncoder
from .taps import trunk_tap


def learned_log_variance(std: float | None, *shape: int) -> nn.Parameter | None:
    """log(std^2) for each action dimension (and mode), shared over the chunk's steps and all states; None: fixed."""
    return None if std is None else nn.Parameter(torch.full(shape, math.log(std**2)))


class GaussianMLP(Network):
    """The mean of a chunk, within -1..1."""

    def __init__(
        self,
        spec: GaussianMLPSpec,
        chunk_shape: tuple[int, int],
        state_size: int,
        cameras: Sequence[Camera] = (),
        history: int = 1,
        learn_std: float | None = None,
    ) -> None:
        """`chunk_shape` is (H, Da); `state_size` is To * Do; `learn_std`: where a learned standard deviation starts."""
        state_encoder = StateEncoder(state_size, spec.condition_hidden, spec.activation)
        super().__init__(chunk_shape, state_encoder, spec.vision, state_size, cameras, history)
        H, Da = chunk_shape
        self.means = Trunk(self.encoder.size, spec.hidden, H * Da, spec.activation, spec.layer_norm, spec.residual)
        self.log_variance = learned_log_variance(learn_std, Da)

    def forward(self, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """code (B, C) -> mean (B, H, Da), features by name, each (B, D)."""
        out, features = self.means(code)
        return out.tanh().view(-1, *self.chunk_shape), self.with_code(code, features)  # [B, H*Da] -> [B, H, Da]

    def tap(self, layer: str) -> tuple[str, ...]:
        """Names of the features that `dispersive.layer` means for this network (see `dispersive.py`)."""
        return trunk_tap(self.means, layer, identity="condition" if self.state_is_encoded else "output")


class GMMMLP(Network):
    """M means of a chunk, within -1..1, and the logits of their weights, from two MLPs; the features are the means'."""

    def __init__(
        self,
        spec: GMMMLPSpec,
        chunk_shape: tuple[int, int],
        state_size: int,
        cameras: Sequence[Camera] = (),
        history: int = 1,
        learn_std: float | None = None,
    ) -> None:
        """`chunk_shape` is (H, Da); `state_size` is To * Do; `learn_std`: where a learned standard deviation starts."""
        state_encoder = StateEncoder(state_size, spec.condition_hidden, spec.activation)
        super().__init__(chunk_shape, state_encoder, spec.vision, state_size, cameras, history)
        (H, Da), M = chunk_shape, spec.modes
        form = spec.activation, spec.layer_norm, spec.residual
        self.means = Trunk(self.encoder.size, spec.hidden, M * H * Da, *form)
        self.logits = Trunk(self.encoder.size, spec.hidden, M, *form)
        self.modes, self.log_variance = M, learned_log_variance(learn_std, M, Da)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """code (B, C) -> means (B, M, H, Da), logits (B, M), features by name, each (B, D)."""
        out, features = self.means(code)
        means = out.tanh().view(-1, self.modes, *self.chunk_shape)  # [B, M*H*Da] -> [B, M, H, Da]
        return means, self.logits(code)[0], self.with_code(code, features)

    def tap(self, layer: str) -> tuple[str, ...]:
        """Names of the features that `dispersive.layer` means for this network (see `dispersive.py`)."""
        return trunk_tap(self.means, layer, identity="condition" if self.state_is_encoded else "output")
