"""Building blocks of the MLP networks (DPPO's appendix on architectures)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"mish": nn.Mish, "relu": nn.ReLU}


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the denoising step, then Linear-Mish-Linear, `growth` times wider inside.

    (B,) -> (B, size).
    """

    frequencies: Tensor

    def __init__(self, size: int, growth: int = 2) -> None:
        super().__init__()
        if size < 4 or size % 2:
            raise ValueError(f"the time embedding's size must be even and at least 4, not {size}")
        half = size // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10000) / (half - 1) * torch.arange(half)), persistent=False
        )
        self.layers = nn.Sequential(nn.Linear(size, growth * size), nn.Mish(), nn.Linear(growth * size, size))

    def forward(self, t: Tensor) -> Tensor:
        angle = t.float()[:, None] * self.frequencies  # [B] -> [B, size/2]
        return self.layers(torch.cat([angle.sin(), angle.cos()], dim=-1))


class ResidualBlock(nn.Module):
    """x + l2(act(norm2(l1(act(norm1(x)))))), all of one width; also returns the feature inside, l1's output."""

    def __init__(self, width: int, activation: str, layer_norm: bool) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(width, width), nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6) if layer_norm else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6) if layer_norm else nn.Identity()
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = self.l1(self.act(self.norm1(x)))
        return x + self.l2(self.act(self.norm2(inside))), inside


class Trunk(nn.Module):
    """The MLP behind every network here: (B, size_in) -> (B, size_out), residual or plain, naming its features.

    Residual: Linear, then (len(hidden) - 1) / 2 residual blocks, then Linear with no activation before it. Plain:
    Linear (LayerNorm) and activation for each hidden layer, then Linear.
    """

    def __init__(
        self, size_in: int, hidden: Sequence[int], size_out: int, activation: str, layer_norm: bool, residual: bool
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError(
                "an MLP needs at least one hidden width (condition_hidden ends with the encoder's output size)"
            )
        self.residual, self.layer_norm, self.activation = residual, layer_norm, ACTIVATIONS[activation]()
        if residual:
            if len(hidden) % 2 == 0 or len(set(hidden)) != 1:
                raise ValueError(f"a residual MLP needs an odd number of equal hidden widths, not {list(hidden)}")
            self.first = nn.Linear(size_in, hidden[0])
            blocks = (len(hidden) - 1) // 2
            self.blocks = nn.ModuleList(ResidualBlock(hidden[0], activation, layer_norm) for _ in range(blocks))
        else:
            self.first = nn.Linear(size_in, hidden[0])
            self.blocks = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))
            self.norms = nn.ModuleList(nn.LayerNorm(width) if layer_norm else nn.Identity() for width in hidden)
        self.last = nn.Linear(hidden[-1], size_out)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Output, and every feature by name in the order of the forward pass."""
        if self.residual:
            h = self.first(x)
            features = {"input": h}
            for n, block in enumerate(self.blocks):
                h, features[f"block{n}.inside"] = block(h)
                features[f"block{n}"] = h
        else:
            h, features = x, {}
            for n, layer in enumerate((self.first, *self.blocks)):
                h = features[f"hidden{n}"] = self.activation(self.norms[n](layer(h)))
        out = features["output"] = self.last(h)
        return out, features
