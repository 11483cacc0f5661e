"""The nominal closed-loop response: how the arm moves under the controller with which the demonstrations were made.

robosuite's OSC_POSE is critically damped, so towards a fixed goal g the controlled frame follows, in closed form,

    x'' = KP (g - x) - KD x',    x - g = (c1 + c2 t) exp(-w t),    w = sqrt(KP), c1 = x_0 - g, c2 = x'_0 + w c1

and in rotation the same with the axis-angle error log(R_g R^T) in the place of g - x. Executing chunks as absolute
trajectories means to advance this motion: it has no jump where the goal does. World frame, SI units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .rotations import rotation_of

KP = 150.0  # 1/s^2, robosuite's default; data recorded with other gains are refused when they are read
KD = 2 * math.sqrt(KP)  # 1/s, critically damped
_RATE = math.sqrt(KP)  # w, 1/s


@dataclass(frozen=True)
class Motion:
    """Where one controlled frame is and how it moves; velocity and acceleration are linear, then angular.

    The angular velocity is minus the rate of the axis-angle error: the rotation's own while the axis stays.
    """

    position: np.ndarray  # (3,) m
    rotation: np.ndarray  # (3, 3)
    velocity: np.ndarray  # (6,) m/s, rad/s
    acceleration: np.ndarray  # (6,) m/s^2, rad/s^2


def at_rest(position: np.ndarray, rotation: np.ndarray) -> Motion:
    """A frame that stands still at position (3,) m, rotation (3, 3)."""
    return Motion(np.array(position, float), np.array(rotation, float), np.zeros(6), np.zeros(6))


def advance(motion: Motion, goal_position: np.ndarray, goal_rotation: np.ndarray, seconds: float) -> Motion:
    """The motion `seconds` later, the goal (3,) m and (3, 3) being held. Exact, so any number of parts add up.

    With 0 seconds only the acceleration changes: it becomes what the new goal asks for.
    """
    turn = rotation_of(goal_rotation @ motion.rotation.T).as_rotvec()
    error = np.concatenate([motion.position - goal_position, -turn])  # (6,) x - g
    c2 = motion.velocity + _RATE * error
    fade = math.exp(-_RATE * seconds)
    left = fade * (error + c2 * seconds)
    velocity = fade * c2 - _RATE * left
    return Motion(
        goal_position + left[:3],
        Rotation.from_rotvec(left[3:]).as_matrix() @ goal_rotation,
        velocity,
        -KP * left - KD * velocity,
    )


def osc_goal(position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """The goal (3,) m that makes the controller go on with linear velocity and acceleration (3,) at `position` (3,)."""
    return position + (KD * velocity + acceleration) / KP


def osc_goal_rotation(rotation: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """The same for the rotation (3, 3) and the angular velocity and acceleration (3,)."""
    return Rotation.from_rotvec((KD * velocity + acceleration) / KP).as_matrix() @ rotation
