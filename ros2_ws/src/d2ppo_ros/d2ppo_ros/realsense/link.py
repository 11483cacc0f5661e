"""What to do next with one camera: open it, read it, give it up and open it anew. No threads, no library: decisions.

Silence first makes the camera stale, which is said; then it is stopped and opened anew. Nothing is passed on meanwhile:
no frame is better than the last one again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

SECOND = 1_000_000_000  # ns


class Act(Enum):
    """What the camera's thread does next."""

    OPEN = "open"
    READ = "read"
    STOP = "stop"  # then it is opened anew
    RESET = "reset"  # the hardware, before it is opened
    WAIT = "wait"


@dataclass(frozen=True)
class Patience:
    """How long each silence is borne. Times in ns."""

    misses: int = 3  # waits in a row without a frame until the camera is stale
    rebuild: int = SECOND  # silence until it is opened anew
    first: int = 5 * SECOND  # silence after opening: a camera's first frame takes a second or two
    again: int = SECOND  # between two tries to open


class Link:
    """One camera's state. `on_...` says what has happened, at a time (ns) of a steady clock; `next`, what to do."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.open = self.stale = False
        self.misses = 0  # in a row
        self.rebuilds = 0  # how often it was opened anew
        self.stuck = 0  # how often a stop did not return
        self.resets = 0
        self._since = 0  # of the silence: the last frame, or the opening
        self._seen = self._ever = False  # frames since the opening; ever
        self._fruitless = 0  # openings in a row without a frame
        self._reset = False  # this silence has had its reset
        self._not_before = 0

    @property
    def phase(self) -> str:
        """In a word, for people."""
        if not self.open:
            return "closed"
        return "stale" if self.stale else "live" if self._seen else "opened"

    def next(self, now: int) -> Act:
        """What to do at `now`."""
        if self.open:
            limit = self._patience.rebuild if self._seen else self._patience.first
            return Act.STOP if now - self._since >= limit else Act.READ
        if now < self._not_before:
            return Act.WAIT
        return Act.RESET if self._fruitless and not self._reset else Act.OPEN

    def on_open(self, done: bool, now: int) -> None:
        """It was opened, or that failed."""
        self.open, self._seen, self.misses, self._since = done, False, 0, now
        self._not_before = now + self._patience.again
        if not done:
            self._fruitless += 1
        elif self._ever:
            self.rebuilds += 1

    def on_reset(self, now: int) -> None:
        """The hardware was told to start anew: once in a silence, then it needs a moment to come back."""
        self._reset, self._not_before = True, now + 3 * self._patience.again
        self.resets += 1

    def on_frame(self, now: int) -> None:
        """A frame has come."""
        self._seen = self._ever = True
        self.stale = self._reset = False
        self.misses = self._fruitless = 0
        self._since = now

    def on_miss(self, now: int) -> None:
        """A wait has brought no frame."""
        self.misses += 1
        self.stale = self.stale or self.misses >= self._patience.misses

    def on_lost(self, now: int) -> None:
        """The library says that the camera is gone: no need to wait any longer."""
        self.misses, self.stale = self.misses + 1, True
        self._since = min(self._since, now - max(self._patience.rebuild, self._patience.first))

    def on_stop(self, done: bool, now: int) -> None:
        """It was stopped; one whose stop does not return is left to itself, and never used again."""
        self.stuck += not done
        self._fruitless += not self._seen
        self.open, self.stale = False, True
        self._not_before = now
