"""The last section of a report: how each run was made, in enough detail to make it again."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from .conf.schema import PARTS
from .hydra_command import CONF
from .report_page import Html, details, element, join, table
from .report_runs import Run
from .version import code_version

SHARED = ("seed", "device", "threads", "wandb")  # what every command reads; run_dir, resume, overwrite change no result


def making(runs: Sequence[Run]) -> Html:
    """Wall-clock of all stages, then each run."""
    clock = table(
        ("run", "command", "state", "seed", "wall-clock"),
        [
            (
                run.name,
                run.command or "unknown",
                "finished" if run.finished else "unfinished",
                _shown(run.setting("seed")),
                duration(run.seconds),
            )
            for run in runs
        ],
        numbers=(3, 4),
    )
    note = f"Wall-clock of a resumed run counts from its last start. This page was made by d2ppo {code_version()}."
    return join([clock, element("p", note, "muted"), *[_one(run) for run in runs]])


def _one(run: Run) -> Html:
    changed = differences(run)
    facts = [
        ("code version", run.provenance.get("code_version")),
        ("simulator", _simulator(run)),
        ("dataset", run.provenance.get("dataset") or run.setting("data")),
        ("dataset digest (sha256)", run.summary.get("dataset_digest") or run.provenance.get("dataset_digest")),
        *[(f"digest of {role} (sha256)", policy.digest) for role, policy in run.policies.items()],
        *[("left out", note) for note in run.notes],
    ]
    known = [(name, element("code", value)) for name, value in facts if value]
    return join(
        [
            element("h3", run.name),
            element("pre", command_line(run, changed)) if run.command and run.config else "",
            table(("", ""), known) if known else "",
            details(f"Options that differ from the defaults ({len(changed)})", _options(changed)) if changed else "",
            details("The whole config.yaml", element("pre", run.config_text)) if run.config_text else "",
        ]
    )


def _options(changed: Sequence[tuple[str, Any, Any]]) -> Html:
    rows = [[element("code", cell) for cell in (name, _shown(value), _shown(usual))] for name, value, usual in changed]
    return table(("option", "value", "default"), rows)


def _simulator(run: Run) -> str:
    simulator = run.provenance.get("simulator")
    return " ".join(str(simulator.get(k, "")) for k in ("name", "version")) if isinstance(simulator, dict) else ""


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s, or 4.2 s"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def differences(run: Run) -> list[tuple[str, Any, Any]]:
    """(option, value, default) of what the command reads and what differs from the defaults of its task."""
    parts = (*PARTS.get(run.command, tuple(run.config)), *SHARED)
    default = flat(task_defaults(str(run.setting("task.name") or "")))
    values = {k: v for k, v in flat(run.config).items() if k.split(".")[0] in parts and k != "task.name"}
    missing = object()
    return [(k, v, default.get(k, "")) for k, v in values.items() if default.get(k, missing) != v]


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    result: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            result |= flat(item, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = item
    return result


@functools.lru_cache
def task_defaults(task: str) -> dict[str, Any]:
    """What `d2ppo COMMAND task=TASK` would run with; of a task that we do not have, what it would without one."""
    known = task in {path.stem for path in (Path(CONF) / "task").glob("*.yaml")}
    state = GlobalHydra.instance().hydra  # a caller may be inside a hydra.main of its own
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            text = OmegaConf.to_yaml(compose("config", [f"task={task}"] if known else []))
    finally:
        GlobalHydra.instance().hydra = state
    return yaml.safe_load(text)  # as config.yaml is read: enumerations by their names


def command_line(run: Run, changed: Sequence[tuple[str, Any, Any]]) -> str:
    """A command that makes the same run: the task, and every option that is not its default."""
    task = str(run.setting("task.name") or "")
    words = [f"task={_value(task)}"] if task else []
    words += [f"{key}={_value(value)}" for key, value, _ in changed]
    return " ".join(["d2ppo", run.command, *map(shlex.quote, words)])


def _value(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}: {_value(v)}" for k, v in value.items()) + "}"
    text = str(value)
    plain = all(c.isalnum() or c in "/._-+%@" for c in text) and text != ""
    return text if plain or not isinstance(value, str) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
