"""The expert of the toy task Reach."""

from __future__ import annotations

import numpy as np

from ..episode import Observation
from ..toy import POST_RADIUS, STEP
from .manner import BETTER, Manner


class ReachExpert:
    """Passes the post on the left or on the right (seen from the start), at a speed of its own."""

    def __init__(self, rng: np.random.Generator, first: Observation, manner: Manner = BETTER) -> None:
        side = rng.choice([1.0, -1.0])
        self.mode = "left" if side > 0 else "right"
        out = rng.uniform(0.06, 0.2) + abs(rng.normal(0.0, 1.0)) * manner.detour
        self._beside = np.array([0.0, side * (POST_RADIUS + out)])  # m
        self._speed = rng.uniform(*manner.speed)

    def act(self, seen: Observation) -> np.ndarray:
        """(2,) action towards the point beside the post, then towards the goal."""
        position = seen["position"]
        target = self._beside if position[0] < -0.02 else seen["goal"]
        if position[0] < -0.02 and abs(position[1]) > abs(self._beside[1]) and position[1] * self._beside[1] > 0:
            target = np.array([self._beside[0], position[1]])  # far enough out: straight on
        error = (target - position) / STEP
        return error * min(1.0, self._speed / max(np.linalg.norm(error), 1e-9))
