"""The whole graph in its own processes for some minutes, watched from outside."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2ppo_core.errors import UserError

from .. import graph
from ..alone import require_alone
from ..trace import FOLDER
from ..up import Supervisor

START = 180.0  # s until the first trial must be over
LOOK = 0.2  # s between two looks at the processes
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Watched:
    """What was seen from outside, from the end of the first trial on."""

    begin: int = 0  # ns of CLOCK_MONOTONIC; 0: no trial was ever over
    end: int = 0
    cpu: dict[str, float] = field(default_factory=dict)  # by process: share of one core
    others: float = 0.0  # cores that everything else on this machine took
    trials: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""  # why it did not last as long as asked for


def watch(system: graph.System, traces: Path, outcome: Path, seconds: float) -> Watched:
    """Bring the system up, let it run for `seconds` after its first trial, stop it in order.

    Args:
        traces: folder that the nodes write their marks to. outcome: file that the trials' node writes.
    """
    require_alone(system)
    traces.mkdir(parents=True, exist_ok=True)
    environment = {**system.environment, FOLDER: str(traces.absolute())}
    supervisor, seen = Supervisor(system.processes, system.files, environment), Watched()
    over = threading.Event()
    thread = threading.Thread(target=_look_on, args=(supervisor, seen, outcome, seconds, over), daemon=True)
    thread.start()
    try:
        code = supervisor.run()
    finally:
        over.set()
        thread.join()
    if not seen.begin:
        raise UserError(f"no trial came to its end (exit code {code}); what the nodes printed says why")
    first, *seen.trials = json.loads(outcome.read_text())["trials"]
    if seen.problem:
        seen.problem += f"; the last trial ended with: {(seen.trials or [first])[-1]['reason']}"
    return seen


def _look_on(supervisor: Supervisor, seen: Watched, outcome: Path, seconds: float, over: threading.Event) -> None:
    """In a thread of its own; ends the run, unless it is `over` before."""
    try:
        deadline = time.monotonic() + START
        while not (outcome.exists() or over.wait(LOOK)) and time.monotonic() < deadline:
            pass
        if outcome.exists():
            processes = {name: process.pid for name, process in list(supervisor.running.items())}
            _measure(processes, seen, seconds, over)
    finally:
        supervisor.end()


def _measure(processes: dict[str, int], seen: Watched, seconds: float, over: threading.Event) -> None:
    """Look once a second: what has ended by itself can no longer be asked."""
    before, busy, seen.begin = _cpu(processes), _busy(), time.monotonic_ns()
    took = 0.0
    while took < seconds and not over.wait(min(1.0, seconds - took)):
        used, seen.end = _cpu(processes), time.monotonic_ns()
        took = (seen.end - seen.begin) / 1e9
        seen.cpu |= {name: (cpu - before[name]) / took for name, cpu in used.items()}
        seen.others = max(0.0, (_busy() - busy) / took - sum(seen.cpu.values()))
    if took < seconds:
        seen.problem = f"it ended after {took:.0f} s instead of {seconds:.0f} s"


def _cpu(processes: dict[str, int]) -> dict[str, float]:
    """Seconds of CPU time that each has used; one that has ended is left out."""
    found = {}
    for name, pid in processes.items():
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[name] = (int(fields[11]) + int(fields[12])) / TICKS  # utime, stime
    return found


def _busy() -> float:
    """Seconds of CPU time that all cores together have worked."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft) / TICKS
