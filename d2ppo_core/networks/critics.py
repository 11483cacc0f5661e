"""Critics: the value of an environment state (DPPO Sec. 4.2: V sees the state alone, never the noisy action)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..contract import Camera
from ..network_specs import VisionSpec
from .blocks import Trunk
from .vision import VisionEncoder


class StateCritic(nn.Module):
    """V(s): residual MLP (To*Do) -> 1."""

    def __init__(self, state_size: int, hidden: Sequence[int] = (256, 256, 256)) -> None:
        super().__init__()
        self.trunk = Trunk(state_size, hidden, 1, "mish", layer_norm=False, residual=True)

    def forward(self, state: Tensor, images: Tensor | None = None) -> Tensor:
        """state (B, To*Do) -> value (B,). Images are for the critic that sees."""
        return self.trunk(state)[0].squeeze(-1)  # [B, 1] -> [B]


class ViTCritic(nn.Module):
    """V(s) from images: a vision encoder of its own, then the residual MLP."""

    def __init__(
        self,
        vision: VisionSpec,
        state_size: int,
        cameras: Sequence[Camera],
        history: int = 1,
        hidden: Sequence[int] = (256, 256, 256),
    ) -> None:
        """`state_size` is To * Do and `history` To."""
        super().__init__()
        self.encoder = VisionEncoder(vision, state_size, cameras, history)
        self.trunk = Trunk(self.encoder.size, hidden, 1, "mish", layer_norm=False, residual=True)

    def forward(self, state: Tensor, images: Tensor) -> Tensor:
        """state (B, To*Do), images (B, To, cameras, 3, H, W) uint8 -> value (B,)."""
        return self.trunk(self.encoder(state, images))[0].squeeze(-1)  # [B, 1] -> [B]
