"""When what passed through a process, for measuring: kept in memory, written at the end, joined across processes.

On where the environment variable D2PPO_TRACE names a folder; else every call is a test of one flag. Times are
CLOCK_MONOTONIC, which all processes of one machine share. Who sends marks before it does, who hears when it has the
message: so times add up, and encoding, transport and decoding lie between two marks.

| node | event | key | of |
|---|---|---|---|
| sim | image, state: sent | stamp | |
| camera | heard, sent | stamp | |
| policy | state, image CAMERA: heard | stamp | |
| policy | request: heard; inference: begins; chunk: sent | stamp of the request | |
| executor | request: sent; chunk: heard | stamp of the request | |
| executor | command: sent | sequence | stamp of its chunk |
| executor | step: of the command | step | stamp of its chunk |
| safety | heard, sent | sequence | |
| sim | command: heard, applied | sequence | |
| executor, safety, sim | tick: of their loop | how late, ns | |
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
        self._marks: list[tuple[str, int, int, int]] = []

    def mark(self, event: str, key: int, of: int = 0) -> None:
        """Note that `event` happened now. `key` says to what, `of` what that stems from."""
        if self._path is not None and len(self._marks) < MOST:
            self._marks.append((event, key, of, time.monotonic_ns()))

    def write(self) -> None:
        """Write all marks: event, key, of, time in ns."""
        if self._path is not None:
            with open(self._path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._marks)
