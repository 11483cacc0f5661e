"""The policy's `object` vector from an object's pose and the robot's state, exactly as the simulator writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError

KEY = "object"
GRIP, HAND = "robot0_eef_pos", "robot0_eef_quat"  # of the contract: the grip site, and the hand's rotation


@dataclass(frozen=True)
class Layout:
    """How one task's `object` continues after position 3 and quaternion xyzw 4 of the object in the world."""

    body: str  # as the contract names it
    size: int
    rest: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # position, quaternion, grip, hand


def grip_minus_object(position: np.ndarray, _: np.ndarray, grip: np.ndarray, __: np.ndarray) -> np.ndarray:
    """(3,) m, world frame."""
    return grip - position


def object_in_hand(position: np.ndarray, quaternion: np.ndarray, grip: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """(7,) position and quaternion in a frame at the grip site, turned like the hand; the quaternion has w >= 0."""
    back = Rotation.from_quat(hand).inv()
    turn = (back * Rotation.from_quat(quaternion)).as_quat()
    return np.concatenate([back.apply(position - grip), -turn if turn[3] < 0 else turn])


LAYOUTS: Mapping[str, Layout] = {
    "lift": Layout("cube", 10, grip_minus_object),
    "can": Layout("can", 14, object_in_hand),
    "square": Layout("square nut", 14, object_in_hand),
}


def layout_of(task: str) -> Layout:
    """How the task's `object` vector is laid out; refuses tasks for which one tagged object is not enough."""
    if task not in LAYOUTS:
        raise UserError(
            f"the object vector of task '{task}' cannot be made from the pose of one tagged object; choose one of "
            f"{', '.join(LAYOUTS)}, or use a policy that sees images"
        )
    return LAYOUTS[task]


def object_vector(
    task: str, position: np.ndarray, quaternion: np.ndarray, grip: np.ndarray, hand: np.ndarray
) -> np.ndarray:
    """(10,) or (14,): the observation `object`.

    Args:
        position, quaternion: of the object in the world, (3,) m and (4,) xyzw, whose sign is passed on as it is.
        grip, hand: the contract's robot0_eef_pos (3,) m and robot0_eef_quat (4,) xyzw at the same time.
    """
    return np.concatenate([position, quaternion, layout_of(task).rest(position, quaternion, grip, hand)])
