"""The `d2ppo` command: finds the commands that the houses registered, and turns every error into one sentence."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import NoReturn

from .errors import UserError, choose
from .version import code_version


@dataclass(frozen=True)
class Command:
    """One command: what `d2ppo --help` says of it, and what runs it (argument list in, exit code out).

    `interrupted`: what a person is told who has interrupted it.
    """

    summary: str
    run: Callable[[list[str]], int]
    interrupted: str = "interrupted"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one sentence like any other."""

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"^argument (.*): invalid choice: '(.*)' \(choose from (.*)\)$", message):
            name, word, words = wrong.groups()
            message = f"'{word}' is no {name.lower()}" + choose(word, words.replace("'", "").split(", "))
        raise UserError(f"{message} (`{self.prog} --help` lists the options)")


HELP = ("-h", "--help", "help")
ORDER = ("demos", "pretrain", "finetune", "evaluate", "report", "inspect", "doctor")


def registered(group: str = "d2ppo.commands", words: str = "d2ppo") -> dict[str, Command]:
    """Every installed command of a group of entry points, by name; `words` is what is typed before the name.

    One whose package lacks something is replaced by its explanation.
    """
    commands = {}
    for point in entry_points(group=group):
        try:
            commands[point.name] = point.load()
        except ImportError as error:
            explain = _unavailable(f"{words} {point.name}", str(error))
            commands[point.name] = Command(f"not available: {error}", explain)
    known = [name for name in ORDER if name in commands]
    return {name: commands[name] for name in known + sorted(set(commands) - set(known))}


def _unavailable(words: str, reason: str) -> Callable[[list[str]], int]:
    def run(arguments: list[str]) -> int:
        raise UserError(f"`{words}` needs a part that is not installed ({reason}); run `make setup`")

    return run


def listing(commands: dict[str, Command]) -> str:
    """A line for each command."""
    width = max(map(len, commands), default=0)
    return "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in commands.items())


def usage(commands: dict[str, Command]) -> str:
    """What `d2ppo --help` prints."""
    return (
        "d2ppo: from demonstrations to a fine-tuned manipulation policy.\n\n"
        "usage: d2ppo COMMAND [key=value ...]        d2ppo COMMAND --help        d2ppo --version\n\n"
        + listing(commands) + "\n\n"
        "A first run, in order:\n"
        "  d2ppo demos    experiment=demo\n"
        "  d2ppo pretrain experiment=demo data=demos/lift.hdf5 run_dir=runs/lift\n"
        "  d2ppo finetune experiment=demo checkpoint=runs/lift/policy.safetensors run_dir=runs/lift-ppo\n"
        "  d2ppo evaluate experiment=demo checkpoint=runs/lift-ppo/policy.safetensors run_dir=runs/lift-eval\n"
        "  d2ppo report   runs/lift runs/lift-ppo runs/lift-eval"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command; exit code 2 for a mistake in the input, 130 when interrupted."""
    # Idle threads of torch sleep instead of spinning: on a shared machine spinning costs a factor of six. libgomp reads
    # this when torch is loaded, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["help"]
    together = int(os.environ.get("WORLD_SIZE") or 1) > 1  # one of the processes that torchrun started
    commands: dict[str, Command] = {}
    try:
        if name == "--version":
            print(f"d2ppo {code_version()}")
            return 0
        commands = registered()  # takes seconds: inside, for whoever thinks better of it meanwhile
        if name in HELP:
            print(usage(commands))
            return 0
        if name not in commands:
            raise UserError(f"there is no command '{name}'{choose(name, commands)}")
        if together:
            _require_shared(name, rest)
        return commands[name].run(rest)
    except UserError as error:
        if not together or _first_to_fail():
            print(f"d2ppo: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"d2ppo: {commands[name].interrupted if name in commands else 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _require_shared(name: str, arguments: list[str]) -> None:
    """Only one pre-training at a time can be shared by several processes."""
    if name != "pretrain":
        raise UserError(f"`d2ppo {name}` is one process; start it without torchrun (or unset WORLD_SIZE)")
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("a sweep (-m) runs one process at a time; start it without torchrun, or each of its runs by it")


def _first_to_fail() -> bool:
    from .distributed import first_to_fail  # torch, of which the other commands need nothing to say what is wrong

    return first_to_fail()


if __name__ == "__main__":
    sys.exit(main())
