"""`d2ppo bench learn`: how fast this machine pre-trains, fine-tunes and acts, with the product's own code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from ..cli import Command
from ..errors import UserError
from ..machine import cores
from .machine import Parser, load, machine, write_report

NAME = "bench-learn.json"
PARTS = ("pretrain", "ppo", "act")
SHOWN = ("d2ppo", "torch", "numpy")


def main(arguments: list[str]) -> int:
    """Measure, print tables, write the JSON."""
    options = _options(arguments)
    import torch

    devices = _devices(options.device)
    threads = options.threads or cores()
    torch.set_num_threads(threads)
    report: dict[str, Any] = {"machine": machine(SHOWN), "threads": threads, "seconds": options.seconds, "devices": {}}
    for device in devices:
        report["devices"][device.type] = found = {"name": _name(device)}
        for part in options.only:
            print(f"measuring {part} on {device.type} ...", file=sys.stderr, flush=True)
            found[part] = _measure(part, options, device, threads)
    report["machine"]["load_after"] = load()
    _print(report)
    write_report(report, options, NAME)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="d2ppo bench learn", description="How fast this machine pre-trains, fine-tunes and acts.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="default: all three")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default 3); ppo has its own")
    parser.add_argument("--chunks", type=int, default=300, help="of the ppo rollout (default 300, as in the papers)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch (default: one for each core)")
    parser.add_argument("--compile", action="store_true", help="pre-training compiled, too (minutes longer)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: all there are")
    parser.add_output(NAME)
    options = parser.parse_args(arguments)
    if not 0.01 <= options.seconds <= 3600:
        raise UserError(f"--seconds is {options.seconds}; give 0.01 to 3600")
    if options.threads < 0 or options.chunks < 1:
        raise UserError(f"--threads is {options.threads} and --chunks {options.chunks}; give at least 1 of each")
    return options


def _devices(wanted: str) -> list[Any]:
    """CPU, and CUDA where there is one; or the one that was asked for."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no GPU here; leave it out, or see `d2ppo doctor`")
    names = (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]) if wanted == "auto" else [wanted]
    return [torch.device(name) for name in names]


def _name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


def _measure(part: str, options: argparse.Namespace, device: Any, threads: int) -> dict[str, Any]:
    import torch

    from . import acting, finetuning, pretraining

    finish: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if part == "pretrain":
        return pretraining.measure(options.seconds, device, finish, options.compile)
    if part == "act":
        return acting.measure(options.seconds, device, threads)
    return finetuning.measure(options.chunks, device, finish)


# --- tables -----------------------------------------------------------------------------------------------------------


def _print(report: dict[str, Any]) -> None:
    console, about = Console(width=None if sys.stdout.isatty() else 120), report["machine"]
    for device, found in report["devices"].items():
        where = found["name"] if device == "cuda" else f"CPU, {report['threads']} threads"
        for part in PARTS:
            if part in found:
                console.print(TABLES[part](found[part], where))
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    console.print(
        f"{about['processor']}, {about['cores']} cores, load {about['load_before'][0]} before and "
        f"{about['load_after'][0]} after; {versions}, Python {about['python']}."
    )


def _pretrain_table(found: dict[str, Any], where: str) -> Table:
    table = Table("dispersive loss", title=f"pre-training steps per second, batch 256 ({where})")
    for network in found:
        table.add_column(network, justify="right")
        table.add_column("times none", justify="right")
    for form in next(iter(found.values())):
        rows = [found[network][form] for network in found]
        cells = [(f"{row['per_second']:.1f}", f"{row['times_no_dispersion']:.2f}") for row in rows]
        table.add_row(form, *(cell for pair in cells for cell in pair))
    return table


def _ppo_table(found: dict[str, Any], where: str) -> Table:
    table = Table(
        f"PPO, state 512x3, K 20, K' 10, minibatch {found['measured']['minibatch']}", title=f"fine-tuning ({where})"
    )
    table.add_column(justify="right")
    for name, unit in (("update", "pairs"), ("acting", "chunks")):
        rates = (found[f"{name}_{unit}_per_{second}"] for second in ("second", "cpu_second"))
        table.add_row(f"{name}: {unit} per second (CPU second)", "{:.0f} ({:.0f})".format(*rates))
    table.add_row("seconds an iteration, estimated", f"{found['iteration_seconds_estimated']:.1f}")
    table.add_row("  of which acting", f"{found['of_which_acting']:.1f}")
    table.add_row("  of which update", f"{found['of_which_update']:.1f}")
    table.caption = found["iteration"]
    return table


def _act_table(found: dict[str, Any], where: str) -> Table:
    table = Table("acting", title=f"milliseconds from raw observations to raw actions ({where})")
    for heading in ("threads", "best", "median", "95 % below"):
        table.add_column(heading, justify="right")
    for name, row in found.items():
        times = [f"{row[key]:.2f}" for key in ("best_ms", "median_ms", "percentile_95_ms")]
        table.add_row(name, str(row["threads"]), *times)
    return table


TABLES = {"pretrain": _pretrain_table, "ppo": _ppo_table, "act": _act_table}
BENCH = Command("steps, pairs and chunks per second of pre-training, PPO and acting", main)
