"""`d2ppo bench sim`: how fast robosuite's tasks step here, stock, natively, and the physics alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from d2ppo_core.bench.machine import Parser, load, machine
from d2ppo_core.cli import Command
from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json
from d2ppo_core.machine import cores
from d2ppo_core.tasks import load_task, task_names

SHOWN = ("d2ppo", "robosuite", "mujoco", "numpy", "scipy")
COLUMNS = {  # name of the measurement -> heading
    "stock": "stock robosuite", "native": "native, 1 thread", "all_cores": "native, {cores} threads",
    "bare": "bare mj_step",
}
RATIOS = {"native_over_stock": "native / stock", "native_over_bare": "native / bare", "scaling": "all / 1 thread"}


def main(arguments: list[str]) -> int:
    """Run the benchmark, print the table, write the JSON."""
    options = _options(arguments)
    tasks = [load_task(name) for name in options.tasks]
    for task in tasks:
        if task.simulator == "toy":
            raise UserError(f"task '{task.name}' is not robosuite's; choose among {', '.join(_robosuite_tasks())}")
    from .bench_measure import measure

    report: dict[str, Any] = {"machine": machine(SHOWN), "seconds": options.seconds, "tasks": {}}
    for task in tasks:
        print(f"measuring {task.name} ...", file=sys.stderr, flush=True)
        report["tasks"][task.name] = measure(task.environment, options.seconds, cores())
    report["machine"]["load_after"] = load()
    _print(report)
    out = options.json or (Path(options.run_dir) / "bench-sim.json" if options.run_dir else None)
    if out:
        write_json(out, report)
        print(Path(out).absolute())
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="d2ppo bench sim", description="Control steps per second of robosuite's tasks.")
    parser.add_argument("--tasks", nargs="+", default=_robosuite_tasks(), metavar="TASK", help="default: all four")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default 4)")
    parser.add_argument("--json", metavar="OUT", help="write the numbers to this file")
    parser.add_argument("--run-dir", metavar="DIR", help="write them to DIR/bench-sim.json")
    options = parser.parse_args(arguments)
    if not 0.1 <= options.seconds <= 3600:
        raise UserError(f"--seconds is {options.seconds}; give 0.1 to 3600")
    return options


def _robosuite_tasks() -> list[str]:
    """One task of each of robosuite's environments."""
    found: dict[str, str] = {}
    for name in task_names():
        task = load_task(name)
        if task.simulator != "toy":
            found.setdefault(task.environment, name)
    return list(found.values())


def _print(report: dict[str, Any]) -> None:
    about = report["machine"]
    table = Table("task", title="control steps per second (in brackets: per second of CPU time)")
    for heading in COLUMNS.values():
        table.add_column(heading.format(cores=about["cores"]), justify="right")
    for heading in RATIOS.values():
        table.add_column(heading, justify="right")
    for name, row in report["tasks"].items():
        rates = [f"{row[c]['per_second']:.0f} ({row[c]['per_cpu_second']:.0f})" for c in COLUMNS]
        table.add_row(name, *rates, *(f"{row['ratios'][r]:.2f}" for r in RATIOS))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(
        f"{about['processor']}, {about['cores']} cores, load {about['load_before'][0]} before and "
        f"{about['load_after'][0]} after. The first two ratios are of CPU time, the third of wall time, "
        "which others on the machine disturb."
    )


BENCH = Command("control steps per second of robosuite's tasks, stock and compiled", main)
