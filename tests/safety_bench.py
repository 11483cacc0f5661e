"""A safety monitor on a bench: everything around it alive at its own rate, in a time that the test steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import ActionSpec
from d2ppo_ros.records import SECOND, ArmState, Command, Kind, RobotState, Target
from d2ppo_ros.safety.cameras import ImageFacts
from d2ppo_ros.safety.kinematics import forward
from d2ppo_ros.safety.monitor import SafetyMonitor
from d2ppo_ros.safety.settings import SafetySettings, SimSettings

HOME = np.array([0.0, -np.pi / 4, 0.0, -3 * np.pi / 4, 0.0, np.pi / 2, np.pi / 4])  # rad, tool straight down
TICK = 10_000_000  # ns
MS = 1_000_000  # ns
SMALL = np.array([0.1, 0, 0, 0, 0, 0, -1.0])  # 5 mm, gripper open


def arm_state(stamp: int = 0, q: np.ndarray = HOME, **changes) -> ArmState:
    """An arm at rest at `q`, measured without error."""
    position, rotation, _ = forward(q, 0.2104)
    return replace(ArmState(stamp, q, np.zeros(7), position, rotation), **changes)


def delta(stamp: int, action: np.ndarray = SMALL, **changes) -> Command:
    """A raw action."""
    return Command(stamp, changes.pop("trial", "t"), changes.pop("sequence", 0), Kind.DELTA, action=action, **changes)


def pose(stamp: int, position: np.ndarray, rotation: np.ndarray, **changes) -> Command:
    """An absolute target of one arm; `velocity`, `acceleration` and `gripper` are its own."""
    target = Target(
        position, Rotation.from_matrix(rotation).as_quat(), changes.pop("velocity", np.zeros(6)),
        changes.pop("acceleration", np.zeros(6)), changes.pop("gripper", -1.0),
    )  # fmt: skip
    return Command(stamp, "t", 0, Kind.POSE, targets=(target,), **changes)


class Bench:
    """State and arm at every tick, a frame of each camera at every third, a command at every tick."""

    def __init__(self, settings: SafetySettings, spec: ActionSpec | None = None, start: int = SECOND) -> None:
        self.spec = spec or ActionSpec()
        self.monitor = SafetyMonitor(settings, self.spec, start)
        self.now, self.steady, self.count = start, start, 0
        self.silent: set[str] = set()  # of "state", "arm", "command", and cameras
        self.arm_changes: dict = {}  # of the measured arm
        self.facts: dict = {}  # of the frames
        self.sent: list[tuple[int, Command]] = []  # what the robot got, and when

    def command(self, kind: Kind, **changes) -> Command:
        """Of the executor, now."""
        return Command(self.now, changes.pop("trial", "t"), self.count, kind, **changes)

    def usual(self) -> Command:
        """A delta every 50 ms, KEEP between: what the executor sends."""
        return delta(self.now, sequence=self.count) if self.count % 5 == 0 else self.command(Kind.KEEP)

    def step(self, command: Callable[[], Command] | Command | None = None) -> None:
        """One tick of 10 ms, with the usual command or another."""
        self.now, self.steady, self.count = self.now + TICK, self.steady + TICK, self.count + 1
        self.measure()
        if "command" not in self.silent:
            made = self.usual() if command is None else command() if callable(command) else command
            self.sent.append((self.now, self.monitor.on_command(made, self.now)))
        self.tick()

    def measure(self) -> None:
        """What sensors say."""
        if "state" not in self.silent:
            self.monitor.on_state(RobotState(self.now, "t", self.count, {"robot0_eef_pos": np.zeros(3)}), self.now)
        if "arm" not in self.silent:
            for arm in range(self.spec.arms):
                self.monitor.on_arm(arm_state(self.now, **self.arm_changes), self.now, arm)
        for camera in self.monitor.cameras:
            if camera not in self.silent and self.count % 3 == 0:
                facts = ImageFacts(camera, self.now, self.count, 0.0, 0.0, (84, 84, 3))
                self.monitor.on_image(replace(facts, **self.facts), self.now)

    def tick(self) -> None:
        """Only the monitor's own."""
        answer = self.monitor.tick(self.now, self.steady)
        if answer is not None:
            self.sent.append((self.now, answer))

    def run(self, seconds: float, command: Callable[[], Command] | None = None) -> None:
        """Many ticks."""
        for _ in range(round(seconds * SECOND / TICK)):
            self.step(command)

    def armed(self) -> Bench:
        """Ready, armed, and moving."""
        self.run(0.1)
        done, text = self.monitor.arm(self.now)
        assert done, text
        self.run(0.1)
        assert self.monitor.state.name == "ARMED", self.monitor.report(self.now)
        self.sent.clear()
        return self

    def until(self, kind: Kind, seconds: float = 3.0, command: Callable[[], Command] | None = None) -> float:
        """Seconds from now until the robot first gets a command of this kind; inf if it does not."""
        start, self.sent = self.now, []
        for _ in range(round(seconds * SECOND / TICK)):
            self.step(command)
            for when, sent in self.sent:
                if sent.kind is kind:
                    return (when - start) / SECOND
        return float("inf")


ROBOT = SafetySettings(cameras=["front", "wrist"])
SIM = SimSettings(cameras=["front"])
NOT_A_NUMBER = np.full(7, np.nan)


def state_of(bench: Bench) -> tuple[str, str]:
    report = bench.monitor.report(bench.now)
    return report.state.name, report.check


def quiet(*sources: str) -> Callable[[Bench], None]:
    return lambda bench: setattr(bench, "silent", set(sources))


def measured(**changes) -> Callable[[Bench], None]:
    return lambda bench: setattr(bench, "arm_changes", changes)


def frames(**changes) -> Callable[[Bench], None]:
    return lambda bench: setattr(bench, "facts", changes)
