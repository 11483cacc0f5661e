"""The expert of Lift."""

from __future__ import annotations

import numpy as np

from ..episode import Observation
from .manner import BETTER, Manner
from .motion import CENTRED, CLOSED, OPEN, OneArmExpert, Script, raised, yaw_of


class LiftExpert(OneArmExpert):
    """Grasps the cube from above and lifts it.

    Modes: which pair of faces is grasped (the wrist turns by at most 45 degrees, or by 45 to 90), and on which side
    the way to the cube runs.
    """

    BASE = (-0.56, 0.0)  # m
    LIFT = 0.10  # m above where the fingers closed
    LOST = 0.03  # m between grip site and cube beyond which the grasp is lost, and tried again

    def __init__(self, rng: np.random.Generator, first: Observation, manner: Manner = BETTER) -> None:
        super().__init__(rng, first, manner)
        self._quarter, side = int(rng.integers(2)), rng.choice([1.0, -1.0])
        self.mode = f"{'quarter' if self._quarter else 'nearest'}-{'left' if side > 0 else 'right'}"
        self._hover = rng.uniform(0.05, 0.09)  # m above the cube before descending
        self._depth = rng.uniform(-0.006, 0.002)  # m from the cube's centre to the grip site, when closing
        self._bow = side * rng.uniform(0.02, 0.05)  # m, sideways swing on the way to the cube
        self._drift = rng.uniform(-0.03, 0.03, 2)  # m, where to in x and y while lifting

    def _script(self) -> Script:
        arm, grasp = self.arm, lambda: raised(self.object, self._depth)
        while True:
            yaw, swing = self._grasp_yaw(), arm.sideways(self.object, self._bow)
            yield from arm.move(lambda: raised(self.object, self._hover), yaw, OPEN, 2.5 * CENTRED,
                                turned=0.2, swing=swing)
            yield from arm.descend(grasp, yaw, self._hover)
            yield from arm.close()
            top = arm.hand + np.array([*self._drift, self.LIFT])
            while (yield from arm.move(lambda top=top: top, yaw, CLOSED, holds=self._holds)):
                yield from arm.rest(5)

    def _holds(self) -> bool:
        return float(np.linalg.norm(self.arm.hand - self.object)) < self.LOST

    def _grasp_yaw(self) -> float:
        """Of the pair of faces that is nearest, or of the other pair: turning further would meet a joint limit."""
        turn = yaw_of(self.object_rotation, 1) - self.arm.yaw
        turn = (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4
        return float(self.arm.yaw + turn - self._quarter * np.copysign(np.pi / 2, turn))
