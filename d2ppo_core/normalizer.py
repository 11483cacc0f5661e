"""Min-max normalisation of states and actions to [-1, 1]; the statistics are buffers, saved in every checkpoint."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError

FLAT = 1e-6  # a dimension whose range is below this never changes in the data


class Normalizer(nn.Module):
    """x_hat = 2 (x - min) / (max - min) - 1, and back. States may be clamped: far outside the data nothing is known."""

    state_min: Tensor
    state_max: Tensor
    action_min: Tensor
    action_max: Tensor
    clip: Tensor

    def __init__(self, state_size: int, action_size: int) -> None:
        """Identity statistics; `fit` or a checkpoint fills them."""
        super().__init__()
        for name, size in (("state", state_size), ("action", action_size)):
            self.register_buffer(f"{name}_min", -torch.ones(size))
            self.register_buffer(f"{name}_max", torch.ones(size))
        self.register_buffer("clip", torch.tensor(0.0))  # 0: no clamp

    @classmethod
    def fit(cls, states: np.ndarray, actions: np.ndarray, flat: str, clip: float, names: list[str]) -> Normalizer:
        """Statistics of states (n, Do) and actions (n, Da).

        Args:
            flat: "refuse" raises a UserError for a dimension that never changes; "centre" maps it to 0.
            clip: clamp of the normalised state; 0 for none.
            names: of the state's dimensions, then the action's, for the error message.
        """
        result = cls(states.shape[1], actions.shape[1])
        result.clip.fill_(clip)
        for name, values, labels in (
            ("state", states, names[: states.shape[1]]),
            ("action", actions, names[states.shape[1] :]),
        ):
            low, high = values.min(0).astype(np.float32), values.max(0).astype(np.float32)
            flat_dims = np.flatnonzero(high - low < FLAT)
            if len(flat_dims) and flat == "refuse":
                raise UserError(
                    f"{', '.join(labels[d] for d in flat_dims)} never changes in the demonstrations and cannot be "
                    "scaled; drop the key from the task, or accept it by train.flat_dimensions=centre"
                )
            low[flat_dims] -= 1.0
            high[flat_dims] = low[flat_dims] + 2.0
            getattr(result, f"{name}_min").copy_(torch.from_numpy(low))
            getattr(result, f"{name}_max").copy_(torch.from_numpy(high))
        return result

    def normalize_state(self, state: Tensor) -> Tensor:
        """(..., Do) SI units -> about [-1, 1]."""
        x = 2 * (state - self.state_min) / (self.state_max - self.state_min) - 1
        limit = self.clip.where(self.clip > 0, torch.inf)  # no `if`: it would wait for a GPU
        return x.clamp(-limit, limit)

    def normalize_action(self, action: Tensor) -> Tensor:
        """(..., Da) raw policy action -> [-1, 1]."""
        return 2 * (action - self.action_min) / (self.action_max - self.action_min) - 1

    def denormalize_action(self, action: Tensor) -> Tensor:
        """The exact inverse of `normalize_action`, not clipped: limits are `action.py`'s."""
        return (action + 1) / 2 * (self.action_max - self.action_min) + self.action_min
