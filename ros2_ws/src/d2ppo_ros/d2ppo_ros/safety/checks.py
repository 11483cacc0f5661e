"""What every check says, and the checks of ages and clocks. A limit of 0 means that the check is off."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from ..records import SECOND

MILLISECOND = SECOND // 1000


class Reaction(IntEnum):
    """What follows from a finding; the strongest wins."""

    WARN = 0  # said, nothing else
    CLIP = 1  # the command goes on, changed
    HOLD = 2  # the arm is held while it lasts
    STOP = 3  # latched: only a person re-arms


@dataclass(frozen=True)
class Finding:
    """One check that speaks up."""

    check: str
    reaction: Reaction
    text: str
    value: float = 0.0
    limit: float = 0.0


def ns(seconds: float) -> int:
    """Seconds as int nanoseconds."""
    return round(seconds * SECOND)


def worst(findings: Iterable[Finding]) -> Finding | None:
    """The strongest; of several equally strong the first."""
    return max(findings, key=lambda finding: finding.reaction, default=None)


def above(check: str, value: float, what: str, *, hold: float = 0.0, stop: float = 0.0) -> list[Finding]:
    """At most one finding: `value` over `stop`, or else over `hold`. What is not a number is over every limit."""
    for limit, reaction in ((stop, Reaction.STOP), (hold, Reaction.HOLD)):
        if limit > 0 and not value <= limit:
            return [Finding(check, reaction, f"{what}: {value:.4g}, limit {limit:.4g}", value, limit)]
    return []


class Freshness:
    """When a source last spoke, by the stamps of its messages. Times in ns, limits in s."""

    def __init__(self, check: str, name: str, *, hold: float, stop: float, future: float) -> None:
        self.check, self.name = check, name
        self.hold, self.stop, self.future = hold, stop, ns(future)
        self.stamp: int | None = None  # of the last message that was taken

    def accept(self, stamp: int, now: int) -> str:
        """Take a message; or the reason why it is to be dropped: "future" or "back"."""
        if self.future > 0 and stamp > now + self.future:
            return "future"
        if self.stamp is not None and stamp < self.stamp:
            return "back"
        self.stamp = stamp
        return ""

    def forget(self) -> None:
        """As if it had never spoken."""
        self.stamp = None

    def findings(self, now: int) -> list[Finding]:
        """Missing (a hold), or too old."""
        if self.stamp is None:
            return [Finding(self.check, Reaction.HOLD, f"nothing came from the {self.name} yet")]
        age = (now - self.stamp) / SECOND
        return above(self.check, age, f"age of the {self.name} in s", hold=self.hold, stop=self.stop)


class Clock:
    """The ROS clock against the steady one, from tick to tick: jumps, and ticks that came late."""

    def __init__(self, *, jump: float, warn: float, stop: float) -> None:
        self.jump, self.warn, self.stop = jump, warn, stop
        self._last: tuple[int, int] | None = None  # (ROS, steady) of the last tick

    def tick(self, now: int, monotonic: int) -> list[Finding]:
        """What is wrong with this tick. Check `clock` means that stamps from before it say nothing any more."""
        last, self._last = self._last, (now, monotonic)
        if last is None:
            return []
        gap = (monotonic - last[1]) / SECOND
        apart = abs(now - last[0] - (monotonic - last[1])) / SECOND
        findings = above("clock", apart, "the clock jumped by s", stop=self.jump)
        findings += above("tick", gap, "the monitor slept for s", stop=self.stop)
        if not findings and self.warn and gap > self.warn:
            findings = [Finding("tick", Reaction.WARN, f"the monitor slept for {gap:.3f} s", gap, self.warn)]
        return findings


class Lasting:
    """For how long something has been so."""

    def __init__(self) -> None:
        self._since: int | None = None

    def update(self, so: bool, now: int) -> float:
        """Seconds for which `so` has held without a break; 0 when it does not hold."""
        if not so:
            self._since = None
            return 0.0
        self._since = now if self._since is None else self._since
        return (now - self._since) / SECOND


class Share:
    """The share of events within the last second for which something was so."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, bool]] = deque()

    def add(self, so: bool, now: int) -> None:
        """Count one event."""
        self._events.append((now, so))
        self.trim(now)

    def trim(self, now: int) -> None:
        """Forget what is older than a second."""
        while self._events and self._events[0][0] <= now - SECOND:
            self._events.popleft()

    def value(self, now: int, least: int = 5) -> float:
        """0 while there are fewer than `least` events: a few say nothing."""
        self.trim(now)
        return sum(so for _, so in self._events) / len(self._events) if len(self._events) >= least else 0.0
