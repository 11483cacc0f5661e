"""Scripted experts. They see what a policy sees, and draw one of several ways of doing the task for each episode.

Each expert is built for one episode from its own generator and the first observation, names its `mode`, and maps an
observation to a clean action. The noise is added outside (`ActionNoise`): what is recorded is what was executed.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from .episode import Observation
from .toy import POST_RADIUS, STEP

POSITION_GAIN = 18.0  # action per metre of position error
ROTATION_GAIN = 1.6  # action per radian of orientation error
NOISE_MEMORY = 0.7  # rho of the noise, per control step
INTEGRAL_GAIN, INTEGRAL_LEAK, CONTROL_SECONDS = 10.0, 0.9, 0.05


class Expert(Protocol):
    """One episode's way of doing the task."""

    mode: str

    def act(self, seen: Observation) -> np.ndarray: ...


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


class ReachExpert:
    """Passes the post on the left or on the right (seen from the start), at a speed of its own."""

    def __init__(self, rng: np.random.Generator, first: Observation) -> None:
        side = rng.choice([1.0, -1.0])
        self.mode = "left" if side > 0 else "right"
        self._beside = np.array([0.0, side * (POST_RADIUS + rng.uniform(0.06, 0.2))])  # m
        self._speed = rng.uniform(0.7, 1.0)

    def act(self, seen: Observation) -> np.ndarray:
        """(2,) action towards the point beside the post, then towards the goal."""
        position = seen["position"]
        target = self._beside if position[0] < -0.02 else seen["goal"]
        if position[0] < -0.02 and abs(position[1]) > abs(self._beside[1]) and position[1] * self._beside[1] > 0:
            target = np.array([self._beside[0], position[1]])  # far enough out: straight on
        error = (target - position) / STEP
        return error * min(1.0, self._speed / max(np.linalg.norm(error), 1e-9))


class LiftExpert:
    """Grasps the cube from above and lifts it.

    Phases: reach over the cube on an arc; descend, waiting above while not centred (else a finger lands on the cube);
    close until the fingers rest; lift; hold. Modes: which pair of faces is grasped, and on which side the arc runs.
    """

    LIFT = 0.10  # m above where the fingers closed
    CENTRED = 0.010  # m, sideways error under which it may descend: half of what the open fingers leave
    ARC_STEPS = 20  # control steps after which the way to the cube is straight
    LOST = 0.03  # m between grip site and cube beyond which the grasp is lost, and tried again
    SETTLED = 2e-4  # m, change of the fingers' width in a control step, below which they rest
    CLOSING_STEPS = (4, 16)  # control steps: at least, so that the fingers have started; at most
    OPEN, CLOSED = -1.0, 1.0

    def __init__(self, rng: np.random.Generator, first: Observation) -> None:
        quarter, side = rng.integers(2), rng.choice([1.0, -1.0])
        self.mode = f"{'quarter' if quarter else 'nearest'}-{'left' if side > 0 else 'right'}"
        self._down = _grasp_orientation(first, int(quarter))
        self._hover = rng.uniform(0.05, 0.09)  # m above the cube before descending
        self._depth = rng.uniform(-0.006, 0.002)  # m from the cube's centre to the grip site, when closing
        self._speed = rng.uniform(0.65, 1.0)  # largest number of an action
        self._bow = side * rng.uniform(0.02, 0.05)  # m, sideways swing of the reaching arc
        self._lift_drift = rng.uniform(-0.03, 0.03, 2)  # m, where to in x and y while lifting
        self._left = _left_of_way(first["robot0_eef_pos"], first["object"][:3])
        self._steps = 0
        self._phase, self._closing, self._width = "reach", 0, np.inf
        self._closed_at = np.zeros(3)
        self._integral = np.zeros(3)

    def act(self, seen: Observation) -> np.ndarray:
        """(7,) action: position 3, rotation 3, gripper."""
        target = self._target(seen)
        self._steps += 1
        error = target - seen["robot0_eef_pos"]
        # The controller's goal is the measured pose plus the action, so gravity leaves an offset that only an
        # integral removes.
        self._integral = INTEGRAL_LEAK * self._integral + CONTROL_SECONDS * error
        move = POSITION_GAIN * error + INTEGRAL_GAIN * self._integral
        move *= min(1.0, self._speed / max(np.abs(move).max(), 1e-9))
        turn = ROTATION_GAIN * (self._down * Rotation.from_quat(seen["robot0_eef_quat"]).inv()).as_rotvec()
        gripper = self.OPEN if self._phase in ("reach", "descend") else self.CLOSED
        return np.concatenate([move, np.clip(turn, -1.0, 1.0), [gripper]])

    def _target(self, seen: Observation) -> np.ndarray:
        """Where the grip site should go (3,) m; changes the phase when one is done."""
        hand, cube = seen["robot0_eef_pos"], seen["object"][:3]
        if self._phase == "lift" and np.linalg.norm(hand - cube) > self.LOST:
            self._phase, self._closing, self._width = "reach", 0, np.inf
        if self._phase == "reach":
            turned = (self._down * Rotation.from_quat(seen["robot0_eef_quat"]).inv()).magnitude()
            if np.linalg.norm(hand[:2] - cube[:2]) > 2 * self.CENTRED or turned > 0.2:
                swing = self._bow * max(0.0, 1 - self._steps / self.ARC_STEPS) * self._left
                return cube + np.array([*swing, self._hover])
            self._phase = "descend"
        if self._phase == "descend":
            target = self._descent(hand, cube)
            if target is not None:
                return target
            self._phase, self._closed_at = "close", hand.copy()
        if self._phase == "close":
            if not self._settled(seen["robot0_gripper_qpos"]):
                return self._closed_at
            self._phase = "lift"
        height = np.clip((hand[2] - self._closed_at[2]) / self.LIFT, 0.0, 1.0)
        return self._closed_at + np.array([*(height * self._lift_drift), self.LIFT])

    def _descent(self, hand: np.ndarray, cube: np.ndarray) -> np.ndarray | None:
        """The next point of the descent (3,) m: no lower while off centre. None once it is around the cube."""
        centred = np.linalg.norm(hand[:2] - cube[:2]) <= self.CENTRED
        low = cube[2] + self._depth
        if centred and abs(hand[2] - low) < 0.006:
            return None
        waiting = np.clip(hand[2], low, cube[2] + self._hover)
        return np.array([*cube[:2], low if centred else waiting])

    def _settled(self, fingers: np.ndarray) -> bool:
        """Whether the fingers (2,) have stopped: on the cube, as its width is still between them."""
        width = float(fingers[0] - fingers[1])
        change, self._width = abs(width - self._width), width
        self._closing += 1
        least, most = self.CLOSING_STEPS
        return self._closing >= most or (self._closing >= least and change < self.SETTLED)


def _left_of_way(hand: np.ndarray, cube: np.ndarray) -> np.ndarray:
    """(2,) unit vector to the left of the straight way from hand to cube, seen from above."""
    way = cube[:2] - hand[:2]
    return np.array([-way[1], way[0]]) / max(np.linalg.norm(way), 1e-6)


def _grasp_orientation(first: Observation, quarter: int) -> Rotation:
    """The hand pointing straight down, its fingers closing on the pair of faces that is nearest, or on the other pair.

    The fingers move along the hand's y axis. The wrist turns by at most 45 degrees, or by 45 to 90: turning further,
    it would meet a joint limit, which the controller knows nothing of.
    """
    hand = Rotation.from_quat(first["robot0_eef_quat"]).as_matrix()
    cube = Rotation.from_quat(first["object"][3:7]).as_matrix()
    yaw = np.arctan2(hand[1, 1], hand[0, 1])
    turn = np.arctan2(cube[1, 1], cube[0, 1]) - yaw
    turn = (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4
    turn -= quarter * np.copysign(np.pi / 2, turn)
    y = np.array([np.cos(yaw + turn), np.sin(yaw + turn), 0.0])
    z = np.array([0.0, 0.0, -1.0])
    return Rotation.from_matrix(np.stack([np.cross(y, z), y, z], axis=1))
