"""`d2ppo bench rollout`: control steps per second with 1, 2 and 4 workers, here and on Ray; what a learner takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..cli import Command
from ..conf.schema import ClusterConfig
from ..envs import EnvRequest, VectorEnv, make_env
from ..errors import UserError
from ..machine import cores
from ..scale.ray_env import RayVectorEnv
from ..tasks import load_task
from .machine import Parser, load, machine, write_report
from .slices import Clock, take_turns

NAME = "bench-rollout.json"
SHOWN = ("d2ppo", "ray", "mujoco", "numpy", "torch")
BASE = "this process, 1 thread"
EPISODE, CHUNK = 96, 4  # control steps; a chunk as in the papers
BUSY = 0.9  # of the learner's time, which the number of cores is given for


def main(arguments: list[str]) -> int:
    """Measure, print a table, write the JSON."""
    options = _options(arguments)
    report: dict[str, Any] = {
        "machine": machine(SHOWN),
        **{name: getattr(options, name) for name in ("task", "envs", "seconds")},
        "chunk": CHUNK,
        "rates": _rates(options),
    }
    if options.learn_chunks:
        report["learner"] = _learner(options, report["rates"][BASE]["per_second"])
    report["machine"]["load_after"] = load()
    _print(report)
    write_report(report, options, NAME)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="d2ppo bench rollout", description="Control steps per second of rollouts, here and on Ray.")
    parser.add_argument("--task", default="lift", help="default: lift")
    parser.add_argument("--simulator", default="", help="default: the task's own")
    parser.add_argument("--envs", type=int, default=16, help="environments, shared by the workers (default 16)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], metavar="W", help="default: 1 2 4")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default 4)")
    parser.add_argument("--no-ray", action="store_true", help="leave Ray out")
    parser.add_argument("--address", default="", help="Ray cluster to join: auto or HOST:PORT; default: one of its own")
    parser.add_argument("--learn-chunks", type=int, default=30, help="of the learner's rollout; 0: none (default 30)")
    parser.add_output(NAME)
    options = parser.parse_args(arguments)
    if not 0.01 <= options.seconds <= 3600:
        raise UserError(f"--seconds is {options.seconds}; give 0.01 to 3600")
    if min(options.workers) < 1 or options.envs < max(options.workers) or options.learn_chunks < 0:
        raise UserError("--workers must be at least 1, --envs at least as many as workers, --learn-chunks not negative")
    return options


def _rates(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By name: workers, rates, times the base's rate, and milliseconds a step beyond an even share of the base's."""
    task = load_task(options.task)
    simulator, work = options.simulator or task.simulator, {}

    def request(workers: int) -> EnvRequest:
        return EnvRequest(task.environment, options.envs, EPISODE, workers=workers)

    envs: dict[str, tuple[int, VectorEnv]] = {}
    try:
        envs[BASE] = 1, make_env(simulator, request(1))
        for w in options.workers:
            envs[f"local, {w}"] = w, make_env(simulator, request(w))
        cluster = ClusterConfig(kind="ray", address=options.address)
        for w in () if options.no_ray else sorted(options.workers, reverse=True):  # the first says how many CPUs
            print(f"starting {w} Ray actors ...", file=sys.stderr, flush=True)
            envs[f"Ray, {w}"] = w, RayVectorEnv(cluster, simulator, request(w))
        work = {name: stepping(env) for name, (_, env) in envs.items()}
        print("measuring, all in turns ...", file=sys.stderr, flush=True)
        clocks = take_turns(work, options.seconds)
    finally:
        for _, env in envs.values():
            env.close()
    order = sorted(envs, key=lambda name: (name != BASE, name.split(",")[0] == "Ray", envs[name][0]))
    return {name: _row(envs[name][0], clocks[name], clocks[BASE], options.envs) for name in order}


def _row(workers: int, clock: Clock, base: Clock, envs: int) -> dict[str, Any]:
    own, alone = clock.wall / clock.units, base.wall / base.units  # s of a control step
    share = alone / min(workers, cores())
    return {
        "workers": workers,
        **clock.report(),
        "times_one_thread": round(alone / own, 3),
        "overhead_ms_per_chunk": round(1e3 * envs * CHUNK * (own - share), 3),
    }


def stepping(env: VectorEnv) -> Callable[[], int]:
    """A chunk of random actions in every environment at each call, and new episodes where the old ones end."""
    rows, rng = list(range(env.num_envs)), np.random.default_rng(0)
    chunks = rng.uniform(-1, 1, (EPISODE // CHUNK, len(rows), CHUNK, env.action.size))
    done = 0

    def step() -> int:
        nonlocal done
        if done % len(chunks) == 0:
            env.reset(rows, [done + row for row in rows])
        taken = env.step(rows, chunks[done % len(chunks)])
        done += 1
        return int(taken.control_steps.sum())

    return step


def _learner(options: argparse.Namespace, per_core: float) -> dict[str, Any]:
    """Control steps that acting and updating take in a second at the papers' sizes, and cores that simulate as many."""
    import torch

    from . import finetuning

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"measuring the learner on {device.type} ...", file=sys.stderr, flush=True)
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found = finetuning.measure(options.learn_chunks, device, finish)
    steps = finetuning.ENVS * finetuning.CHUNKS * CHUNK
    learning = found["iteration_seconds_estimated"]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "seconds_an_iteration": learning,
        "control_steps_an_iteration": steps,
        "control_steps_per_second": round(steps / learning, 1),
        "cores_for_busy_share": {str(BUSY): round(cores_needed(steps, learning, per_core, BUSY), 1)},
    }


def cores_needed(steps: float, learning: float, per_core: float, busy: float) -> float:
    """Cores that keep a learner busy for the share `busy` of the time: rollout and update take turns.

    `steps` control steps an iteration, `learning` s of acting and updating, `per_core` control steps a second.
    """
    return steps / per_core * busy / ((1 - busy) * learning)


def _print(report: dict[str, Any]) -> None:
    console, about = Console(width=None if sys.stdout.isatty() else 120), report["machine"]
    table = Table("workers", title=f"control steps per second, {report['task']}, {report['envs']} environments")
    for heading in ("per second", "times one thread", "overhead, ms a chunk"):
        table.add_column(heading, justify="right")
    for name, row in report["rates"].items():
        table.add_row(
            name, f"{row['per_second']:.0f}", f"{row['times_one_thread']:.2f}", f"{row['overhead_ms_per_chunk']:.1f}"
        )
    console.print(table)
    if learner := report.get("learner"):
        ((busy, count),) = learner["cores_for_busy_share"].items()
        console.print(
            f"A learner on {learner['device']} (acting and PPO update, papers' sizes) takes "
            f"{learner['control_steps_per_second']:.0f} control steps per second; {count} cores like this one's thread "
            f"keep it busy {100 * float(busy):.0f} % of the time."
        )
    console.print(
        f"Overhead: beyond an even share of one thread's time among min(workers, cores) cores. {about['processor']}, "
        f"{about['cores']} cores, load {about['load_before'][0]} before and {about['load_after'][0]} after."
    )


BENCH = Command("control steps per second of rollouts with 1, 2, 4 workers, here and on Ray", main)
