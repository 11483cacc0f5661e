"""Tasks by name: the parsed contract sides that a task's group file states, and where the task comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError

from .conf.schema import Config, TaskConfig
from .contract import ActionSpec, ObservationSpec, PolicySpec, explain_validation
from .errors import UserError, choose

GROUP = Path(__file__).parent / "conf" / "task"


def task_names() -> list[str]:
    """Every task with a group file."""
    return sorted(path.stem for path in GROUP.glob("*.yaml"))


def load_task(name: str) -> TaskConfig:
    """The task's group file as a typed configuration."""
    if name not in task_names():
        raise UserError(f"there is no task '{name}'{choose(name, task_names())}")
    merged = OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(GROUP / f"{name}.yaml"))
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def require_task(config: Config) -> TaskConfig:
    """The task given on the command line; demos and pre-training cannot do without."""
    if not config.task.name:
        raise UserError(f"no task is given; add task=NAME, one of {', '.join(task_names())}")
    return _in_simulator(config)


def task_of_checkpoint(config: Config, spec: PolicySpec, checkpoint: str) -> TaskConfig:
    """The checkpoint's own task; refuses another one given on the command line. Also sets `config.task`."""
    if config.task.name and config.task.name != spec.task:
        raise UserError(
            f"{checkpoint} is a policy for task '{spec.task}', not '{config.task.name}'; leave task= (or "
            "the experiment= that sets it) out, or change the checkpoint"
        )
    if not config.task.name:
        config.task = load_task(spec.task)
    return _in_simulator(config)


def _in_simulator(config: Config) -> TaskConfig:
    """The task, in the simulator that `simulator=` asks for."""
    config.task.simulator = config.simulator or config.task.simulator
    return config.task


def observation_spec(task: TaskConfig) -> ObservationSpec:
    """What the task says a policy sees."""
    return validated(ObservationSpec, task.observation, f"task.observation of '{task.name}'")


def action_spec(task: TaskConfig) -> ActionSpec:
    """What the task says an action means."""
    return validated(ActionSpec, task.action, f"task.action of '{task.name}'")


def validated(model: Any, values: dict[str, Any], where: str) -> Any:
    """A configuration dictionary as the part of the contract it states; `where` names it in the error."""
    try:
        return TypeAdapter(model).validate_json(json.dumps(values))
    except ValidationError as error:
        raise UserError(f"{where} is not valid: {explain_validation(error)}") from error
