"""What every network does first: turn an observation into one code vector, once for a chunk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..network_specs import Activation
from .blocks import Trunk


class StateEncoder(nn.Module):
    """The normalised state itself, or a plain MLP of it. (B, To*Do) -> (B, size)."""

    def __init__(self, state_size: int, hidden: Sequence[int], activation: Activation) -> None:
        """`hidden` ends with the size of the code; empty: the state is the code."""
        super().__init__()
        self.trunk: Trunk | None = None
        self.size = state_size
        if hidden:
            *inner, self.size = hidden
            self.trunk = Trunk(state_size, inner, self.size, activation, layer_norm=False, residual=False)

    def forward(self, state: Tensor, images: Tensor | None = None) -> Tensor:
        """Images are for encoders that see."""
        return state if self.trunk is None else self.trunk(state)[0]


class Network(nn.Module):
    """A network with an encoder. `encode` once for a chunk, then as many forward passes on its code as needed."""

    encoder: nn.Module

    def encode(self, state: Tensor, images: Tensor | None = None) -> Tensor:
        """Normalised state (B, To*Do), images (B, To, cameras, 3, H, W) uint8 -> code (B, C)."""
        return self.encoder(state, images)

    def with_code(self, code: Tensor, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features, and before them the code as "condition" where it was learned."""
        learned = any(True for _ in self.encoder.parameters())
        return {"condition": code, **features} if learned else features

    def tap(self, layer: str) -> tuple[str, ...]:
        """Names of the features that `dispersive.layer` means for this network (see `dispersive.py`).

        Raises:
            KeyError: this network has no such layer.
        """
        raise NotImplementedError
