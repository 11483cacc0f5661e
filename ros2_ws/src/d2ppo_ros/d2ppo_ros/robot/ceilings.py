"""The last limits before the controller, in the driver's own loop: no command and no parameter file gets past them.

What goes in is where the reference shall be in one servo cycle; what comes out is where it may be. Inside the limits it
passes unchanged. Beyond them the reference follows as fast as speed and acceleration allow, brakes in time, and stays
inside the workspace.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..safety.workspace import Workspace
from .waypoints import PathPoint, turn_between, turned

_BRAKE = 0.8  # share of the acceleration that braking counts on, so that rounding to cycles does not overshoot


@dataclass(frozen=True)
class Ceilings:
    """m/s, rad/s, m/s^2, rad/s^2."""

    speed: float
    turn: float
    acceleration: float
    turn_acceleration: float


class Limiter:
    """One arm's reference."""

    def __init__(self, ceilings: Ceilings, workspace: Workspace | None, start: PathPoint) -> None:
        self.ceilings, self.workspace = ceilings, workspace
        self.changed = 0  # cycles in which a limit held something back
        self.reset(start)

    def reset(self, start: PathPoint) -> None:
        """Begin here."""
        self.point, self._wanted = start, (start.position, start.rotation)
        self._velocity, self._seconds = start.twist, 0.0  # (6,) of the last cycle on average, and how long it was

    def follow(self, wanted: PathPoint, seconds: float) -> PathPoint:
        """Where the reference may be, one cycle of `seconds` > 0 later. Its twist is the wanted one where that is what
        it moves with, else what it really moves with.
        """
        c, old, before = self.ceilings, self.point, self._velocity
        position, rotation = wanted.position, wanted.rotation
        if self.workspace is not None:
            position, rotation = self.workspace.project(position, rotation)
        gap = np.concatenate([position - old.position, turn_between(old.rotation, rotation)])
        run = np.concatenate([position - self._wanted[0], turn_between(self._wanted[1], rotation)])
        between = (seconds + self._seconds) / 2 if self._seconds else seconds  # s from middle to middle of two cycles
        linear, held = _step(gap[:3], run[:3], before[:3], seconds, c.speed, c.acceleration * between)
        angular, slow = _step(gap[3:], run[3:], before[3:], seconds, c.turn, c.turn_acceleration * between)
        self.changed += held or slow
        twist = np.concatenate([
            _near(wanted.twist[:3], linear, c.speed, c.acceleration * between),
            _near(wanted.twist[3:], angular, c.turn, c.turn_acceleration * between),
        ])  # fmt: skip
        self._velocity, self._seconds, self._wanted = np.concatenate([linear, angular]), seconds, (position, rotation)
        self.point = PathPoint(old.position + linear * seconds, turned(old.rotation, angular * seconds), twist)
        return self.point


def _near(wanted: np.ndarray, real: np.ndarray, fastest: float, most: float) -> np.ndarray:
    """The wanted feed-forward (3,) where it differs from the cycle's real velocity by no more than a cycle's change."""
    honest = np.linalg.norm(wanted - real) <= most and np.linalg.norm(wanted) <= fastest
    return wanted if honest else real


def _step(
    gap: np.ndarray, run: np.ndarray, velocity: np.ndarray, seconds: float, fastest: float, most: float
) -> tuple[np.ndarray, bool]:
    """The velocity (3,) of one cycle towards a point `gap` (3,) away that has itself moved by `run` (3,) in the cycle,
    and whether a limit changed it. `most` is the largest change of velocity.
    """
    wanted = gap / seconds
    if np.linalg.norm(wanted) <= fastest and np.linalg.norm(wanted - velocity) <= most:
        return wanted, False
    drift = run / seconds if np.linalg.norm(run) <= fastest * seconds else np.zeros(3)  # a jump is no motion
    behind = gap - drift * seconds
    distance = float(np.linalg.norm(behind))
    closing = min(float(np.sqrt(2 * _BRAKE * most / seconds * distance)), distance / seconds)
    wanted = drift + (behind * (closing / distance) if distance > 0 else np.zeros(3))
    speed = float(np.linalg.norm(wanted))
    wanted = wanted * min(1.0, fastest / speed) if speed > 0 else wanted
    change = float(np.linalg.norm(wanted - velocity))
    if change > most:
        wanted = velocity + (wanted - velocity) * (most / change)
    return wanted, True
