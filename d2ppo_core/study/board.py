"""The table of progress: live in a terminal, a line for each finished run elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .runner import Progress
from .store import Store

REFRESH = 1.0  # s


class Board:
    """Follows a runner's progress."""

    def __init__(self, store: Store, progress: Progress, budget: float | None) -> None:
        self.store, self.progress, self.budget = store, progress, budget
        self._said, self._last = {(r["run"], r["policy"]) for r in store.rows()}, 0.0

    def follow(self, looks: Iterable[None]) -> None:
        """Show what happens until it is over. The live table is drawn from this thread: processes are started in it."""
        if not sys.stderr.isatty():
            for _ in looks:
                self._say()
            self._say(force=True)
            return
        with Live(self.table(), console=Console(stderr=True), auto_refresh=False) as live:
            for _ in looks:
                if time.monotonic() - self._last > REFRESH:
                    self._last = time.monotonic()
                    live.update(self.table(), refresh=True)
            live.update(self.table(), refresh=True)

    def _say(self, force: bool = False) -> None:
        if not force and time.monotonic() - self._last < REFRESH:
            return
        self._last = time.monotonic()
        for row in self.store.rows():
            if (row["run"], row["policy"]) not in self._said:
                self._said.add((row["run"], row["policy"]))
                print(sentence(row), file=sys.stderr, flush=True)

    def table(self) -> Table:
        """A row for each task and cell: how many runs are there, and what they gave so far."""
        rows, busy = self.store.rows(), {job.owner for job in self.progress.active}
        cpu = self.store.cost()[0] / 3600
        title = f"{cpu:.2f} CPU hours" + (f" of {self.budget / 3600:g}" if self.budget else "")
        table = Table(title=title + (", budget spent: no further run is started" if self.progress.over_budget else ""))
        for name in ("task", "cell", "done", "running", "failed", "pre-trained", "fine-tuned"):
            table.add_column(name, justify="left" if name in ("task", "cell") else "right")
        for task, cell in dict.fromkeys((run.task, run.cell.name) for run in self.progress.runs):
            names = [r.name for r in self.progress.runs if (r.task, r.cell.name) == (task, cell)]
            own = [row for row in rows if row["run"] in names]
            bad = {row["run"] for row in own if row["status"] == "failed"}
            done = {row["run"] for row in own} - bad
            rates = [_rate([r for r in own if r["policy"] == policy]) for policy in ("pretrained", "finetuned")]
            counts = (f"{len(done)}/{len(names)}", str(len(busy & set(names)) or ""), str(len(bad) or ""))
            table.add_row(task, cell, *counts, *rates)
        for owner in sorted(busy):
            if owner.startswith("demos/"):
                table.add_row(owner, "", "", "1", "", "", "")
        return table


def _rate(rows: list[dict[str, Any]]) -> str:
    good = [row for row in rows if row["status"] == "ok"]
    episodes = sum(row["episodes"] for row in good)
    return f"{sum(row['successes'] for row in good)}/{episodes}" if episodes else ""


def sentence(row: dict[str, Any]) -> str:
    """One result in a line."""
    if row["status"] == "failed":
        return f"{row['run']} ({row['policy']}): FAILED, {row['reason']}"
    return f"{row['run']} ({row['policy']}): {row['successes']}/{row['episodes']} episodes succeeded"
