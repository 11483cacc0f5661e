"""Finding a task's model: in a folder of bundles, in the user's cache, or by asking robosuite to build it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from d2ppo_core.errors import UserError
from d2ppo_core.machine import SIMULATION
from d2ppo_core.tasks import load_task, task_names

from ..robosuite_env import MODEL_SEED, env_kwargs
from .compiler import cache_folder
from .task_model import TaskModel, load_task_model

BUNDLES = "D2PPO_BUNDLES"  # environment variable: a folder of files that `d2ppo bundle` wrote
KEPT_MODELS = 2  # of each environment in the cache
# What a cached model was made by.
_MAKERS = ("from_robosuite.py", "trimming.py", "variants.py", "task_model.py", "../robosuite_env.py")


@lru_cache(maxsize=4)
def find_task_model(environment: str) -> TaskModel:
    """The model of one of robosuite's tasks, e.g. "Lift"."""
    env_kwargs(environment)  # refuses unknown names
    given = bundle_path(environment)
    if given is not None and given.exists():
        return _of(environment, given)
    cached = cache_folder() / f"{environment}-{_digest(environment)}.safetensors"
    if cached.exists():
        try:
            return _of(environment, cached)
        except UserError:
            pass  # a damaged cache is made anew
    if find_spec("robosuite") is None:
        where = f"{given} is not there" if given else f"${BUNDLES} names no folder of bundles"
        raise UserError(
            f"building {environment} needs robosuite 1.4.1, which is not installed, and {where}; run `make setup`, or "
            f"`d2ppo bundle task={task_of(environment)}` on a machine that has it"
        )
    from .from_robosuite import build

    print(f"building the model of {environment} (once, some seconds) ...", file=sys.stderr, flush=True)
    task = build(environment)
    try:
        task.save(cached)
        _forget_old(environment)
    except UserError as error:
        print(f"the model is not kept for the next time ({error})", file=sys.stderr)
    return task


def _forget_old(environment: str) -> None:
    """Models of earlier versions of this package pile up, 30 MB and more each."""
    kept = sorted(cache_folder().glob(f"{environment}-*.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-KEPT_MODELS]:
        path.unlink(missing_ok=True)


def bundle_path(environment: str) -> Path | None:
    """Where the environment variable says that this task's bundle lies."""
    folder = os.environ.get(BUNDLES)
    return Path(folder) / f"{task_of(environment)}.safetensors" if folder else None


def _of(environment: str, path: Path) -> TaskModel:
    task = load_task_model(path)
    if task.facts.environment != environment:
        raise UserError(f"{path} is a bundle of {task.facts.environment}, not of {environment}; make it anew")
    return task


def task_of(environment: str) -> str:
    """The task whose environment this is."""
    return next(name for name in task_names() if load_task(name).environment == environment)


def _digest(environment: str) -> str:
    """Names everything that a cached model depends on, the paths of robosuite's meshes inside it too."""
    digest = hashlib.sha256(json.dumps([SIMULATION, MODEL_SEED, env_kwargs(environment)]).encode())
    digest.update(repr(load_task(task_of(environment))).encode())
    for name in _MAKERS:
        digest.update((Path(__file__).parent / name).read_bytes())
    found = find_spec("robosuite")
    digest.update(str(found.origin if found else "").encode())
    return digest.hexdigest()[:20]
