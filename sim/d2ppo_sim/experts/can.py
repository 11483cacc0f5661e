"""The expert of Can."""

from __future__ import annotations

import numpy as np

from ..episode import Observation
from .manner import BETTER, Manner
from .motion import CLOSED, OPEN, OneArmExpert, Script, raised, yaw_of

TURNS = {"left": (0.5, 1.3), "straight": (-0.4, 0.4), "right": (-1.3, -0.5)}  # rad of the wrist, by name of the mode


class CanExpert(OneArmExpert):
    """Grasps the can from above and puts it into the far right quarter of the second bin.

    Modes: how the wrist is turned at the grasp, and whether the can is dropped from above the bin's wall or placed.
    """

    BASE = (-0.5, -0.1)  # m
    QUARTER = ((0.1, 0.28), (0.3, 0.53))  # m, corners of the target quarter
    BIN_FLOOR = 0.82  # m
    DROP = ((0.13, 0.155), (0.34, 0.39))  # m, x and y of the release: the quarter's part that the arm reaches with ease
    HALF_HEIGHT = 0.04  # m of the can
    LOST = 0.05  # m between grip site and can beyond which the grasp is lost, and tried again
    UPRIGHT = 0.7  # z of the can's axis below which it is lying

    def __init__(self, rng: np.random.Generator, first: Observation, manner: Manner = BETTER) -> None:
        super().__init__(rng, first, manner)
        name = str(rng.choice(list(TURNS)))
        placed = bool(rng.integers(2))
        self.mode = f"{name}-{'place' if placed else 'drop'}"
        self._turn = rng.uniform(*TURNS[name])
        self._release_turn = self._turn + rng.uniform(-0.3, 0.3)
        self._hover = rng.uniform(0.07, 0.12)  # m above the can before descending
        self._depth = rng.uniform(0.0, 0.02)  # m from the can's centre to the grip site, when closing
        self._height = rng.uniform(1.02, 1.15)  # m, of the hand on its way to the bin
        self._bow = rng.uniform(-0.06, 0.06, 2)  # m, sideways swing on the way to the can, and to the bin
        self._low = rng.uniform(0.87, 0.89) if placed else rng.uniform(0.93, 0.98)  # m, of the can at its release
        self._drop = np.array([rng.uniform(*self.DROP[0]), rng.uniform(*self.DROP[1])])  # m

    def _script(self) -> Script:
        arm, up = self.arm, lambda: raised(self.object, self._hover)
        while True:
            while self._delivered():
                yield from arm.rest(1)
            yaw, swing = self._grasp_yaw(), arm.sideways(self.object, self._bow[0])
            yield from arm.move(up, yaw, OPEN, 0.025, turned=0.2, swing=swing)
            yield from arm.descend(lambda: raised(self.object, self._depth), yaw, self._hover)
            yield from arm.close()
            if (yield from self._carry()):
                yield from arm.open()
            top = np.array([*arm.hand[:2], max(arm.hand[2] + 0.1, 0.98)])
            yield from arm.move(lambda top=top: top, arm.yaw, OPEN, 0.03)

    def _carry(self) -> Script:
        """Up, over the bin, and down to where it is released. False if the can was lost."""
        arm = self.arm
        start = np.array([*arm.hand[:2], self._height])
        if not (yield from arm.move(lambda: start, arm.yaw, CLOSED, 0.08, holds=self._holds)):
            return False
        over = np.array([*self._drop, self._height])
        yaw, swing = arm.yaw_at(over, self._release_turn), arm.sideways(over, self._bow[1])
        if not (yield from arm.move(lambda: over, yaw, CLOSED, 0.025, turned=0.3, swing=swing, holds=self._holds)):
            return False
        low = np.array([*self._drop, self._low + arm.hand[2] - self.object[2]])
        return (yield from arm.move(lambda: low, yaw, CLOSED, 0.02, turned=0.3, holds=self._holds, patience=30))

    def _holds(self) -> bool:
        return float(np.linalg.norm(self.arm.hand - self.object)) < self.LOST

    def _delivered(self) -> bool:
        low, high = np.array(self.QUARTER)
        inside = np.all(self.object[:2] > low + 0.01) and np.all(self.object[:2] < high - 0.01)
        return bool(inside and self.object[2] < self.BIN_FLOOR + 0.07)

    def _grasp_yaw(self) -> float:
        """Any yaw will do on a standing can; a lying one is taken across its axis."""
        if abs(self.object_rotation.as_matrix()[2, 2]) > self.UPRIGHT:
            return self.arm.yaw_at(self.object, self._turn)
        across = yaw_of(self.object_rotation, 2) + np.pi / 2
        turns = self.arm.turns_at(self.object, across, np.pi)
        return self.arm.yaw_at(self.object, min(turns, key=lambda turn: abs(turn - self._turn)))
