"""Windows of demonstrations: To observations up to now and the next H actions, kept whole on one device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..observation import Observation


class ChunkWindows:
    """Every training sample of a set of episodes, gathered by index; no worker processes.

    A window starts at each control step. With `pad_ends` the last H-1 starts of an episode are used too, the last
    action being repeated; the first To-1 repeat the first observation.
    """

    def __init__(
        self,
        states: list[np.ndarray],
        actions: list[np.ndarray],
        history: int,
        horizon: int,
        pad_ends: bool,
        device: torch.device | str = "cpu",
        images: list[Tensor] | None = None,
    ) -> None:
        """For each episode: `states` (T, Do) float32, SI units, `actions` (T, Da) float32, model units, and `images`
        (T, cameras, 3, H, W) uint8, which stay so."""
        lengths = np.array([len(a) for a in actions])
        first = np.concatenate([[0], np.cumsum(lengths)[:-1]])  # where each episode begins in the concatenation
        now, begin, end = [], [], []
        for start, length in zip(first, lengths, strict=True):
            count = length if pad_ends else max(0, length - horizon + 1)
            now.append(start + np.arange(count))
            begin.append(np.full(count, start))
            end.append(np.full(count, start + length - 1))

        def tensor(values: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(values)).to(device)

        self.states, self.actions = tensor(states), tensor(actions)
        self.images = None if images is None else torch.cat(images).to(device)
        self._now, self._begin, self._end = tensor(now), tensor(begin), tensor(end)
        self._back = torch.arange(1 - history, 1, device=device)  # -To+1 ... 0
        self._ahead = torch.arange(horizon, device=device)  # 0 ... H-1

    def __len__(self) -> int:
        return len(self._now)

    @property
    def episode_starts(self) -> Tensor:
        """(windows,) where the episode of each window begins: equal numbers are one episode, in order of time."""
        return self._begin

    def gather(self, index: Tensor) -> tuple[Observation, Tensor]:
        """Windows `index` (B,) -> observations, actions (B, H, Da)."""
        now, begin, end = self._now[index, None], self._begin[index, None], self._end[index, None]
        seen = torch.maximum(now + self._back, begin)  # [B, 1] + [To] -> [B, To]
        done = torch.minimum(now + self._ahead, end)  # [B, 1] + [H] -> [B, H]
        images = None if self.images is None else self.images[seen]
        return Observation(self.states[seen], images), self.actions[done]
