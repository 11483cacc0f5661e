"""What is looked at over a whole trial: news from the policy, age of what it saw, duration, and path."""

from __future__ import annotations

from ..records import SECOND, Command, Kind
from .checks import Finding, Freshness, Reaction, above
from .settings import SafetySettings

MOTION = (Kind.DELTA, Kind.POSE)


class TrialGuard:
    """The trial that the commands belong to; an empty name is none."""

    def __init__(self, settings: SafetySettings) -> None:
        self.settings = settings
        self.start("", 0)

    def start(self, trial: str, now: int) -> None:
        """A new trial, or the same one armed anew."""
        self.trial, self.started, self._news = trial, now, now
        self._behind = 0  # ns, age of the observation behind the last motion

    def update(self, command: Command, now: int) -> bool:
        """Take a command; True when it begins another trial."""
        new = command.trial != self.trial
        if new:
            self.start(command.trial, now)
        if command.kind in MOTION:
            self._news = now
            self._behind = command.stamp - command.observation if command.observation else 0
        return new

    def findings(self, now: int, path: float) -> list[Finding]:
        """`path`: m that the arm which went furthest has moved in this trial."""
        s = self.settings
        if not self.trial:
            return []
        return [
            *above("starved", (now - self._news) / SECOND, "no new motion for s", stop=s.starved_stop),
            *above("observation_age", self._behind / SECOND, "age in s of what the policy saw",
                   stop=s.observation_stop),
            *above("duration", (now - self.started) / SECOND, "the trial lasts s", stop=s.max_duration),
            *above("path", path, "way of the arm in m", stop=s.max_path),
        ]  # fmt: skip


class Operator:
    """The dead-man's switch, where one is used: pressed and alive, or the arm is held and then stopped."""

    def __init__(self, settings: SafetySettings) -> None:
        self._age = Freshness("operator", "operator's heartbeat", hold=0.0, stop=settings.operator_stop, future=0.0)
        self.used = settings.operator_stop > 0
        self._released: int | None = None  # since when

    def update(self, pressed: bool, now: int) -> None:
        """One heartbeat, by its arrival."""
        self._age.accept(now, now)
        if pressed:
            self._released = None
        elif self._released is None:
            self._released = now

    def findings(self, now: int) -> list[Finding]:
        """Released: held at once, stopped after the same time as a silent one."""
        if not self.used:
            return []
        if self._released is None:
            return self._age.findings(now)
        released = (now - self._released) / SECOND
        late = above("operator", released, "the operator's switch is released for s", stop=self._age.stop)
        return late or [Finding("operator", Reaction.HOLD, "the operator's switch is released")]
