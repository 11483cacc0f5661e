"""Progress of long work: a live bar in a terminal, a line at each tenth elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar:
    """`with ProgressBar("pre-training", 3000) as bar: bar.advance(1, "loss 0.12")`. Writes to stderr."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._tenth, self._started = 10 * done // max(total, 1), time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` shows the latest figures."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, **({"note": note} if note else {}))
        elif (tenth := 10 * self.done // max(self.total, 1)) > self._tenth:
            self._tenth = tenth
            seconds = time.monotonic() - self._started
            print(f"{self.label}: {self.done}/{self.total} after {seconds:.0f} s {note}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"warning: {text}")
        else:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
