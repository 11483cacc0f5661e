"""A smooth path through timed waypoints: absolute targets that come 20 to 100 times a second become references at any
rate, with the twist that a controller needs as feed-forward. World frame, SI units, times in s of the robot's clock.

Between two waypoints a cubic goes from where the path is, at the velocity it has, to the waypoint, at the velocity it
asks for: position and velocity have no jump wherever a new waypoint comes in. Beyond the last waypoint the path goes on
at its velocity for a little while and then comes to rest: who falls silent moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.rotations import rotation_of

BLEND = 0.01  # s: least time to get to a waypoint, so that one that is due or late is no jump
GO_ON = 0.03  # s beyond the last waypoint at its velocity: three of the executor's ticks
FADE = 0.05  # s in which the velocity then falls to zero


@dataclass(frozen=True)
class PathPoint:
    """Where a path is at one time."""

    position: np.ndarray  # (3,) m
    rotation: np.ndarray  # (3, 3)
    twist: np.ndarray  # (6,) m/s, rad/s

    @staticmethod
    def rest(position: np.ndarray, rotation: np.ndarray) -> PathPoint:
        """Standing still."""
        return PathPoint(np.array(position, float), np.array(rotation, float), np.zeros(6))


def turned(rotation: np.ndarray, rotvec: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) turned by a rotation vector (3,) of the world."""
    return Rotation.from_rotvec(rotvec).as_matrix() @ rotation


def turn_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The world's rotation vector (3,) rad that turns a (3, 3) into b (3, 3)."""
    return rotation_of(b @ a.T).as_rotvec()


class Waypoints:
    """One arm's path: the stretch that it is on, and what follows after its end."""

    def __init__(self, time: float, start: PathPoint) -> None:
        self._from, self._to = (time, start), (time, start)

    def add(self, now: float, time: float, point: PathPoint) -> None:
        """Be at `point` at `time`; one that is due or late is carried on to where it would be `BLEND` from now."""
        late = now + BLEND - time
        if late > 0:
            point, time = _later(point, min(late, GO_ON)), now + BLEND
        self._from, self._to = (now, self.at(now)), (time, point)

    def at(self, time: float) -> PathPoint:
        """The path at a time that is not before the last `add`."""
        (begin, start), (end, goal) = self._from, self._to
        if time >= end:
            return _later(goal, time - end)
        span = end - begin
        share = (time - begin) / span
        move = goal.position - start.position
        turn = turn_between(start.rotation, goal.rotation)
        there, speed = _cubic(np.concatenate([move, turn]), start.twist * span, goal.twist * span, share)
        return PathPoint(start.position + there[:3], turned(start.rotation, there[3:]), speed / span)


def _cubic(end: np.ndarray, slope0: np.ndarray, slope1: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray]:
    """From 0 to `end` with these slopes at both ends, at s in [0, 1]: value and slope."""
    value = (s**3 - 2 * s**2 + s) * slope0 + (3 * s**2 - 2 * s**3) * end + (s**3 - s**2) * slope1
    slope = (3 * s**2 - 4 * s + 1) * slope0 + (6 * s - 6 * s**2) * end + (3 * s**2 - 2 * s) * slope1
    return value, slope


def _later(point: PathPoint, seconds: float) -> PathPoint:
    """A point carried on at its velocity, which fades after `GO_ON`."""
    steady, fading = min(seconds, GO_ON), min(max(0.0, seconds - GO_ON), FADE)
    left = 1 - fading / FADE
    moved = point.twist * (steady + fading * (1 + left) / 2)
    return PathPoint(point.position + moved[:3], turned(point.rotation, moved[3:]), point.twist * left)
