"""DiffusionMLP: predicts the noise in an action chunk from the chunk, the denoising step and the observation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import Camera
from ..network_specs import MLPSpec
from .blocks import TimeEmbedding, Trunk
from .encoder import Network, StateEncoder
from .taps import trunk_tap


class DiffusionMLP(Network):
    """eps_theta(x_t, t, s) of DPPO's MLP policies (parameter counts: tests/core/test_networks.py)."""

    def __init__(
        self,
        spec: MLPSpec,
        chunk_shape: tuple[int, int],
        state_size: int,
        cameras: Sequence[Camera] = (),
        history: int = 1,
    ) -> None:
        """`chunk_shape` is (H, Da); `state_size` is To * Do."""
        state_encoder = StateEncoder(state_size, spec.condition_hidden, spec.activation)
        super().__init__(chunk_shape, state_encoder, spec.vision, state_size, cameras, history)
        numbers = chunk_shape[0] * chunk_shape[1]
        self.time = TimeEmbedding(spec.time_size)
        size_in = numbers + spec.time_size + self.encoder.size
        self.trunk = Trunk(size_in, spec.hidden, numbers, spec.activation, spec.layer_norm, spec.residual)

    def forward(self, x: Tensor, t: Tensor, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, H, Da), t (B,) long, code (B, C) -> predicted noise (B, H, Da), features by name, each (B, D)."""
        flat = x.flatten(1)  # [B, H, Da] -> [B, H*Da]
        out, features = self.trunk(torch.cat([flat, self.time(t), code], dim=-1))
        return out.view(-1, *self.chunk_shape), self.with_code(code, features)  # [B, H*Da] -> [B, H, Da]

    def tap(self, layer: str) -> tuple[str, ...]:
        """Names of the features that `dispersive.layer` means for this network (see `dispersive.py`)."""
        return trunk_tap(self.trunk, layer, identity="condition" if self.state_is_encoded else "output")
