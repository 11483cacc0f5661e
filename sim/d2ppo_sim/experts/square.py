"""The expert of Square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..episode import Observation
from .manner import BETTER, Manner
from .motion import CLOSED, OPEN, Goal, OneArmExpert, Script, raised, wrap, yaw_of

HANDLES = {"left": np.pi / 2, "right": -np.pi / 2, "near": np.pi}  # rad, direction of the handle at the peg


@dataclass(frozen=True)
class Plan:
    """One way of grasping the nut and of setting it down. The hand's turns are the wrist's, see `Arm.turns_at`."""

    grasp_turn: float  # rad
    peg_turn: float  # rad
    handle: str  # which way the handle points at the peg


class SquareExpert(OneArmExpert):
    """Grasps the nut by its handle and lowers it around the square peg.

    Modes: which way round the hand grasps the handle ("outward": its x axis points away from the nut), and which way
    the handle points at the peg. Not away from the arm: there the hand would be beyond the arm's reach.
    """

    BASE = (-0.56, 0.0)  # m
    INTEGRAL = 0.0  # it would wind up while the nut rests against the peg
    PEG = np.array([0.23, 0.1, 0.95])  # m, the middle of its top
    TURNING = ((0.0, 0.09), (0.02, 0.16))  # m, x and y where the hand turns the nut: farther out the arm could stretch
    GRIP = (0.057, 0.067)  # m along the handle from its nut's middle: nearer, a finger lands on the nut
    LOST = 0.03  # m between grip site and grasped point of the handle beyond which the grasp is lost
    ON_PEG = 0.88  # m, height of a nut that is around the peg
    BESIDE = 0.02  # m, sideways distance of such a nut from the peg
    OVER = 0.006  # m, sideways error under which the nut is lowered: the hole leaves 7 mm
    CLEAR = 0.015  # m from the peg's top to the nut's middle while it is not over the peg yet: it is 1 cm thick below
    EFFORT = 2.0  # rad of turning that make a plan less likely by e: the wrist turns 1.3 rad/s at most
    GRASP_TURN = 2.8  # rad, largest turn of the wrist at the grasp: so near the base it meets its limit earlier
    LOWERING_STEPS = 60  # control steps after which the nut is taken to be jammed
    ATTEMPTS = 3  # at the peg with one grasp

    def __init__(self, rng: np.random.Generator, first: Observation, manner: Manner = BETTER) -> None:
        super().__init__(rng, first, manner)
        self._rng = rng
        self._grip = rng.uniform(*self.GRIP)
        self._plan = self._choose()
        self.mode = self._name(self._plan)
        self._hover = rng.uniform(0.05, 0.10)  # m above the handle before descending
        self._depth = rng.uniform(-0.002, 0.005)  # m from the handle's middle to the grip site, when closing
        self._height = rng.uniform(0.03, 0.08)  # m of the nut above the peg on its way
        self._bow = rng.uniform(-0.05, 0.05)  # m, sideways swing on the way to the nut
        self._turning = np.array([rng.uniform(*limits) for limits in self.TURNING])  # m
        self._release = rng.uniform(0.845, 0.925)  # m, height of the nut when the fingers open

    def _script(self) -> Script:
        arm = self.arm
        while True:
            while self._delivered():
                yield from arm.rest(1)
            yield from arm.move(lambda: raised(self._handle(), self._hover), self._grasp_yaw, OPEN,
                                0.03, swing=arm.sideways(self._handle(), self._bow))
            yield from arm.descend(lambda: raised(self._handle(), self._depth), self._grasp_yaw,
                                   self._hover, centred=0.007, patience=60)
            yield from arm.close()
            if (yield from self._carry()):
                yield from arm.open()
            top = raised(arm.hand, 0.06)
            yield from arm.move(lambda top=top: top, arm.yaw, OPEN, 0.02)
            if not self._delivered():
                self._plan = self._choose()

    def _carry(self) -> Script:
        """Up, over the peg with the nut turned, and down around it; up again where it jams. False if it was lost."""
        arm, high = self.arm, self.PEG[2] + self._height
        up = np.array([*arm.hand[:2], high])
        if not (yield from arm.move(lambda: up, arm.yaw, CLOSED, 0.03, holds=self._holds)):
            return False
        turning = np.array([*self._turning, high])
        if not (yield from arm.move(lambda: turning, self._peg_yaw, CLOSED, 0.03, turned=0.4, holds=self._holds)):
            return False
        for _ in range(self.ATTEMPTS):
            if not (yield from arm.move(lambda: self._with_nut_at(high), self._peg_yaw, CLOSED, 0.012, turned=0.1,
                                        holds=self._holds)):
                return False
            for _ in range(self.LOWERING_STEPS):
                if self.object[2] < self._release or not self._holds():
                    return self._holds()
                yield from self._lower()
        return True

    def _lower(self) -> Script:
        """One control step downwards, or sideways where the nut is not over the peg yet."""
        off = np.linalg.norm(self.object[:2] - self.PEG[:2])
        above = self.object[2] > self.PEG[2] + self.CLEAR - 0.003
        height = max(self.object[2], self.PEG[2] + self.CLEAR) if above and off > self.OVER else self._release - 0.02
        yield Goal(self._with_nut_at(height), self._peg_yaw(), CLOSED)

    def _with_nut_at(self, height: float) -> np.ndarray:
        """(3,) m: where the hand must be for the nut to be over the peg at `height`."""
        return self.arm.hand + np.array([*self.PEG[:2], height]) - self.object

    def _handle(self) -> np.ndarray:
        """(3,) m: the point of the handle that is grasped."""
        return self.object + self.object_rotation.apply([self._grip, 0.0, 0.0])

    def _holds(self) -> bool:
        return float(np.linalg.norm(self.arm.hand - self._handle())) < self.LOST

    def _delivered(self) -> bool:
        return bool(np.all(np.abs(self.object[:2] - self.PEG[:2]) < self.BESIDE) and self.object[2] < self.ON_PEG)

    def _grasp_yaw(self) -> float:
        """The planned yaw, corrected as the nut turns."""
        planned = self.arm.yaw_at(self._handle(), self._plan.grasp_turn)
        across = yaw_of(self.object_rotation, 1)
        error = wrap(across - planned)
        return planned + (error if abs(error) < np.pi / 2 else wrap(error + np.pi))

    def _peg_yaw(self) -> float:
        """The yaw that the hand must have for the handle to point as planned, counted towards the planned turn."""
        wanted = self.arm.yaw + wrap(HANDLES[self._plan.handle] - yaw_of(self.object_rotation, 0))
        planned = self.arm.yaw_at(self._peg_hand(self._plan.handle), self._plan.peg_turn)
        return planned + wrap(wanted - planned)

    def _peg_hand(self, handle: str) -> np.ndarray:
        """(2,) m: where the hand is over the peg."""
        angle = HANDLES[handle]
        return self.PEG[:2] + self._grip * np.array([np.cos(angle), np.sin(angle)])

    def _choose(self) -> Plan:
        """A plan in the wrist's reach: each way of the handle is as likely, less turning of the wrist is likelier."""
        plans = self._plans()
        handle = self._rng.choice(sorted({plan.handle for plan in plans}))
        fitting = [plan for plan in plans if plan.handle == handle]
        effort = np.array([abs(plan.grasp_turn) + abs(plan.peg_turn - plan.grasp_turn) for plan in fitting])
        weights = np.exp(-effort / self.EFFORT)
        return fitting[self._rng.choice(len(fitting), p=weights / weights.sum())]

    def _plans(self) -> list[Plan]:
        arm, nut = self.arm, self.object_rotation
        plans = []
        for grasp_turn in arm.turns_at(self._handle(), yaw_of(nut, 1), np.pi):
            if grasp_turn > self.GRASP_TURN:
                continue
            for handle, direction in HANDLES.items():
                there = self._peg_hand(handle)
                yaw = arm.yaw_at(self._handle(), grasp_turn) + direction - yaw_of(nut, 0)
                plans += [Plan(grasp_turn, turn, handle) for turn in arm.turns_at(there, yaw, 2 * np.pi)]
        return plans

    def _name(self, plan: Plan) -> str:
        across = wrap(self.arm.yaw_at(self._handle(), plan.grasp_turn) - yaw_of(self.object_rotation, 1))
        return f"{'inward' if abs(across) < np.pi / 2 else 'outward'}-{plan.handle}"
