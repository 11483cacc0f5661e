"""`d2ppo study run|report|list`: many runs from one file, and what they say together."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..cli import Parser
from ..errors import UserError, choose
from .plan import Plan
from .schema import read_study

SHIPPED = Path(__file__).parent.parent / "conf" / "study"


def main(arguments: list[str]) -> int:
    """Choose the part."""
    parser = Parser(prog="d2ppo study", description="Many runs from one file; see docs/study.md.")
    parts = parser.add_subparsers(dest="part", required=True)
    run = parts.add_parser("run", help="run a study, or go on with one", epilog="example: d2ppo study run smoke")
    run.add_argument("file", metavar="FILE", help=f"YAML file, or one of ours: {', '.join(shipped())}")
    run.add_argument("--run-dir", type=Path, help="folder of the study [runs/NAME]")
    run.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread; 0: one for each core [1]")
    run.add_argument("--only", default="", metavar="PATTERN", help="only runs below TASK/CELL/seed=N; * matches")
    run.add_argument("--budget", type=float, metavar="HOURS", help="start no run after so many CPU hours of the study")
    run.add_argument("--retry", action="store_true", help="also repeat runs that failed")
    run.add_argument("--list", action="store_true", help="print the runs and start nothing")
    report = parts.add_parser("report", help="tables, figures and one page, also of a study that is not finished")
    report.add_argument("folder", type=Path, metavar="DIR", help="the study's --run-dir")
    report.add_argument("--out", type=Path, help="where the report goes [DIR/report]")
    options = parser.parse_args(arguments)
    if options.part == "report":
        from .report import write_report

        summary = write_report(options.folder, options.out or options.folder / "report")
        print(f"report: {summary.parent / 'report.html'}")
        print(summary, flush=True)
        return 0
    return run_study(options)


def shipped() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def study_file(given: str) -> Path:
    """A path, or the name of a shipped study."""
    if given in shipped() and not Path(given).exists():
        return SHIPPED / f"{given}.yaml"
    if not given.endswith((".yaml", ".yml")) and not Path(given).exists():
        raise UserError(f"there is no study '{given}'{choose(given, shipped())} (or give a YAML file)")
    return Path(given)


def run_study(options: argparse.Namespace) -> int:
    """`d2ppo study run`; exit code 1 where runs failed."""
    from .board import Board
    from .runner import Progress, Runner
    from .store import Store

    if options.jobs < 0 or (options.budget is not None and options.budget <= 0):
        raise UserError("--jobs must be at least 0, and --budget above 0")
    file = study_file(options.file)
    study, digest = read_study(file)
    folder = options.run_dir or Path("runs") / study.name
    plan = Plan(study, file, folder)
    runs = plan.chosen(options.only) if options.only else plan.runs
    if not runs:
        raise UserError(f"no run of {study.name} is below '{options.only}'; `d2ppo study run ... --list` prints them")
    if options.list:
        print("\n".join(run.name + (" (fine-tuned, too)" if run.finetuned else "") for run in runs))
        return 0
    from .check import check_commands

    check_commands(plan, runs)
    store, budget = Store(folder), options.budget and options.budget * 3600
    store.open(study, file, digest)
    try:
        progress = Progress(runs)
        runner = Runner(plan, store, options.jobs or os.cpu_count() or 1, budget, options.retry)
        Board(store, progress, budget).follow(runner.run(runs, progress))
        return _close(store, plan, progress)
    finally:
        store.close()


def _close(store: object, plan: Plan, progress: object) -> int:
    """Say what there is, and where."""
    names = {run.name for run in progress.runs}  # type: ignore[attr-defined]
    rows = [row for row in store.rows() if row["run"] in names]  # type: ignore[attr-defined]
    failed = sorted({row["run"] for row in rows if row["status"] == "failed"})
    done = {row["run"] for row in rows} - set(failed)
    hours = store.cost()[0] / 3600  # type: ignore[attr-defined]
    left = len(names) - len(done) - len(failed)
    print(f"{len(done)} runs done, {len(failed)} failed, {left} not started or not finished; {hours:.2f} CPU hours")
    for name in failed[:10]:
        print(f"failed: {name}: {next(r['reason'] for r in rows if r['run'] == name and r['status'] == 'failed')}")
    print(plan.folder / "results.jsonl", flush=True)
    return 1 if failed else 0
