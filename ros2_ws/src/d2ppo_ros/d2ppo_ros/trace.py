"""When what passed through a process, for measuring: kept in memory, written at the end, joined across processes.

On where the environment variable D2PPO_TRACE names a folder; else every call is a test of one flag. Times are
CLOCK_MONOTONIC, which all processes of one machine share. `key` is the stamp (ns) of the observation that a thing stems
from, or a command's sequence number.
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

FOLDER = "D2PPO_TRACE"
MOST = 2_000_000  # marks: an hour of everything at 100 Hz


class Trace:
    """Marks of one node."""

    def __init__(self, node: str) -> None:
        folder = os.environ.get(FOLDER, "")
        self._path = Path(folder) / f"{node}-{os.getpid()}.csv" if folder else None
        self._marks: list[tuple[str, int, int]] = []

    def mark(self, event: str, key: int) -> None:
        """Note that `event` happened now."""
        if self._path is not None and len(self._marks) < MOST:
            self._marks.append((event, key, time.monotonic_ns()))

    def write(self) -> None:
        """Write all marks: event, key, time in ns."""
        if self._path is not None:
            with open(self._path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._marks)
