"""`d2ppo bench chunks`: what each way of executing chunks does where they meet, and the success that it keeps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from d2ppo_core.bench.machine import Parser, load, machine, write_report
from d2ppo_core.cli import Command
from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256
from d2ppo_core.progress import ProgressBar
from d2ppo_core.statistics import wilson

from ..executor.settings import MODES, ExecutorSettings
from .borders import QUANTITIES, changes, largest, windows

NAME = "bench-chunks.json"
SHOWN = ("d2ppo", "torch", "numpy", "mujoco", "robosuite")


def main(arguments: list[str]) -> int:
    """Run every mode at every latency, print the tables, write the JSON and the figure."""
    options = _options(arguments)
    from ..nodes.sim_loop import SimLoop  # needs the simulator

    loop, seeds = SimLoop(options.checkpoint), range(options.first_seed, options.first_seed + options.episodes)
    report: dict[str, Any] = {
        "machine": machine(SHOWN), "checkpoint": sha256(options.checkpoint), "task": loop.spec.task,
        "horizon": loop.spec.horizon, "executed": loop.spec.executed, "first_seed": options.first_seed,
        "episodes": options.episodes, "rows": [],
    }  # fmt: skip
    runs = [(mode, latency) for mode in options.modes for latency in options.latency]
    try:
        with ProgressBar("trials", len(runs) * len(seeds)) as bar:
            for mode, latency in runs:
                report["rows"].append(_measure(loop, mode, latency, seeds, bar))
    finally:
        loop.close()
    report["machine"]["load_after"] = load()
    show(report)
    write_report(report, options, NAME)
    draw_where_asked(report, options)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="d2ppo bench chunks", description="Chunk borders and success of the executor's modes, in "
                    "the simulator, with an assumed inference latency.")  # fmt: skip
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a policy with horizon > executed steps")
    parser.add_argument("--episodes", type=int, default=50, help="of each mode and latency (default 50)")
    parser.add_argument("--first-seed", type=int, default=100000, help="of the episodes (default 100000)")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 0.05, 0.15], help="s (default 0 0.05 0.15)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all four")
    parser.add_argument("--plot", metavar="PNG", help="draw a figure into this file")
    parser.add_output(NAME)
    options = parser.parse_args(arguments)
    if not Path(options.checkpoint).is_file():
        raise UserError(f"--checkpoint {options.checkpoint}: there is no such file")
    if not 1 <= options.episodes <= 100_000 or not 0 <= options.first_seed < 2**31:
        raise UserError(f"--episodes is {options.episodes}, --first-seed {options.first_seed}; both must be positive")
    return options


def _measure(loop: Any, mode: str, latency: float, seeds: Sequence[int], bar: ProgressBar) -> dict[str, Any]:
    """All episodes of one mode at one latency."""
    settings = ExecutorSettings(mode=mode, lockstep=True, lockstep_latency=latency, gripper_dwell=0.0)
    trials = []
    for seed in seeds:
        trials.append(loop.run(settings, seed))
        bar.advance(1, f"{mode} {latency:g} s: {sum(t.success for t in trials)}/{len(trials)}")
    return {"mode": mode, "latency": latency, **summary(trials, loop.step / 1e9)}


def summary(trials: Sequence[Any], dt: float) -> dict[str, Any]:
    """Of `sim_loop.Trial`s with control steps of `dt` s: success, counts, and the changes at borders and inside."""
    pooled: dict[str, dict[str, list[float]]] = {name: {"inside": [], "border": []} for name in QUANTITIES}
    for trial in trials:
        borders, inside = windows(trial.chunk)
        for name, series in changes(trial.goal, trial.reference, trial.measured, dt).items():
            pooled[name]["border"] += largest(series, borders)
            pooled[name]["inside"] += largest(series, inside)
    counts = {name: sum(getattr(t.counts, name) for t in trials) for name in ("answers", "late", "starved", "steps")}
    return {
        "success": asdict(wilson(sum(t.success for t in trials), len(trials))),
        "solved": [t.seed for t in trials if t.success],
        "mean_steps": float(np.mean([t.steps for t in trials])),
        "ticks": sum(t.steps for t in trials),
        "waiting": int(sum((t.chunk < 0).sum() for t in trials)),
        "chunks": counts.pop("answers"), **counts,
        "reanchored": sum(t.counts.reanchored for t in trials),
        "changes": {name: {part: quantiles(values) for part, values in both.items()} for name, both in pooled.items()},
    }  # fmt: skip


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """How many, median, 95 % and the largest; None of nothing."""
    if not len(values):
        return None
    median, high, most = (float(np.quantile(values, q)) for q in (0.5, 0.95, 1.0))
    return {"count": len(values), "median": median, "p95": high, "max": most}


def draw_where_asked(report: dict[str, Any], options: argparse.Namespace) -> None:
    """The figure, beside the numbers unless another file is named."""
    out = options.plot or (Path(options.run_dir) / Path(NAME).with_suffix(".png") if options.run_dir else None)
    if out:
        from .chunks_figure import draw

        draw(report, Path(out))
        print(Path(out).absolute())


# --- tables -----------------------------------------------------------------------------------------------------------


def show(report: dict[str, Any]) -> None:
    """Both tables."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    about = f"{report['task']}, H {report['horizon']}, Ta {report['executed']}, {report['episodes']} episodes each"
    console.print(_success_table(report["rows"], about))
    console.print(_change_table(report["rows"]))


def _success_table(rows: list[dict[str, Any]], about: str) -> Table:
    table = Table("mode", "latency", title=f"success and schedule ({about})")
    for heading in ("success [95 %]", "steps", "chunks", "late steps", "starved ticks", "waiting ticks"):
        table.add_column(heading, justify="right")
    for row in rows:
        rate = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**row["success"])
        numbers = (str(row[key]) for key in ("chunks", "late", "starved", "waiting"))
        table.add_row(row["mode"], f"{row['latency'] * 1000:.0f} ms", rate, f"{row['mean_steps']:.1f}", *numbers)
    return table


def _change_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("mode", "latency", title="changes inside chunks | at their borders: median, 95 %, largest")
    for heading, unit in QUANTITIES.values():
        table.add_column(f"{heading}, {unit}", justify="right")
    for row in rows:
        cells = (" | ".join(_cell(row["changes"][name][part]) for part in ("inside", "border")) for name in QUANTITIES)
        table.add_row(row["mode"], f"{row['latency'] * 1000:.0f} ms", *cells)
    return table


def _cell(found: dict[str, float] | None) -> str:
    return "-" if found is None else "{median:.0f} {p95:.0f} {max:.0f}".format(**found)


BENCH = Command("jumps at chunk borders and success of the executor's modes, in the simulator", main)
