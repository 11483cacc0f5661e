"""`d2ppo bundle`: everything about one task in one file, for machines without robosuite."""

from __future__ import annotations

from pathlib import Path

from d2ppo_core.cli import Command
from d2ppo_core.errors import UserError

HELP = """d2ppo bundle: write one task's compiled model, ids and placement rules as one file

usage: d2ppo bundle task=NAME [out=FILE] [run_dir=FOLDER] [overwrite=true]

  task       lift, can, square or transport
  out        the file; by default bundles/NAME.safetensors
  run_dir    or the folder in which NAME.safetensors is put
  overwrite  replace a file that is there

On a machine with mujoco and this package, but without robosuite, set D2PPO_BUNDLES=FOLDER and use
simulator=native. The file must keep its name, NAME.safetensors.

example:
  d2ppo bundle task=square out=bundles/square.safetensors"""
_KEYS = ("task", "out", "run_dir", "overwrite")


def bundle(arguments: list[str]) -> int:
    """Run the command; exit code."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(HELP)
        return 0
    options = _options(arguments)
    from d2ppo_core.tasks import load_task

    task = load_task(options["task"])
    if task.simulator not in ("robosuite", "native"):
        raise UserError(f"task '{task.name}' runs in the simulator '{task.simulator}', which needs no bundle")
    folder = Path(options.get("run_dir", "bundles"))
    path = Path(options.get("out", folder / f"{task.name}.safetensors"))
    if path.exists() and options.get("overwrite", "false").lower() != "true":
        raise UserError(f"{path} is there already; choose another out=FILE, or add overwrite=true")
    from .library import find_task_model

    find_task_model(task.environment).save(path)
    size = path.stat().st_size / 1e6
    print(f"{path} ({size:.0f} MB): on a machine without robosuite, set D2PPO_BUNDLES={path.parent.absolute()}")
    return 0


def _options(arguments: list[str]) -> dict[str, str]:
    """The words after `d2ppo bundle`, each as key=value."""
    options = dict(a.removeprefix("--").partition("=")[::2] for a in arguments)
    unknown = sorted(set(options) - set(_KEYS))
    if unknown:
        raise UserError(f"`d2ppo bundle` has no option '{unknown[0]}'; it has {', '.join(k + '=' for k in _KEYS)}")
    if not options.get("task"):
        raise UserError("no task is given; add task=NAME, for example task=lift")
    return options


BUNDLE = Command("a task's compiled model in one file, for machines without robosuite", bundle)
