"""Driver and safety monitor, both as they are, in front of a stand-in without ROS: what each does to the arm."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import ActionSpec
from d2ppo_ros.records import SECOND, ArmState, Command, Kind, State, Target
from d2ppo_ros.robot.driver import Phase
from d2ppo_ros.robot.pilot import standin
from d2ppo_ros.robot.reading import oldest
from d2ppo_ros.safety.arms import ArmWatch
from d2ppo_ros.safety.monitor import SafetyMonitor
from d2ppo_ros.safety.settings import SafetySettings
from d2ppo_ros.standin.physics import READY
from robot_rig import RobotRig, robot_driver

TABLE = 0.06  # m in the arm's base: below where it starts, and in the way of one that goes down
STILL = 0.005  # m/s: at rest is slower
# What launch/params/standin.yaml grants a machine that is not a robot's, and a box around where the arm moves.
SETTINGS = {
    "robot_model": "fr3", "box_low": [0.1, -0.6, -0.2], "box_high": [0.8, 0.6, 0.9], "table": -0.3,
    "command_stop": 0.9, "state_hold": 0.1, "state_stop": 0.5, "tick_warn": 0.1, "tick_stop": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Stopped:
    """How an arm came to rest, by the robot's own clock."""

    rest: float  # s
    distance: float  # m from where it was struck to where it was farthest
    speed: float  # m/s when it was struck


class GuardedRig(RobotRig):
    """An executor at 100 Hz with a motion every 50 ms, the monitor between it and the driver, at 100 Hz, too.

    Attributes:
        walk: (3,) m/s of an absolute target that is commanded instead of `action`; None: none is.
        late: s by which commands are stamped too early (or, negative, of the future).
        pressed: what the operator's switch says; None: nobody holds one.
        alive: the safety node is there.
        stall: s for which the servo loop will not run, once.
    """

    def __init__(self, *arguments: Any) -> None:
        self.walk: np.ndarray | None = None
        self.late, self.stall, self.alive, self.pressed = 0.0, 0.0, True, None
        self._from: tuple[float, ArmState] | None = None
        self.lock = threading.RLock()
        self.guard()
        super().__init__(*arguments)
        self._threads.append(threading.Thread(target=self._guarding, daemon=True))
        self._threads[-1].start()

    def guard(self, **settings: Any) -> None:
        """A new monitor with these settings besides `SETTINGS`."""
        with self.lock:
            given = SafetySettings(**SETTINGS | settings)
            self.monitor = SafetyMonitor(given, ActionSpec(limits="robot"), time.time_ns())

    def tighten(self, **settings: Any) -> None:
        """The same monitor measures the arm against these settings instead."""
        with self.lock:
            self.monitor.arms[0] = ArmWatch(0, SafetySettings(**SETTINGS | settings))

    @property
    def cause(self) -> str:
        """The check behind safety's state, and why the driver does not drive."""
        with self.lock:
            report = self.monitor.report(time.time_ns())
        return f"{report.state.name} {report.check}; {self.driver.stopped}; {self.fault}"

    # --- the parties --------------------------------------------------------------------------------------------------

    def _servo(self) -> None:
        while self._running:
            stall, self.stall = self.stall, 0.0
            time.sleep(stall or 0.005)
            self.driver.tick()

    def _others(self) -> None:
        """Executor and operator."""
        count = 0
        while self._running:
            if self.action is not None:
                count += 1
                self.command(self._wanted() if count % 5 == 0 else {"kind": Kind.KEEP})
            if self.pressed is not None:
                with self.lock:
                    self.monitor.on_operator(self.pressed, time.time_ns())
            time.sleep(0.01)

    def command(self, what: dict[str, Any]) -> None:
        """Ask safety for something now."""
        with self.lock:
            now = time.time_ns()
            self._number += 1
            asked = Command(now - round(self.late * SECOND), "t", self._number, what["kind"])
            sent = self.monitor.on_command(replace(asked, **what), now)
            if self.alive:
                self.driver.obey(sent, 0)

    def _wanted(self) -> dict[str, Any]:
        if self.walk is None:
            self._from = None
            return {"kind": Kind.DELTA, "action": self.action}
        driver = self.driver
        begin, arm = self._from = self._from or (
            time.monotonic(), driver.arms(driver.readings(), lambda at: at, 0)[0])  # fmt: skip
        place = arm.position + self.walk * (time.monotonic() - begin)
        quaternion, twist = Rotation.from_matrix(arm.rotation).as_quat(), np.concatenate([self.walk, np.zeros(3)])
        return {"kind": Kind.POSE, "targets": (Target(place, quaternion, twist, np.zeros(6), 0.0),)}

    def _guarding(self) -> None:
        """Safety's node."""
        while self._running:
            with self.lock:
                steady, now, readings = time.monotonic_ns(), time.time_ns(), self.driver.readings()
                ahead = now - steady
                for arm in self.driver.arms(readings, lambda at, ahead=ahead: at + ahead, steady):
                    self.monitor.on_arm(arm, now)
                state = self.driver.state(readings, oldest(readings) + ahead, 0)
                if state is not None:
                    self.monitor.on_state(state, now)
                own = self.monitor.tick(now, steady)
                if self.alive and own is not None:
                    self.driver.obey(own, 0)
                if self.alive:
                    self.driver.heartbeat(self.monitor.state)
            time.sleep(0.01)

    # --- a person -----------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Mend what is left, re-arm, arm; returns when it is driven."""
        self.action = np.zeros(7)

        def ready() -> bool:
            if self.driver.phase is not Phase.IDLE:
                return False
            if self.fault and "connection" not in self.fault:
                self.driver.recover()
            with self.lock:
                if self.monitor.state is State.STOPPED:
                    self.monitor.rearm(time.time_ns())
            return not self.fault and self.monitor.state is State.READY

        self.wait(ready, 15.0)
        time.sleep(0.1)  # the driver hears READY
        with self.lock:
            self.monitor.arm(time.time_ns())
        self.wait(lambda: self.driver.phase is Phase.DRIVING)

    def disarm(self) -> None:
        """Back to READY, as far as nothing is latched; returns when nothing drives it."""
        with self.lock:
            self.monitor.disarm(time.time_ns(), "by hand")
        self.wait(lambda: self.driver.phase is Phase.IDLE)

    def mend(self) -> None:
        """Everything as at the start."""
        self.walk, self.late, self.stall, self.alive, self.pressed = None, 0.0, 0.0, True, None
        self.take_out()
        self.disarm()
        self.control.ask("place", q=READY)
        self.guard()

    # --- what is measured ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on every millisecond of the robot's time is remembered."""
        self.given_up = self.driver.hands[0].given_up
        self.control.ask("record")

    def stopped(self) -> Stopped:
        """How the arm came to rest since `begin`."""
        return how_it_stopped(np.array(self.control.ask("trace")["rows"]))


def how_it_stopped(rows: np.ndarray) -> Stopped:
    """Of a trace (T, 11), a row each millisecond from when the arm was struck."""
    places = rows[:, 1:4]
    speeds = np.linalg.norm(places[20:] - places[:-20], axis=1) / 0.020  # over 20 ms
    fast = np.flatnonzero(speeds > STILL)
    rest = 0 if not len(fast) else fast[-1] + 1
    way = float(np.linalg.norm(places[: rest + 20] - places[0], axis=1).max())
    return Stopped(rest / 1000, way, float(speeds[0]))


Rig = TypeVar("Rig", bound=GuardedRig)


@contextmanager
def guarded_rig(host: str, kind: type[Rig] = GuardedRig) -> Iterator[Rig]:
    """A rig at a stand-in of its own, with a table."""
    with standin(f"table={TABLE}", host=host) as control:
        driver = robot_driver(host, grip_timeout=2.0, command_stop=0.9, lease=0.2, overrun=0.1)
        rig = kind(driver, control)
        try:
            yield rig
        finally:
            rig.close()
