"""What policies see of the native environments under observation noise and latency: the newest L control steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2ppo_core.contract import LowDim

from ..disturbance import Disturbance
from ..randomise import Randomisation, deviations


class Veil:
    """Noisy observations of N environments, as late as their episodes are."""

    def __init__(self, settings: Randomisation, keys: Sequence[LowDim], num_envs: int, history: int) -> None:
        self._settings, self._deviations = settings, deviations(settings.observation_noise, keys)
        self.length = history + settings.latency.most  # L: control steps to remember
        self._history = history
        self._episodes: dict[int, Disturbance] = {}
        self._seen = {key.name: np.zeros((num_envs, self.length, key.size)) for key in keys}

    def begin(self, env: int, seed: int, truth: dict[str, np.ndarray]) -> None:
        """Start the episode of `seed` from the truth (L, size), in which the first observation is repeated."""
        self._episodes[env] = Disturbance(self._settings, self._deviations, seed)
        first = {name: value[-1:] for name, value in truth.items()}
        for name, value in self._episodes[env].seen(first, 1).items():
            self._seen[name][env] = value

    def advance(self, env: int, truth: dict[str, np.ndarray], steps: int) -> None:
        """Take in the truth (L, size) after `steps` control steps."""
        kept = min(steps, self.length)
        newest = {name: value[self.length - kept :] for name, value in truth.items()}
        for name, value in self._episodes[env].seen(newest, steps).items():
            rows = self._seen[name][env]
            rows[:] = np.concatenate([rows[kept:], value])

    def done(self, env: int, actions: np.ndarray) -> np.ndarray:
        """What is executed (n, Da) where the policy wants `actions`."""
        return self._episodes[env].done(actions)

    def shown(self, env: int) -> slice:
        """Which of the L control steps reach the policy now: To of them."""
        end = self.length - self._episodes[env].delay
        return slice(end - self._history, end)

    def seen(self, env: int) -> dict[str, np.ndarray]:
        """By key (To, size): what the policy sees."""
        return {name: rows[env, self.shown(env)] for name, rows in self._seen.items()}
