"""Critics: the value of an environment state (DPPO Sec. 4.2: V sees the state alone, never the noisy action)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import Trunk


class StateCritic(nn.Module):
    """V(s): residual MLP (To*Do) -> 1."""

    def __init__(self, state_size: int, hidden: Sequence[int] = (256, 256, 256)) -> None:
        super().__init__()
        self.trunk = Trunk(state_size, hidden, 1, "mish", layer_norm=False, residual=True)

    def forward(self, state: Tensor) -> Tensor:
        """state (B, To*Do) -> value (B,)."""
        return self.trunk(state)[0].squeeze(-1)  # [B, 1] -> [B]
