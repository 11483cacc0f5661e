"""How carefully an expert works: `quality` of demonstrations, and the noise on the executed action."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2ppo_core.errors import UserError

NOISE_MEMORY = 0.7  # rho of the noise, per control step


@dataclass(frozen=True)
class Manner:
    """What an expert of some quality adds to the task. Probabilities are per movement or per grasp."""

    noise: float  # factor on both noises asked for
    speed: tuple[float, float]  # range of the largest number of an action, drawn for each episode
    pause: float = 0.0  # probability of a rest before a movement
    pause_steps: tuple[int, int] = (4, 16)  # control steps of such a rest
    detour: float = 0.0  # m, standard deviation of a movement's swing in each direction
    miss: float = 0.0  # probability of closing the fingers above the object, and having to try again


QUALITIES = {
    "better": Manner(noise=1.0, speed=(0.65, 1.0)),
    "okay": Manner(noise=1.3, speed=(0.5, 0.95), pause=0.2, detour=0.03, miss=0.1),
    "worse": Manner(noise=1.6, speed=(0.4, 0.9), pause=0.25, detour=0.04, miss=0.25),
}
BETTER = QUALITIES["better"]


def manner_of(quality: str) -> Manner:
    """The manner named `quality`; a `UserError` that lists the names if there is none."""
    if quality not in QUALITIES:
        raise UserError(f"demos.quality is '{quality}'; choose one of {', '.join(QUALITIES)}")
    return QUALITIES[quality]


class ActionNoise:
    """Ornstein-Uhlenbeck noise: x' = rho x + sqrt(1 - rho^2) sigma z, whose standard deviation is sigma."""

    def __init__(self, rng: np.random.Generator, deviations: np.ndarray) -> None:
        self._rng = rng
        self._sigma = deviations  # (Da,) in action units
        self._x = np.zeros(len(deviations))

    def perturb(self, action: np.ndarray) -> np.ndarray:
        """The executed action: noise added, then clipped to [-1, 1]."""
        fresh = np.sqrt(1 - NOISE_MEMORY**2) * self._sigma * self._rng.standard_normal(len(self._sigma))
        self._x = NOISE_MEMORY * self._x + fresh
        return np.clip(action + self._x, -1.0, 1.0)
