"""Real-time chunking (Black et al. 2025): a new chunk that goes on from the one that is being executed.

While the policy computes, the robot executes the first steps of what the running chunk holds: they are frozen. The
steps after them, as far as the running chunk reaches, are held near it, less and less. The paper guides a flow by
gradients through the network; a denoising chain has its clean estimate at hand at every step, and mixing the running
chunk into that costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Guide:
    """Where chunks are to go: at each denoising step the clean estimate becomes (1 - w) estimate + w chunk."""

    chunk: Tensor  # (B, H, Da) or (1, H, Da), model units
    weight: Tensor  # w, (B, H) or (H,), in [0, 1]; at 1 the step is frozen: it comes out as `chunk` has it

    def mixed(self, estimate: Tensor, scale: float) -> Tensor:
        """The guided estimate, where all is multiplied by `scale`; (B, H, Da)."""
        return estimate.lerp(self.chunk * scale, self.weight[..., None])

    def freeze(self, chunk: Tensor) -> Tensor:
        """The frozen steps put in exactly: the last step leaves them rounded, and exploring adds its noise."""
        return self.chunk.where(self.weight[..., None] == 1, chunk)


def rtc_weights(horizon: int, frozen: int, overlap: int) -> np.ndarray:
    """How much each step of a new chunk is held to the running one, (H,) float64 (Black et al. 2025, Eq. 5).

    Args:
        frozen: steps that are executed before the new chunk can be: weight 1.
        overlap: steps that the running chunk still holds: weight 0 from there on, in between falling as c (e^c - 1).
    """
    if not 0 <= frozen <= overlap <= horizon:
        raise UserError(
            f"{frozen} frozen steps of {overlap} that the running chunk still holds do not fit a horizon of {horizon}; "
            "ask for the next chunk earlier"
        )
    c = np.clip((overlap - np.arange(horizon)) / (overlap - frozen + 1), 0.0, 1.0)  # 1 at the last frozen step
    return c * np.expm1(c) / np.expm1(1.0)
