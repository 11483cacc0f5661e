"""Measuring rivals in turns of short slices, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SLICE = 0.25  # s of each rival in one turn
Work = Callable[[], int]  # does something, and says how many units of it
Finish = Callable[[], None]  # waits until the device has done what it was given


@dataclass
class Clock:
    """Units of work done (steps, pairs, chunks), and what they took."""

    units: int = 0
    wall: float = 0.0  # s
    cpu: float = 0.0  # s, of all threads of this process
    slices: list[float] = field(default_factory=list)  # units per wall second in each slice

    def run(self, work: Work, seconds: float, finish: Finish) -> None:
        """Do `work` for at least `seconds`, and at least once."""
        units, start, busy = 0, time.perf_counter(), time.process_time()
        while units == 0 or time.perf_counter() - start < seconds:
            units += work()
            finish()
        wall = time.perf_counter() - start
        self.units, self.wall, self.cpu = self.units + units, self.wall + wall, self.cpu + time.process_time() - busy
        self.slices.append(units / wall)

    def report(self) -> dict[str, Any]:
        """Rates for the JSON file."""
        return {
            "per_second": round(self.units / self.wall, 3),
            "median_slice_per_second": round(statistics.median(self.slices), 3),
            "best_slice_per_second": round(max(self.slices), 3),
            "per_cpu_second": round(self.units / self.cpu, 3),
            "units": self.units,
            "slices": len(self.slices),
        }


def take_turns(rivals: Mapping[str, Work], seconds: float, finish: Finish = lambda: None) -> dict[str, Clock]:
    """Every rival for about `seconds`, in interleaved slices; the first call of each warms it up and does not count.

    One whose single call takes longer than a slice has fewer turns.
    """
    for work in rivals.values():
        work()
    finish()
    clocks, turns = {name: Clock() for name in rivals}, max(1, round(seconds / SLICE))
    for _ in range(turns):
        for name, work in rivals.items():
            if clocks[name].wall < seconds:
                clocks[name].run(work, seconds / turns, finish)
    return clocks


def ratio(clocks: Mapping[str, Clock], rival: str, base: str) -> float:
    """How many times as long a unit of `rival` takes as one of `base`: the median over the turns that both had."""
    turns = zip(clocks[base].slices, clocks[rival].slices, strict=False)
    return statistics.median(before / after for before, after in turns)
