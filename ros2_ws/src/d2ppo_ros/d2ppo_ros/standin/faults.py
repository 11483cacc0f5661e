"""What is wrong with a stand-in arm at the moment, and how each request changes it. No simulator, no sockets."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from d2ppo_core.errors import UserError

from .wire import ERRORS

RECOVERIES = ("ok", "manual")  # what an automatic recovery answers: done, or somebody must come


@dataclass
class Faults:
    """Of one arm; `None` and empty: nothing."""

    errors: list[str] = field(default_factory=list)  # names of what stopped it; it moves no more until recovered
    reflex: str = ""  # asked for, and not yet happened: the error's name
    user_stopped: bool = False  # somebody has pressed the stop button
    recovery: str = "ok"
    wrench: np.ndarray = field(default_factory=lambda: np.zeros(6))  # (6,) N, Nm at the EE, robot's base frame
    wrench_until: float = 0.0  # s of robot time
    silent_until: float = 0.0  # s of wall time: no state leaves the robot
    deaf: bool = False  # new connections are accepted and never answered
    version: int = 0  # a server version other than the real one; 0: the real one
    success: float = 1.0  # control_command_success_rate
    stuck_gripper: bool = False  # the fingers do not move, and commands do not end

    @property
    def stopped(self) -> bool:
        """Whether the arm refuses to move."""
        return bool(self.errors) or self.user_stopped

    def force(self, now: float) -> np.ndarray:
        """The external wrench (6,) at robot time `now` in s."""
        return self.wrench if now < self.wrench_until else np.zeros(6)


def error_name(name: str) -> str:
    """A name that the protocol has."""
    if name not in ERRORS:
        raise UserError(f"there is no robot error '{name}'; choose one of {', '.join(ERRORS)}")
    return name


def six(values: object) -> np.ndarray:
    """Six finite numbers."""
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (6,) or not np.isfinite(found).all():
        raise UserError(f"a wrench is 6 finite numbers (N, then Nm), not {values!r}")
    return found
