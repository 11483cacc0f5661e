"""What can be chosen for `d2ppo trials run`: its own options, and those of the system that it brings up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from d2ppo_core.errors import UserError, did_you_mean

from ..parameters import build, default_of, parameter, table
from ..scenarios import SCENARIOS, parse

OURS = ("checkpoint", "trials", "record", "run_dir", "lockstep")  # of a system's options: what is not to be chosen
ANEW = ("page", "port", "resume", "run_dir", "domain", "params")  # what may differ when a session is resumed
SYSTEMS = tuple(name for name in SCENARIOS if name != "record")


@dataclass(frozen=True)
class RunOptions:
    """A comparison of policies, trial by trial, judged by a person."""

    policies: str = parameter("", "policies to compare, with commas between: files, or folders of training runs")
    episodes: int = parameter(20, "start states; each is run once with every policy", low=1, high=10_000)
    blind: bool = parameter(True, "hide from everybody which policy runs, until all is done or revealed")
    system: str = parameter("sim", "what is brought up: against the simulator, or for a robot", choices=SYSTEMS)
    run_dir: str = parameter("runs/trials", "folder of the session: its file, records, results")
    resume: bool = parameter(False, "go on with the session in run_dir; other options need not be given again")
    order_seed: int = parameter(0, "names the order of the draws; 0: one is drawn, and kept in the session's file",
                                low=0, high=2**62)  # fmt: skip
    page: bool = parameter(True, "the operator's screen is a page in the browser; false (--terminal): the terminal")
    port: int = parameter(0, "of that page, on this machine only; 0: any that is free", low=0, high=65535)
    lease: float = parameter(0.5, "the arm is stopped when this program, or its page, is gone for longer; 0: a switch "
                             "of your own speaks on `operator`", unit="s", low=0.0, high=1.0)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """Both kinds of options."""

    run: RunOptions
    system: tuple[str, ...]  # key=value words for the system

    def saved(self) -> dict[str, Any]:
        """As the session's file keeps them."""
        return {"run": asdict(self.run), "system": list(self.system)}


def choose(arguments: Sequence[str]) -> Chosen:
    """The words of the command line, each checked."""
    words = ["page=false" if word == "--terminal" else word for word in arguments]
    given = _own(words)
    run = build(RunOptions, given, "d2ppo trials run")
    chosen = Chosen(run, tuple(word for word in words if word.partition("=")[0] not in _kinds()))
    _check_system(chosen)
    return chosen


def resumed(arguments: Sequence[str], saved: dict[str, Any]) -> Chosen:
    """A session's options, with those words of the command line that may differ; any other difference is an error."""
    here, before = choose(arguments), dict(saved["run"])
    for name in _own(["page=false" if word == "--terminal" else word for word in arguments]):
        now = getattr(here.run, name)
        if name not in ANEW and now != before.get(name):
            raise UserError(
                f"{name}={now} is not what the session in {here.run.run_dir} began with ({before.get(name)}); leave it "
                "out, or choose another run_dir"
            )
    names = {word.partition("=")[0] for word in here.system}
    kept = tuple(word for word in saved["system"] if word.partition("=")[0] not in names)
    changed = [word for word in here.system if word not in saved["system"] and word.partition("=")[0] not in ANEW]
    if changed:
        raise UserError(f"{changed[0]} is not what the session in {here.run.run_dir} began with; leave it out")
    fresh = {name: getattr(here.run, name) for name in ("page", "port", "resume", "run_dir")}
    return Chosen(build(RunOptions, before | fresh, "the session"), (*kept, *here.system))


def _kinds() -> dict[str, type]:
    return {field.name: type(default_of(field)) for field in fields(RunOptions)}


def _own(words: Sequence[str]) -> dict[str, Any]:
    """The values of our own options among the words; whatever is no number stays a text that `build` complains of."""
    kinds, values = _kinds(), {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name:
            raise UserError(f"'{word}' is no option of `d2ppo trials run`; options are key=value, see --help")
        if name in kinds:
            values[name] = _value(kinds[name], text)
    return values


def _value(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


def _check_system(chosen: Chosen) -> None:
    """The system's options, before anything is begun."""
    known = {*_kinds(), *(field.name for field in fields(SCENARIOS[chosen.run.system]))} - {*OURS}
    for word in chosen.system:
        name = word.partition("=")[0]
        if name in OURS:
            raise UserError(f"'{word}' is no option of `d2ppo trials run`, which decides that itself; leave it out")
        if name not in known:
            near = did_you_mean(name, known) or "; `d2ppo trials run --help` lists them"
            raise UserError(f"'{word}' is no option of `d2ppo trials run system={chosen.run.system}`{near}")
    parse(chosen.run.system, chosen.system)


def usage() -> str:
    """What `d2ppo trials run --help` prints."""
    def rows(kind: type) -> str:
        return "\n".join(
            f"  {name:<13} {why} (default {default})" + (f"; {limits}" if limits else "")
            for name, default, limits, why in table(kind) if kind is RunOptions or name not in OURS
        )  # fmt: skip

    systems = "\n\n".join(f"options of system={name}, as in `d2ppo up {name}`:\n{rows(SCENARIOS[name])}"
                          for name in SYSTEMS)  # fmt: skip
    return TEACHING.format(own=rows(RunOptions), systems=systems)


TEACHING = """d2ppo trials run: compare policies trial by trial, judged by a person who does not know which one runs.

usage: d2ppo trials run policies=A,B[,C] [episodes=20] [blind=true] [key=value ...] [--terminal]

Each start state is run once with every policy, in an order that nobody knows:

  1. you set the start state up (the simulator does it itself) and say so;
  2. then a policy is drawn at random and loaded, its name hidden;
  3. you arm, and start; you can stop at any moment (space or Esc, or the big button);
  4. you say how it went: success, failure, or void with a reason (void: it is run again), and notes.

It prints the address of a page for the browser (this machine only, with a secret in it), or asks in the terminal with
--terminal. Nothing is armed, re-armed or started by itself. Everything is in run_dir: session.jsonl (each event, on the
disk at once), records/ (a record of every trial), nodes.log, and in the end results.json, results.txt and results.png:
success of each policy with its interval, and the difference of each two of them, paired by start state.

Interrupted, or killed? `d2ppo trials run run_dir=DIR resume=true` goes on; a trial that was under way is void.

options:
{own}

{systems}

Examples:
  d2ppo trials run policies=runs/lift,runs/lift-ppo episodes=20 run_dir=runs/blind
  d2ppo trials run system=robot policies=runs/a,runs/b episodes=10 params=cell.yaml max_duration=40 run_dir=runs/cell
  d2ppo trials run run_dir=runs/cell resume=true
  d2ppo trials results runs/cell            # how it stands; --reveal ends the blindness
"""
