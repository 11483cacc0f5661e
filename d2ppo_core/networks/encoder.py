"""What every network does first: turn an observation into one code vector, once for a chunk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..contract import Camera
from ..network_specs import Activation, VisionSpec
from .blocks import Trunk
from .vision import VisionEncoder


class StateEncoder(nn.Module):
    """The normalised state itself, or an MLP of it. (B, To*Do) -> (B, size)."""

    def __init__(
        self, state_size: int, hidden: Sequence[int], activation: Activation = "mish", residual: bool = False
    ) -> None:
        """`hidden` ends with the size of the code; empty: the state is the code."""
        super().__init__()
        self.trunk: Trunk | None = None
        self.size = state_size
        if hidden:
            *inner, self.size = hidden
            self.trunk = Trunk(state_size, inner, self.size, activation, layer_norm=False, residual=residual)

    def forward(self, state: Tensor, images: Tensor | None = None) -> Tensor:
        """Images are for encoders that see."""
        return state if self.trunk is None else self.trunk(state)[0]


class Network(nn.Module):
    """A network with an encoder. `encode` once for a chunk, then as many forward passes on its code as needed."""

    def __init__(
        self,
        chunk_shape: tuple[int, int],
        state_encoder: StateEncoder,
        vision: VisionSpec | None,
        state_size: int,
        cameras: Sequence[Camera],
        history: int,
    ) -> None:
        """Without `vision`, the code comes from `state_encoder`.

        Args:
            chunk_shape: (H, Da). state_size: To * Do. history: To.
        """
        super().__init__()
        self.chunk_shape = chunk_shape
        if vision and state_encoder.trunk is not None:
            raise ValueError(
                "`vision` and `condition_hidden` exclude each other: beside images the state enters as it is"
            )
        self.encoder = VisionEncoder(vision, state_size, cameras, history) if vision else state_encoder

    def encode(self, state: Tensor, images: Tensor | None = None) -> Tensor:
        """Normalised state (B, To*Do), images (B, To, cameras, 3, H, W) uint8 -> code (B, C)."""
        return self.encoder(state, images)

    @property
    def state_is_encoded(self) -> bool:
        """Whether an MLP makes the code from the state."""
        return isinstance(self.encoder, StateEncoder) and self.encoder.trunk is not None

    def with_code(self, code: Tensor, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features, and before them the code as "condition" where it was learned."""
        learned = self.state_is_encoded or isinstance(self.encoder, VisionEncoder)
        return {"condition": code, **features} if learned else features

    def tap(self, layer: str) -> tuple[str, ...]:
        """Names of the features that `dispersive.layer` means for this network (see `dispersive.py`).

        Raises:
            KeyError: this network has no such layer.
        """
        raise NotImplementedError
