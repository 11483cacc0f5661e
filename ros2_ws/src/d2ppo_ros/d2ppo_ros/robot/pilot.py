"""A stand-in arm in a process of its own, and somebody who drives it without safety node and executor: for benches,
doctors and tests.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from d2ppo_core.errors import UserError

from ..records import SECOND, Command, Kind, State, Target
from ..standin.control import Control
from .driver import Driver, Phase


@contextmanager
def standin(*words: str, host: str, seconds: float = 30.0) -> Iterator[Control]:
    """A stand-in in a process of its own, and the door to its faults."""
    command = [sys.executable, "-m", "d2ppo_ros.standin.arm", f"host={host}", "control=0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            why = process.stderr.read().strip().splitlines() or ["it said nothing"]  # type: ignore[union-attr]
            raise UserError(f"the stand-in did not start: {why[-1].removeprefix('d2ppo: ')}")
        address, _, port = line.split()[-1].rpartition(":")
        control = Control(address, int(port), seconds)
        yield control
        control.close()
    finally:
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(so: Any, seconds: float, what: str) -> None:
    """Until `so()`; a `UserError` names what did not come about."""
    end = time.monotonic() + seconds
    while not so():
        if time.monotonic() > end:
            raise UserError(f"{what} within {seconds:g} s")
        time.sleep(0.005)


class PatientClock:
    """A steady clock for which no gap is longer than 20 ms: the bench judges following, not how busy the machine is."""

    LONGEST = 20_000_000  # ns

    def __init__(self) -> None:
        self._real = self._now = time.monotonic_ns()

    def __call__(self) -> int:
        """ns."""
        real = time.monotonic_ns()
        self._now, self._real = self._now + min(real - self._real, self.LONGEST), real
        return self._now


class Pilot:
    """Safety and executor for a driver that has neither: armed, and told where to be."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self._number = driver, 0

    def cycle(self, state: State = State.ARMED) -> None:
        """A heartbeat, and one cycle of the servo loop."""
        self.driver.heartbeat(state)
        self.driver.tick()

    def keep(self) -> None:
        """The executor is alive, and wants nothing new."""
        self.driver.obey(self._command(Kind.KEEP), 0)

    def take(self, seconds: float = 10.0) -> None:
        """Connect and arm; returns when the arms are driven."""
        driver = self.driver
        wait_until(lambda: not driver.fault(time.monotonic_ns()), seconds,
                   f"the arm does not get ready ({driver.fault(time.monotonic_ns())})")  # fmt: skip

        def driven() -> bool:
            self.cycle(State.READY if driver.phase is Phase.IDLE and driver.stopped else State.ARMED)
            return driver.phase is Phase.DRIVING

        self.cycle(State.READY)
        wait_until(driven, seconds, "the arm does not let itself be driven")

    def pose(self, targets: tuple[Target, ...], ahead: float) -> None:
        """Be there `ahead` s from now."""
        self.driver.obey(replace(self._command(Kind.POSE), targets=targets), -round(ahead * SECOND))

    def delta(self, action: np.ndarray) -> None:
        """A raw action (Da,)."""
        self.driver.obey(replace(self._command(Kind.DELTA), action=action), 0)

    def _command(self, kind: Kind) -> Command:
        self._number += 1
        return Command(time.time_ns(), "bench", self._number, kind)
