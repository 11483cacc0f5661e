"""Real-time chunking (Black et al. 2025): a new chunk that goes on from the one that is being executed.

While the policy computes, the robot executes the first steps of what the running chunk holds: they are frozen. The
steps after them, as far as the running chunk reaches, are held near it, less and less. The paper guides a flow by
gradients through the network; a denoising chain has its clean estimate at hand at every step, and mixing the running
chunk into that costs nothing.

How much is mixed in falls with the noise. At noise level alpha_bar the estimate of a chunk of unit variance is unsure
by v = 1 - alpha_bar; taking the running chunk for a measurement of the new one with variance (1 - w) / w, the best
mixture of both has the share w v / (w v + 1 - w) of it. So early steps are led to the running chunk's way of doing it,
and late ones no longer pull the chunk off what the policy would do: with a constant share a policy that has two answers
ends between them. The gradient of the paper does the same, for it fades where the estimate no longer depends on x_t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Guide:
    """Where chunks are to go: at each denoising step the clean estimate becomes (1 - g) estimate + g chunk."""

    chunk: Tensor  # (B, H, Da) or (1, H, Da), model units
    weight: Tensor  # w, (B, H) or (H,), in [0, 1]; at 1 the step is frozen: it comes out as `chunk` has it

    def mixed(self, estimate: Tensor, scale: float, variance: float) -> Tensor:
        """The guided estimate, where all is multiplied by `scale`, at the noise level 1 - alpha_bar; (B, H, Da)."""
        share = self.weight * variance / (self.weight * variance + 1 - self.weight)  # g; 0 and 1 stay what they are
        return estimate.lerp(self.chunk * scale, share[..., None])

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
