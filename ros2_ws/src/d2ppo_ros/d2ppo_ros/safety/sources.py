"""Everything the monitor listens to, and how old its last word may get."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import SECOND
from .checks import Finding, Freshness, above
from .settings import SafetySettings


class Sources:
    """Robot state, arms, cameras and commands: the stamp of the last message of each. Times in ns."""

    def __init__(self, settings: SafetySettings, arms: int) -> None:
        s = self.settings = settings
        robot = {"hold": s.state_hold, "stop": s.state_stop, "future": s.stamp_future}
        image = {"hold": s.image_hold, "stop": s.image_stop, "future": s.stamp_future}
        command = {"hold": s.command_hold, "stop": s.command_stop, "future": s.stamp_future}
        self.state = Freshness("state_age", "robot's state", **robot)
        self.arms = [Freshness("arm_age", f"joints of arm {i}", **robot) for i in range(arms)]
        self.cameras = {name: Freshness("image_age", f"camera {name}", **image) for name in s.cameras}
        self.command = Freshness("command_age", "executor's commands", **command)

    def forget(self) -> None:
        """As if nobody had spoken yet."""
        for source in (self.state, *self.arms, *self.cameras.values(), self.command):
            source.forget()

    def findings(self, now: int, resting: bool = False) -> list[Finding]:
        """Of every source that is needed or has spoken once. `resting`: nothing is armed, so a command may be late."""
        s = self.settings
        arms: Sequence[Freshness] = [arm for arm in self.arms if s.needs_arm or arm.stamp is not None]
        spoken = (self.state, *arms, *self.cameras.values())
        findings = [finding for source in spoken for finding in source.findings(now)]
        if not s.command_hold:  # lockstep: a command comes only when a state asks for it
            return findings
        if resting and self.command.stamp is not None:
            age = (now - self.command.stamp) / SECOND
            return findings + above("command_age", age, "age of the executor's commands in s", hold=s.command_disarm)
        return findings + self.command.findings(now)

    def skew(self) -> float:
        """s between the cameras' last frames."""
        stamps = [camera.stamp for camera in self.cameras.values() if camera.stamp is not None]
        return (max(stamps) - min(stamps)) / SECOND if stamps else 0.0
