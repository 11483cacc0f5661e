"""`d2ppo trials`: recorded trials shown, replayed, exported and recovered, for which no ROS is needed; and policies
compared trial by trial, which is the work of `d2ppo_ros.trials`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from d2ppo_core.cli import Command, Parser
from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json

EPILOG = """examples:
  d2ppo trials run     policies=runs/lift,runs/lift-ppo episodes=20 blind=true run_dir=runs/blind
  d2ppo trials results runs/blind
  d2ppo trials show    runs/records            (a line for each; of one trial: everything)
  d2ppo trials replay  runs/records/lift-0007 --checkpoint runs/lift-ppo/policy.safetensors
  d2ppo trials export  runs/records/lift-* --out demos/recorded.hdf5
  d2ppo trials export  runs/records/lift-* --format lerobot --out datasets/lift
  d2ppo trials recover runs/records/lift-0008
"""
JUDGED = {  # what `d2ppo_ros.trials.command` does, and reads its words itself
    "run": "compare policies trial by trial, blind, judged by a person (`d2ppo trials run --help`)",
    "results": "what such a comparison has given",
}


def run(arguments: list[str]) -> int:
    """Run one of them; the exit code."""
    try:
        if arguments and arguments[0] in JUDGED:
            return _judged(*arguments)
        options = _parser().parse_args(arguments)
        if options.many:
            options.trials = [trial for folder in options.trials for trial in trials_in(folder)]
        return options.work(options)
    except ImportError as error:
        raise UserError(f"`d2ppo trials` needs a part that is not installed ({error}); run `make setup`") from error


def trials_in(folder: Path) -> list[Path]:
    """The folder itself, or where it is no trial's the trials in it, by name."""
    from .writer import SIDECAR

    inside = [] if (folder / SIDECAR).exists() else sorted(path.parent for path in folder.glob(f"*/{SIDECAR}"))
    return inside or [folder]


def _judged(name: str, *words: str) -> int:
    from ..trials.command import run, show_results

    return run(words) if name == "run" else show_results(words)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="d2ppo trials", description="Trials: run them, look at their records, replay, export and recover them.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, work: Callable[[argparse.Namespace], int], many: bool, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        folder = "folder of a recorded trial" + (", or of several" if many else "")
        command.add_argument("trials", type=Path, nargs="+" if many else 1, help=folder)
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
        command.add_argument("--run-dir", type=Path, help=f"also write {name}.json into this folder")
        command.set_defaults(work=work, many=many)
        return command

    for name, about in JUDGED.items():
        commands.add_parser(name, help=about, add_help=False)
    add("show", _show, True, "topics, counts, what was lost, chunks, commands, safety's decisions")
    command = add("replay", _replay, False, "run the policy again on what was recorded; exit code 1 if it differs")
    command.add_argument("--checkpoint", help="the policy's file; default: what the trial says")
    command.add_argument("--any-policy", action="store_true", help="compare a policy other than the one that ran")
    command.add_argument("--tolerance", type=float, default=0.0, help="largest difference (default 0: every bit)")
    command.add_argument("--seed", type=int, help="the policy node's seed; default: what the trial says, or 0")
    command.add_argument("--steps", type=int, help="DDIM steps that the policy node was told to take")
    command.add_argument("--weights", choices=("ema", "raw"), help="which weights the policy node was told to use")
    command.add_argument("--threads", type=int, help="threads of torch; bits may depend on it")
    command.add_argument("--device", help="where the network runs (default cpu)")
    command = add("export", _export, True, "write trials as demonstrations to train on")
    command.add_argument("--out", type=Path, required=True, help="the HDF5 file, or LeRobot's folder")
    command.add_argument("--format", choices=("robomimic", "lerobot"), default="robomimic")
    command.add_argument("--all", action="store_true", help="trials that did not succeed, too")
    command.add_argument("--checkpoint", help="take the contract from this policy; default: the recorded one")
    for name in ("replay", "export"):
        commands.choices[name].add_argument("--max-age", type=float, help="of an observation's parts, s (default 0.1)")
    add("recover", _recover, True, "make a valid bag of what a killed recorder left")
    return parser


def _answer(options: argparse.Namespace, name: str, value: object) -> None:
    if options.run_dir:
        write_json(options.run_dir / f"{name}.json", value)
    if options.json:
        print(json.dumps(value, indent=2))


def _show(options: argparse.Namespace) -> int:
    from .reader import Trial
    from .show import describe, print_trial, print_trials

    described = [describe(Trial(folder)) for folder in options.trials]
    _answer(options, "show", described)
    if options.json:
        return 0
    if len(described) == 1:
        print_trial(described[0])
    else:
        print_trials(described)
    return 0


def _replay(options: argparse.Namespace) -> int:
    from .reader import Trial
    from .replay import options_of, replay

    trial = Trial(options.trials[0])
    names = ("checkpoint", "seed", "steps", "weights", "threads", "device", "max_age")
    result = replay(trial, options_of(trial, **{name: getattr(options, name) for name in names}), options.any_policy)
    same, found = result.same(options.tolerance), result.summary()
    _answer(options, "replay", {**found, "same": same})
    if not options.json:
        print(
            f"{found['compared']} of {found['chunks']} chunks replayed, {found['identical']} identical in every bit; "
            f"largest difference {found['largest_difference']:.3g}"
            + (f" (chunk {found['worst_chunk']})" if found["largest_difference"] else "")
        )
        if found["other_observations"]:
            listed = ", ".join(map(str, found["other_observations"]))
            print(f"the policy had seen something else than what was recorded in chunk {listed}")
        for index, why in found["missing"].items():
            print(f"chunk {index} could not be replayed: {why}")
    return 0 if same else 1


def _export(options: argparse.Namespace) -> int:
    from d2ppo_core.checkpoint import read_policy

    from ..records import SECOND
    from .export import export_robomimic
    from .export_lerobot import export_lerobot
    from .observations import MAX_AGE
    from .reader import Trial

    if options.out.exists():
        raise UserError(f"{options.out} exists; choose another --out, or remove it")
    contract = read_policy(options.checkpoint)[0] if options.checkpoint else None
    max_age = MAX_AGE if options.max_age is None else int(options.max_age * SECOND)
    write = export_lerobot if options.format == "lerobot" else export_robomimic
    report = write([Trial(folder) for folder in options.trials], options.out, contract, options.all, max_age)
    _answer(options, "export", vars(report) | {"out": str(options.out)})
    for folder, why in report.left_out.items():
        print(f"left out {folder}: {why}", file=sys.stderr)
    if report.clipped:
        print(f"{report.clipped} control steps asked for more than an action can; they were clipped", file=sys.stderr)
    if not options.json:
        missed = f" ({len(report.left_out)} of {len(options.trials)} trials left out)" if report.left_out else ""
        print(f"{report.episodes} episodes, {report.steps} control steps -> {options.out}{missed}")
    return 0


def _recover(options: argparse.Namespace) -> int:
    from .recover import recover

    recovered = {str(folder): recover(folder) for folder in options.trials}
    _answer(options, "recover", recovered)
    for folder, about in {} if options.json else recovered.items():
        count = sum(topic["written"] for topic in about["topics"].values())
        print(f"{folder}: {about['state']}, {count} messages")
    return 0


TRIALS = Command("compare policies in trials, blind; recorded trials: show, replay, export to train on, recover", run)
