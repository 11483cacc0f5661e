"""One measurement of an arm as its driver keeps it, and what is wrong with it. Pure; any thread may call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..records import SECOND

FINE = ("Idle", "Move")  # modes in which the arm may be driven
SUCCESS_STOP = 0.90  # share of commands that came in time, mean of a second: libfranka's test calls less a failure
SUCCESS_WARN = 0.95


@dataclass(frozen=True)
class Reading:
    """SI units; poses and wrench in the arm's base frame."""

    received: int  # ns of the steady clock
    time: float  # s of the robot's clock, to its millisecond
    q: np.ndarray  # (7,) rad
    dq: np.ndarray  # (7,) rad/s
    ee: np.ndarray  # (4, 4) O_T_EE
    wrench: np.ndarray  # (6,) N, Nm, external, at the EE
    mode: str = "Idle"
    errors: tuple[str, ...] = ()
    success: float = 1.0  # share of commands that came in time; only while it is driven
    driven: bool = False  # a motion of ours runs


def reading_of(state: Any, received: int, driven: bool) -> Reading:
    """The client library's state."""
    errors = str(state.current_errors)
    names = tuple(part.strip(' "[]') for part in errors.split(",") if part.strip(' "[]'))
    return Reading(
        received, state.time.to_msec() / 1000, np.array(state.q), np.array(state.dq), np.array(state.O_T_EE.matrix),
        np.array(state.O_F_ext_hat_K), state.robot_mode.name, names, float(state.control_command_success_rate), driven,
    )


def oldest(readings: Sequence[Reading | None]) -> int:
    """ns (steady clock) at which the oldest of these came; 0: an arm has none."""
    return min((reading.received if reading else 0 for reading in readings), default=0)


@dataclass
class Health:
    """What the last readings say against driving the arm.

    Args:
        frozen: s for which the robot's clock may stand still.
    """

    frozen: float
    fault: str = ""
    warning: str = ""
    _last: Reading | None = None
    _moved: int = 0  # when the robot's clock was last seen to go on, ns of the steady clock
    _rates: deque[tuple[int, float]] = field(default_factory=deque)
    _lock: Any = field(default_factory=threading.Lock)

    def update(self, reading: Reading) -> None:
        """Take a new reading."""
        with self._lock:
            self._update(reading)

    def _update(self, reading: Reading) -> None:
        if self._last is None or reading.time != self._last.time:
            self._moved = reading.received
        self._last = reading
        if reading.driven and reading.success > 0:  # 0: it has not been measured yet
            self._rates.append((reading.received, reading.success))
        while self._rates and self._rates[0][0] < reading.received - SECOND:
            self._rates.popleft()

    def look(self, now: int) -> str:
        """What is wrong at `now` (ns of the steady clock), as words; empty: nothing. Also sets `warning`."""
        with self._lock:
            self.fault, self.warning = self._found(now)
        return self.fault

    def _found(self, now: int) -> tuple[str, str]:
        last = self._last
        if last is None:
            return "it has not been heard yet", ""
        silent = (now - self._moved) / SECOND
        if silent > self.frozen:
            return f"the robot has been silent for {silent:.2f} s", ""
        if last.errors:
            return f"stopped by {', '.join(last.errors)}; look why, then recover it (arm/recover)", ""
        if last.mode not in FINE:
            return f"the robot's mode is {last.mode}" + _advice(last.mode), ""
        if len(self._rates) < 20:
            return "", ""
        mean = sum(rate for _, rate in self._rates) / len(self._rates)
        text = f"only {mean:.0%} of the commands of the last second came in time"
        return (text, "") if mean < SUCCESS_STOP else ("", text if mean < SUCCESS_WARN else "")

    def forget(self) -> None:
        """A new connection: nothing of the old one counts."""
        with self._lock:
            self._last, self._moved = None, 0
            self._rates.clear()


def _advice(mode: str) -> str:
    return {
        "UserStopped": ": release the user stop",
        "Reflex": ": look why, then recover it (arm/recover)",
        "Guiding": ": let go of the guiding buttons",
        "Other": ": unlock the brakes and enable the control interface in Desk",
    }.get(mode, "")
