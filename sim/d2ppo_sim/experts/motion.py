"""How a scripted arm moves: one pose controller, and the movements that experts are put together from.

A script is a generator. Each control step it finds the new observation in its `Arm`, and yields the `Goal` of that
step; a movement is a piece of a script, run by `yield from`, which returns whether it did what it was for. So a script
reads in the order in which things happen, and trying again is a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.spatial.transform import Rotation

from ..episode import Observation
from .manner import Manner

POSITION_GAIN = 18.0  # action per metre of position error
ROTATION_GAIN = 1.6  # action per radian of orientation error
INTEGRAL_GAIN, INTEGRAL_LEAK, CONTROL_SECONDS = 10.0, 0.9, 0.05
TURN_AHEAD = 1.0  # rad of yaw asked for at a time: so that the wrist turns the way round that was planned
WRIST_TURN = (-1.8, 3.3)  # rad of yaw from the start pose, less the arm's bearing, to the limits of the last joint
OPEN, CLOSED = -1.0, 1.0  # the gripper's number of an action
SETTLED = 2e-4  # m, change of the fingers' width in a control step, below which they rest
CLOSING_STEPS = (4, 16)  # control steps: at least, so that the fingers have started; at most
OPENED = 0.07  # m between the fingers from which they have let go (0.08: wide open)
OPENING_STEPS = 14  # control steps after which they are open, whatever they measure
ARC_STEPS = 20  # control steps after which a movement's swing is over
CENTRED = 0.010  # m, sideways error under which the hand may descend: half of what the open fingers leave of a cube
FUNNEL = 6.0  # m of height for each metre off centre beyond what is allowed
PATIENCE = 120  # control steps after which a movement gives up getting nearer
MISS_HEIGHT = 0.05  # m above the grasp at which a grasp meant to miss closes

Point: TypeAlias = Callable[[], np.ndarray]
Script: TypeAlias = "Iterator[Goal]"


@dataclass(frozen=True)
class Goal:
    """Where the hand should go in this control step: grip site (3,) m, yaw of the fingers' line rad, gripper."""

    position: np.ndarray
    yaw: float
    gripper: float
    speed: float = 1.0  # share of the episode's own speed


def wrap(angle: float) -> float:
    """The same angle within [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def yaw_of(rotation: Rotation, axis: int) -> float:
    """Direction of a body's axis seen from above, rad."""
    column = rotation.as_matrix()[:, axis]
    return float(np.arctan2(column[1], column[0]))


def pointing_down(yaw: float) -> Rotation:
    """The hand pointing straight down, its fingers moving along its y axis, which points to `yaw`."""
    y = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    z = np.array([0.0, 0.0, -1.0])
    return Rotation.from_matrix(np.stack([np.cross(y, z), y, z], axis=1))


def raised(point: np.ndarray, by: float) -> np.ndarray:
    """(3,) m: `by` metres above a point."""
    return np.array([point[0], point[1], point[2] + by])


def always() -> bool:
    """Nothing can be lost."""
    return True


class Arm:
    """One arm: what it sees of itself, the controller, and the movements.

    Args:
        base: (2,) m, where it stands, seen from above: the wrist's room to turn goes with the arm's bearing.
        integral: gain of the controller's integral part; 0 where a held object must not be pushed against a peg.
    """

    def __init__(
        self, rng: np.random.Generator, first: Observation, manner: Manner, base: tuple[float, float],
        robot: int = 0, integral: float = INTEGRAL_GAIN,
    ) -> None:
        self.rng, self.manner = rng, manner
        self._names = [f"robot{robot}_{part}" for part in ("eef_pos", "eef_quat", "gripper_qpos")]
        self._base, self._gain = np.array(base), integral
        self.speed = rng.uniform(*manner.speed)  # largest number of an action
        self._integral = np.zeros(3)
        self._gripper = OPEN
        self.yaw = yaw_of(Rotation.from_quat(first[self._names[1]]), 1)
        self.see(first)
        self._home = self.yaw - self.bearing(self.hand)

    def see(self, seen: Observation) -> None:
        """Take in an observation."""
        self.hand, quaternion, fingers = (seen[name] for name in self._names)
        self.orientation = Rotation.from_quat(quaternion)
        self.yaw += wrap(yaw_of(self.orientation, 1) - self.yaw)  # rad, counted through full turns
        self.width = float(fingers[0] - fingers[1])  # m between the fingers

    def command(self, goal: Goal) -> np.ndarray:
        """(7,) action: position 3, rotation 3, gripper."""
        self._gripper = goal.gripper
        error = goal.position - self.hand
        # The controller's goal is the measured pose plus the action, so gravity leaves an offset that only an
        # integral removes.
        self._integral = INTEGRAL_LEAK * self._integral + CONTROL_SECONDS * error
        move = POSITION_GAIN * error + self._gain * self._integral
        move *= min(1.0, self.speed * goal.speed / max(np.abs(move).max(), 1e-9))
        ahead = pointing_down(self.yaw + np.clip(goal.yaw - self.yaw, -TURN_AHEAD, TURN_AHEAD))
        turn = ROTATION_GAIN * (ahead * self.orientation.inv()).as_rotvec()
        return np.concatenate([move, np.clip(turn, -1.0, 1.0), [goal.gripper]])

    def bearing(self, point: np.ndarray) -> float:
        """Direction from the base to a point, rad."""
        return float(np.arctan2(point[1] - self._base[1], point[0] - self._base[0]))

    def yaw_at(self, point: np.ndarray, turn: float) -> float:
        """The yaw that the hand has over `point` with its wrist turned by `turn` rad from the start pose."""
        return self._home + self.bearing(point) + turn

    def turns_at(self, point: np.ndarray, yaw: float, period: float) -> list[float]:
        """The wrist's turns in reach that give `yaw`, or `yaw` and multiples of `period`, over `point`."""
        least, most = WRIST_TURN
        turn = yaw - self.yaw_at(point, 0.0)
        first = turn + np.ceil((least - turn) / period) * period
        return [float(t) for t in np.arange(first, most, period)]

    def rest(self, steps: int) -> Script:
        """Stay where it is."""
        here = Goal(self.hand.copy(), self.yaw, self._gripper)
        for _ in range(steps):
            yield here

    def move(
        self, target: Point, yaw: float | Callable[[], float], gripper: float, near: float = 0.015, *,
        turned: float = 0.15, swing: np.ndarray | None = None, speed: float = 1.0, holds: Callable[[], bool] = always,
        patience: int = PATIENCE,
    ) -> Iterator[Goal]:
        """Go to within `near` m and `turned` rad of a (moving) target, starting off towards `swing` (3,) m beside it.

        Returns whether `holds` was true all the way; also when patience is over.
        """
        yield from self._hesitate()
        swing = (np.zeros(3) if swing is None else swing) + self.rng.normal(0.0, 1.0, 3) * self.manner.detour
        swing[2] = abs(swing[2])  # nothing to be found below
        for step in range(patience):
            if not holds():
                return False
            angle = yaw() if callable(yaw) else yaw
            goal, left = target(), max(0.0, 1 - step / ARC_STEPS)
            if np.linalg.norm(self.hand - goal) < near and abs(angle - self.yaw) < turned:
                return True
            yield Goal(goal + left * swing, angle, gripper, speed)
        return True

    def _hesitate(self) -> Script:
        """A rest, with the manner's probability."""
        if self.rng.random() < self.manner.pause:
            yield from self.rest(int(self.rng.integers(*self.manner.pause_steps, endpoint=True)))

    def descend(
        self, target: Point, yaw: float | Callable[[], float], hover: float, *, centred: float = CENTRED,
        reached: float = 0.006, patience: int = PATIENCE,
    ) -> Iterator[Goal]:
        """Come down onto a target with open fingers, in a funnel: off centre, a finger would land on the object."""
        missed = MISS_HEIGHT if self.rng.random() < self.manner.miss else 0.0
        for _ in range(patience):
            goal = raised(target(), missed)
            off = np.linalg.norm(self.hand[:2] - goal[:2])
            if off < centred and abs(self.hand[2] - goal[2]) < reached:
                return
            goal[2] += np.clip(FUNNEL * (off - centred), 0.0, hover)
            yield Goal(goal, yaw() if callable(yaw) else yaw, OPEN)

    def close(self) -> Script:
        """Close the fingers where the hand is until they rest: on the object, as its width is still between them."""
        here, width = Goal(self.hand.copy(), self.yaw, CLOSED), np.inf
        least, most = CLOSING_STEPS
        for step in range(most):
            if step >= least and abs(self.width - width) < SETTLED:
                return
            width = self.width
            yield here

    def open(self) -> Script:
        """Open the fingers where the hand is."""
        here = Goal(self.hand.copy(), self.yaw, OPEN)
        for _ in range(OPENING_STEPS):
            if self.width > OPENED:
                return
            yield here

    def sideways(self, target: np.ndarray, by: float) -> np.ndarray:
        """(3,) m: `by` to the left of the straight way to a target, seen from above."""
        way = target[:2] - self.hand[:2]
        return by * np.array([-way[1], way[0], 0.0]) / max(np.linalg.norm(way), 1e-6)


class OneArmExpert:
    """An expert with one arm and one object. Subclasses draw their `mode` and write `_script`."""

    BASE: tuple[float, float]  # m, where the arm stands
    INTEGRAL = INTEGRAL_GAIN

    def __init__(self, rng: np.random.Generator, first: Observation, manner: Manner) -> None:
        self.mode = ""
        self.arm = Arm(rng, first, manner, self.BASE, integral=self.INTEGRAL)
        self._look(first)
        self._moves = self._script()

    def act(self, seen: Observation) -> np.ndarray:
        """(7,) action."""
        self.arm.see(seen)
        self._look(seen)
        return self.arm.command(next(self._moves))

    def _look(self, seen: Observation) -> None:
        self.object = seen["object"][:3]
        self.object_rotation = Rotation.from_quat(seen["object"][3:7])

    def _script(self) -> Script:
        """The whole episode; it never ends."""
        raise NotImplementedError
