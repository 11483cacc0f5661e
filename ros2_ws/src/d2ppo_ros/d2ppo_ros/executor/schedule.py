"""Action chunks on the time line. Times are int ns; letters as in `records.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..records import Chunk


@dataclass(frozen=True)
class Slot:
    """One chunk on the time line: its steps [begin, end) are executed, step i from `due(i)` to `due(i + 1)`."""

    chunk: Chunk
    first: int  # when step 0 is (or was) due
    begin: int
    end: int

    def due(self, step: int) -> int:
        """When `step` begins."""
        return self.first + step * self.chunk.step

    @property
    def until(self) -> int:
        """When its last step is over."""
        return self.due(self.end)

    def at(self, time: int) -> int | None:
        """The step that runs at `time`; None before the first and after the last."""
        step = (time - self.first) // self.chunk.step
        return step if self.begin <= step < self.end else None


class Schedule:
    """The chunks that still have something to say, oldest first."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []

    def add(self, chunk: Chunk, first: int, now: int, end: int) -> int:
        """Put the steps [0, end) of `chunk` on the time line from `first` on, but not those due before `now`.

        Returns how many came too late.
        """
        late = min(end, max(0, -((first - now) // chunk.step)))  # ceil((now - first) / step)
        if late < end:
            self.slots.append(Slot(chunk, first, late, end))
        return late

    def trim(self, time: int) -> None:
        """Forget the chunks whose last step is over at `time`."""
        self.slots = [slot for slot in self.slots if slot.until > time]

    def at(self, time: int) -> list[tuple[Slot, int]]:
        """Every chunk that has a step for `time`, with that step; oldest chunk first."""
        return [(slot, step) for slot in self.slots if (step := slot.at(time)) is not None]

    def rest(self, time: int) -> np.ndarray | None:
        """(n, Da) raw actions of the newest chunk from `time` on; None where it has no step for `time`."""
        found = self.at(time)
        if not found:
            return None
        slot, step = found[-1]
        return slot.chunk.actions[step : slot.end]

    def clear(self) -> None:
        """Forget everything."""
        self.slots = []
