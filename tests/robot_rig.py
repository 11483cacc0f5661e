"""A driver as it is, in front of stand-in arms, with a person and a policy that the test plays. No ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from d2ppo_core.contract import ActionSpec
from d2ppo_ros.records import Command, Kind, State
from d2ppo_ros.robot.driver import Driver, Phase, robot_of
from d2ppo_ros.robot.pilot import standin
from d2ppo_ros.robot.settings import ArmSettings
from d2ppo_ros.standin.control import Control

SIDEWAYS = np.array([0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0])  # of an action: some 6 cm/s


class RobotRig:
    """The servo loop at 200 Hz, safety's heartbeat at 20 Hz and commands at 20 Hz, each of which may be stopped."""

    def __init__(self, driver: Driver, control: Control) -> None:
        self.driver, self.control = driver, control
        self.state: State | None = State.READY  # what safety says; None: it is silent
        self.action: np.ndarray | None = None  # None: commands are silent; zeros: alive
        self._running, self._number = True, 0
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._servo, self._others)]
        driver.start()
        for thread in self._threads:
            thread.start()

    def _servo(self) -> None:
        while self._running:
            self.driver.tick()
            time.sleep(0.005)

    def _others(self) -> None:
        while self._running:
            if self.state is not None:
                self.driver.heartbeat(self.state)
            if self.action is not None:
                self._number += 1
                self.driver.obey(Command(time.time_ns(), "t", self._number, Kind.DELTA, action=self.action), 0)
            time.sleep(0.05)

    @property
    def fault(self) -> str:
        """What the driver says against driving."""
        return self.driver.fault(time.monotonic_ns())

    def wait(self, so: Callable[[], Any], seconds: float = 8.0) -> float:
        """s until something is so."""
        begin = time.monotonic()
        while not so():
            assert time.monotonic() - begin < seconds, (
                f"not within {seconds} s: {self.driver.phase}, '{self.fault}', '{self.driver.stopped}'"
            )
            time.sleep(0.002)
        return time.monotonic() - begin

    def arm(self) -> None:
        """A person arms it; returns when it is driven."""
        self.wait(lambda: not self.fault and self.driver.phase is Phase.IDLE)
        self.action, self.state = None, State.READY
        time.sleep(0.12)
        self.state, self.action = State.ARMED, np.zeros(7 * self.driver.action.arms)
        self.wait(lambda: self.driver.phase is Phase.DRIVING)

    def move(self) -> None:
        """Under way: faster than 2 cm/s. A busy machine may stop it before we do."""
        for _ in range(5):
            self.action = np.tile(SIDEWAYS, self.driver.action.arms)
            self.wait(lambda: self.speed() > 0.02 or self.driver.stopped)
            if not self.driver.stopped:
                return
            self.arm()
        raise AssertionError(self.driver.stopped)

    def speed(self, number: int = 0) -> float:
        """m/s, as measured."""
        return self.driver._speed(number)

    def at_rest(self, seconds: float = 4.0) -> float:
        """s until it is slower than 5 mm/s for 0.2 s."""
        begin, since = time.monotonic(), None
        while True:
            now = time.monotonic()
            assert now - begin < seconds, "it does not come to rest"
            since = (since or now) if self.speed() < 0.005 else None
            if since and now - since > 0.2:
                return since - begin
            time.sleep(0.002)

    def disarm(self) -> None:
        """A person disarms it; returns when nothing drives it."""
        self.state, self.action = State.READY, None
        self.wait(lambda: self.driver.phase is Phase.IDLE)

    def take_out(self) -> None:
        """Every fault that was put into the stand-in."""
        for request, what in (("user_stop", {"on": False}), ("recovery", {"answer": "ok"}), ("deaf", {"on": False}),
                              ("version", {"version": 0}), ("success", {"rate": 1.0}), ("gripper", {"stuck": False}),
                              ("force", {"wrench": [0] * 6, "seconds": 0})):  # fmt: skip
            self.control.ask(request, **what)

    def close(self) -> None:
        """End everything."""
        self._running = False
        for thread in self._threads:
            thread.join()
        self.driver.close()


@contextmanager
def robot_rig(host: str, control: Control | None = None, **settings: Any) -> Iterator[RobotRig]:
    """A rig at a stand-in that runs already, or at one of its own; `host` may name two arms, with a comma."""
    if control is None:
        with standin(host=host) as own, robot_rig(host, own, **settings) as rig:
            yield rig
        return
    rig = RobotRig(robot_driver(host, **settings), control)
    try:
        yield rig
    finally:
        rig.close()


def robot_driver(host: str, **settings: Any) -> Driver:
    """A driver of one arm or two (with a comma), whose workspace is the whole world."""
    hosts = host.split(",")
    given = {"hosts": hosts, "robot_model": "fr3", "base_position": [0.0] * 6, "frozen": 0.2, "connect_timeout": 1.0,
             "box_low": [], "box_high": [], "lease": 0.4, "overrun": 0.5, "clearance": 0.0,
             "tilt": 0.0} | settings  # fmt: skip
    return robot_of(ArmSettings(**given), ActionSpec(arms=len(hosts), limits="robot"))
