"""`d2ppo bench ros`: the times of the running system, from the picture to the robot, and how it keeps its deadlines."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from d2ppo_core.bench.machine import Parser, load, machine, write_report
from d2ppo_core.checkpoint import read_policy
from d2ppo_core.cli import Command
from d2ppo_core.contract import PolicySpec
from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256
from d2ppo_core.statistics import wilson

from .. import graph
from ..executor.settings import MODES
from ..records import SECOND
from ..scenarios import parse
from . import hops
from .ros_system import Watched, watch

NAME = "bench-ros.json"
SHOWN = ("d2ppo", "torch", "numpy", "mujoco", "ros-rclpy")
ENOUGH_TRIALS = 1_000_000
MISS = 10.0  # ms: later than this is a missed deadline
ASKED = {"median": 3.0, "p99": 10.0}  # ms, of the hops' sum on a quiet core
LOOPS = {"executor": "executor", "safety": "safety", "sim": "robot"}  # node -> whose loop it is


def main(arguments: list[str]) -> int:
    """Run the system, join its marks, print the tables, write the JSON and the figure."""
    options = _options(arguments)
    spec = read_policy(options.checkpoint)[0]
    about = machine(SHOWN)
    with tempfile.TemporaryDirectory(prefix="d2ppo-bench-") as scratch:
        traces = Path(options.traces or Path(scratch) / "traces")
        words = [f"checkpoint={options.checkpoint}", f"executor={options.executor}", f"rate={options.rate}",
                 f"trials={ENOUGH_TRIALS}", f"run_dir={scratch}", f"domain={options.domain}"]  # fmt: skip
        system = graph.system("sim", parse("sim", words))
        seen = watch(system, traces, Path(scratch) / "trials.json", options.minutes * 60)
        report = {"machine": about, "checkpoint": sha256(options.checkpoint), "mode": options.executor,
                  "rate": options.rate, **measured(hops.read(traces), seen, spec, options.rate)}  # fmt: skip
    report["machine"]["load_after"] = load()
    show(report)
    write_report(report, options, NAME)
    out = options.plot or (Path(options.run_dir) / Path(NAME).with_suffix(".png") if options.run_dir else None)
    if out:
        from .ros_figure import draw

        draw(report, Path(out))
        print(Path(out).absolute())
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="d2ppo bench ros", description="Latency, jitter and CPU time of the ROS 2 nodes while a "
                    "policy runs in the simulator in real time.")  # fmt: skip
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="the policy (policy.safetensors)")
    parser.add_argument("--minutes", type=float, default=10.0, help="after the first trial (default 10)")
    parser.add_argument("--executor", choices=MODES, default="receding", help="how chunks are executed")
    parser.add_argument("--rate", type=float, default=100.0, help="of the executor in Hz (default 100)")
    parser.add_argument("--domain", type=int, default=-1, help="ROS domain (default: as it is)")
    parser.add_argument("--traces", metavar="DIR", help="keep every process's marks in this empty folder")
    parser.add_argument("--plot", metavar="PNG", help="draw a figure into this file")
    parser.add_output(NAME)
    options = parser.parse_args(arguments)
    if not 0.05 <= options.minutes <= 600:
        raise UserError(f"--minutes is {options.minutes}; give 0.05 to 600")
    if options.traces and Path(options.traces).is_dir() and any(Path(options.traces).iterdir()):
        raise UserError(f"--traces {options.traces} is not empty; give a new folder")
    return options


# --- numbers ----------------------------------------------------------------------------------------------------------


def measured(nodes: dict[str, hops.Marks], seen: Watched, spec: PolicySpec, rate: float) -> dict[str, Any]:
    """Everything that the marks of the watched time say, ms unless it is named otherwise."""
    nodes, pictures = hops.between(nodes, seen.begin, seen.end), bool(spec.observation.cameras)
    spans = hops.durations(hops.chains(nodes), pictures)
    if not len(spans["total"]):
        why = seen.problem or "give it more --minutes"
        raise UserError(f"no command could be traced back to what was seen: {why}")
    late, lost = hops.step_lateness(nodes["executor"], SECOND // spec.action.control_hz)
    seconds = (seen.end - seen.begin) / SECOND
    rates = {"executor": rate, "safety": 100.0, "sim": 100.0}
    ticks = {name: nodes[node]["tick"] for node, name in LOOPS.items()}
    return {
        "task": spec.task, "seconds": seconds, "problem": seen.problem,
        "trials": {"count": len(seen.trials), "success": _rate(seen.trials)},
        "chain": [name for name, *_ in hops.hops_of(pictures)],
        "spans": {name: quantiles(values) for name, values in spans.items()},
        "asked": ASKED,
        "loops": {LOOPS[node]: _loop(nodes[node]["tick"], wanted, seconds) for node, wanted in rates.items()},
        "steps": {"count": len(late) + lost, "missed": int((late > MISS).sum()) + lost, "lost": lost,
                  "late": quantiles(late)},
        "cpu": seen.cpu, "others": seen.others,
        "curves": {
            "spans": {name: np.quantile(values, CURVE).round(4).tolist() for name, values in spans.items()},
            "lateness": {name: worst(rows, seen.begin) for name, rows in ticks.items()},
        },
    }  # fmt: skip


CURVE = np.r_[np.linspace(0, 0.99, 100), np.linspace(0.9905, 1, 20)]  # shares at which a distribution is kept


def _rate(trials: list[dict[str, Any]]) -> dict[str, float] | None:
    return asdict(wilson(sum(row["success"] for row in trials), len(trials))) if trials else None


def _loop(ticks: np.ndarray, rate: float, seconds: float) -> dict[str, Any]:
    """Of (n, 3) marks: how late its ticks were, and how many of them did not come at all."""
    late, period = ticks[:, hops.KEY] / 1e6, np.diff(ticks[:, hops.TIME]) / 1e6
    skipped = max(0, round(seconds * rate) - len(ticks))
    return {
        "rate": rate, "count": len(ticks), "missed": int((late > MISS).sum()), "skipped": skipped,
        "late": quantiles(late), "jitter": quantiles(np.abs(period - 1000 / rate)),
    }  # fmt: skip


def worst(ticks: np.ndarray, begin: int, width: int = SECOND) -> list[list[float]]:
    """[seconds since `begin`, the largest lateness in ms] of each second that has ticks."""
    seconds = (ticks[:, hops.TIME] - begin) // width
    return [[float(n), float(ticks[seconds == n, hops.KEY].max() / 1e6)] for n in np.unique(seconds)]


def quantiles(values: np.ndarray) -> dict[str, float] | None:
    """How many, median, 99 % and the largest; None of nothing."""
    if not len(values):
        return None
    median, high, most = (float(np.quantile(values, q)) for q in (0.5, 0.99, 1.0))
    return {"count": len(values), "median": median, "p99": high, "max": most}


# --- tables -----------------------------------------------------------------------------------------------------------


def show(report: dict[str, Any]) -> None:
    """Everything on the terminal."""
    console, about = Console(width=None if sys.stdout.isatty() else 120), report["machine"]
    console.print(_span_table(report))
    console.print(_loop_table(report))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report["cpu"].items())
    console.print(f"CPU, of one core: {shares}; everything else on this machine {report['others']:.0%}")
    rate, count = report["trials"]["success"], report["trials"]["count"]
    if rate:
        console.print("{} trials, success {value:.2f} [{low:.2f}, {high:.2f}]".format(count, **rate))
    console.print(f"{about['processor']}, {about['cores']} cores, load {about['load_before'][0]} before and "
                  f"{about['load_after'][0]} after")  # fmt: skip
    if report["problem"]:
        console.print(report["problem"])


def _span_table(report: dict[str, Any]) -> Table:
    spans, asked = report["spans"], report["asked"]
    title = f"{report['task']}, {report['mode']}: {spans['total']['count']} chunks in {report['seconds']:.0f} s; ms"
    table = Table("from what is seen to the command", "median", "99 %", "largest", title=title)
    sections = (report["chain"], ["total"], [name for name, *_ in hops.WAITS], ["end to end"])
    headings = {
        "total": f"sum of the hops (asked: {asked['median']:g}, {asked['p99']:g})", "inference": "the network",
        "asked": "until the executor asks", "due": "until the first step's tick",
    }  # fmt: skip
    for names in sections:
        for name in names:
            table.add_row(headings.get(name, name), *_cells(spans[name]))
        table.add_section()
    return table


def _loop_table(report: dict[str, Any]) -> Table:
    table = Table("deadlines", "count", "missed", "skipped", title=f"a miss is more than {MISS:g} ms late; ms")
    for heading in ("late: median", "99 %", "largest", "period off: median", "99 %", "largest"):
        table.add_column(heading, justify="right")
    for name, loop in report["loops"].items():
        counts = (str(loop[key]) for key in ("count", "missed", "skipped"))
        table.add_row(f"{name}, {loop['rate']:g} Hz", *counts, *_cells(loop["late"]), *_cells(loop["jitter"]))
    steps = report["steps"]
    counts = (str(steps[key]) for key in ("count", "missed", "lost"))
    table.add_row("policy steps, 20 Hz", *counts, *_cells(steps["late"]), *[""] * 3)
    return table


def _cells(found: dict[str, float] | None) -> list[str]:
    return [f"{found[key]:.2f}" if found else "-" for key in ("median", "p99", "max")]


BENCH = Command("latency, jitter and CPU time of the ROS 2 nodes, in real time", main)
