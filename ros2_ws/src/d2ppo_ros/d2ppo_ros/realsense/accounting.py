"""Which frames are new, and how many were lost: by the number that the camera gives each frame, never by its pixels."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

RESTARTED = 300  # frames: a number so far behind the newest means that the camera counts from the beginning again
WINDOW = 10_000_000_000  # ns: over which rates are stated


@dataclass(frozen=True)
class Rates:
    """Of the last seconds."""

    frames: float  # passed on, 1/s
    dropped: float  # share of the frames that the camera took and that did not come, from 0 to 1


class FrameAccount:
    """One camera's frames. Numbers count up by one a frame; a gap is frames lost, one that came before is refused.
    Any thread may ask for the rates.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.passed = self.dropped = self.repeated = 0
        self.newest: int | None = None
        self._recent: deque[tuple[int, int]] = deque()  # (ns, frames lost just before), of frames passed on
        self._begin: int | None = None  # ns of the first look

    def restart(self) -> None:
        """The camera was opened anew: its numbers begin anywhere, and nobody knows what was lost meanwhile."""
        self.newest = None

    def take(self, number: int, now: int) -> bool:
        """Whether the frame is new; `now` in ns on any steady clock."""
        self._begin = now if self._begin is None else self._begin
        lost = 0
        if self.newest is not None and number > self.newest - RESTARTED:
            if number <= self.newest:
                self.repeated += 1
                return False
            lost = number - self.newest - 1
        self.newest = number
        self.passed += 1
        self.dropped += lost
        with self._lock:
            self._recent.append((now, lost))
        return True

    def rates(self, now: int) -> Rates:
        """Over the last `WINDOW`, or since the first frame where that is less."""
        with self._lock:
            while self._recent and now - self._recent[0][0] > WINDOW:
                self._recent.popleft()
            passed, lost = len(self._recent), sum(lost for _, lost in self._recent)
        if self._begin is None or now <= self._begin:
            return Rates(0.0, 0.0)
        seconds = min(WINDOW, now - self._begin) / 1e9
        return Rates(passed / seconds, lost / max(1, lost + passed))


class Arrivals:
    """How many pictures were lost on their way. They and what their sender says of each come on two topics, in any
    order. One that is announced and overtaken by a newer picture is lost.
    """

    KEPT = 100

    def __init__(self) -> None:
        self.lost = 0
        self._announced: deque[int] = deque(maxlen=self.KEPT)  # ns, stamps without their picture so far
        self._ahead: deque[int] = deque(maxlen=self.KEPT)  # stamps of pictures without their announcement so far
        self._newest = 0  # stamp of the newest picture

    def announced(self, stamp: int) -> None:
        """The sender says that it has sent the picture of this time."""
        if stamp in self._ahead:
            self._ahead.remove(stamp)
        elif stamp < self._newest:
            self.lost += 1
        else:
            self._announced.append(stamp)

    def came(self, stamp: int) -> None:
        """A picture has come."""
        self._newest = stamp
        while self._announced and self._announced[0] < stamp:
            self._announced.popleft()
            self.lost += 1
        if self._announced and self._announced[0] == stamp:
            self._announced.popleft()
        else:
            self._ahead.append(stamp)
