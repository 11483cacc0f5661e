"""`d2ppo bench sim`: how fast robosuite's tasks step here, stock, natively, and the physics alone."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from d2ppo_core.bench.machine import Parser, load, machine, write_report
from d2ppo_core.cli import Command
from d2ppo_core.errors import UserError
from d2ppo_core.machine import cores
from d2ppo_core.tasks import load_task, task_names

NAME = "bench-sim.json"
IMAGES_PER_SECOND = 2.5  # of the time asked for: 10 of each setting in a block by default
SHOWN = ("d2ppo", "robosuite", "mujoco", "numpy", "scipy")
ONE_THREAD = {  # name of the measurement or ratio -> heading
    "stock": "stock robosuite", "native": "native", "bare": "bare mj_step",
    "native_over_stock": "native / stock", "native_over_bare": "native / bare",
}  # fmt: skip
ALL_CORES = {
    "all_cores": "native", "bare_all_cores": "bare mj_step",
    "scaling": "native: all / 1", "bare_scaling": "bare: all / 1", "scaling_over_bare": "of the two",
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the benchmark, print the table, write the JSON."""
    options = _options(arguments)
    tasks = [load_task(name) for name in options.tasks]
    for task in tasks:
        if task.simulator == "toy":
            raise UserError(f"task '{task.name}' is not robosuite's; choose among {', '.join(_robosuite_tasks())}")
    from .bench_measure import measure
    from .image_bench import bench_images, image_tasks_of

    report: dict[str, Any] = {"machine": machine(SHOWN), "seconds": options.seconds, "tasks": {}, "images": {}}
    for task in tasks:
        print(f"measuring {task.name} ...", file=sys.stderr, flush=True)
        report["tasks"][task.name] = measure(task.environment, options.seconds, cores())
        for name in image_tasks_of(task.environment):
            report["images"][name] = bench_images(name, max(2, round(IMAGES_PER_SECOND * options.seconds)))
    report["machine"]["load_after"] = load()
    _print(report)
    write_report(report, options, NAME)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="d2ppo bench sim", description="Control steps per second of robosuite's tasks.")
    parser.add_argument("--tasks", nargs="+", default=_robosuite_tasks(), metavar="TASK", help="default: all four")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default 4)")
    parser.add_output(NAME)
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


def _image_table(report: dict[str, Any]) -> Table:
    """One row for each camera."""
    table = Table("task", "camera", "size", title="camera images: ms of CPU time each (in brackets: images per second)")
    for heading in ("ours", "robosuite's settings", "theirs / ours"):
        table.add_column(heading, justify="right")
    for task, cameras in report["images"].items():
        for row in cameras:
            kinds = [f"{row[kind]['cpu_ms']:.1f} ({row[kind]['per_second']:.0f})" for kind in ("ours", "stock")]
            ratio = row["stock"]["cpu_ms"] / row["ours"]["cpu_ms"]
            table.add_row(task, row["camera"], row["size"], *kinds, f"{ratio:.1f}")
    return table


def _rate_table(report: dict[str, Any], title: str, columns: dict[str, str]) -> Table:
    """One row for each task."""
    table = Table("task", title=title)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for name, row in report["tasks"].items():
        table.add_row(name, *(_cell(row, column) for column in columns))
    return table


def _cell(row: dict[str, Any], column: str) -> str:
    if column in row["ratios"]:
        return f"{row['ratios'][column]:.2f}"
    return f"{row[column]['per_second']:.0f} ({row[column]['per_cpu_second']:.0f})"


def _print(report: dict[str, Any]) -> None:
    about = report["machine"]
    console = Console(width=None if sys.stdout.isatty() else 140)
    rates = "control steps per second (in brackets: per second of CPU time)"
    console.print(_rate_table(report, f"one thread: {rates}", ONE_THREAD))
    console.print(_rate_table(report, f"{about['cores']} threads: {rates}", ALL_CORES))
    console.print(_image_table(report))
    console.print(
        f"{about['processor']}, {about['cores']} cores, load {about['load_before'][0]} before and "
        f"{about['load_after'][0]} after. Ratios of one thread are of CPU time, those of all cores of wall time, "
        "which others on the machine disturb."
    )


BENCH = Command("control steps per second of robosuite's tasks, stock and compiled", main)
