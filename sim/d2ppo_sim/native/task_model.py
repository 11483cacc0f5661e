"""All that the core needs of one task: the compiled MuJoCo model, ids, placement rules. Kept and carried as one file.

The file is safetensors: the model as MuJoCo's own binary (compressed), what differs in its other geometries, and the
rest as JSON in the header. A machine that has it needs mujoco and this package, but no robosuite.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from d2ppo_core.contract import ActionSpec, Frozen, ObservationSpec, SimulatorSpec, explain_validation
from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import atomic_path

from .variants import Variants

Pair = tuple[float, float]


class Arm(Frozen):
    """Ids and addresses in the MuJoCo model; where the arm starts."""

    site: int  # grip site
    hand: int  # body whose orientation is observed
    qpos: tuple[int, ...]
    dof: tuple[int, ...]
    motor: tuple[int, ...]
    finger_qpos: tuple[int, ...]
    finger_motor: tuple[int, ...]
    start: tuple[float, ...]  # rad, before noise
    finger_start: tuple[float, ...]  # m
    noise: float  # rad, standard deviation for each joint


class Placement(Frozen):
    """How one free object is placed at a reset (the rules of robosuite's UniformRandomSampler)."""

    name: str
    qpos: int  # address of its free joint
    x: Pair  # m, world
    y: Pair
    z: float  # m, world
    angle: Pair  # rad
    axis: Literal["x", "y", "z"]
    turned: tuple[tuple[float, ...], ...] = ()  # one of these rotations is drawn and applied first
    inside: str = ""  # this object's position in x and y replaces the drawn one
    apart: bool  # redraw until it overlaps none that was placed before
    radius: float  # m, horizontal
    top: float  # m, above its origin
    bottom: float  # m, negative
    shown: bool = True  # else moved out of the scene after drawing, without contacts


class Read(Frozen):
    """One piece of the "object" observation, see core.hpp."""

    kind: str
    id: int
    other: int = 0
    arm: int = 0


class Success(Frozen):
    """When the task is done, see core.hpp."""

    kind: str
    body: int = 0
    other: int = 0
    limit: tuple[float, ...] = ()


class Control(Frozen):
    """The controller's numbers."""

    substeps: int
    kp: float
    kd: float
    posture_kp: float
    gripper_speed: float


class TaskFacts(Frozen):
    """The part of a task model that is JSON."""

    format: Literal[2] = 2
    mujoco: str
    environment: str
    observation: ObservationSpec
    action: ActionSpec
    simulator: SimulatorSpec
    arms: tuple[Arm, ...]
    placements: tuple[Placement, ...]
    other_placements: tuple[tuple[Placement, ...], ...] = ()  # of geometries 1, 2, ...
    reads: tuple[Read, ...]
    touch_groups: tuple[tuple[int, ...], ...] = ()  # geoms; group i is bit 1 << i
    success: Success
    control: Control
    camera: str
    env_args: dict[str, Any]  # robomimic's description of the environment

    def placements_of(self, variant: int) -> tuple[Placement, ...]:
        """The rules that hold for one geometry."""
        return (self.placements, *self.other_placements)[variant]


@dataclass(frozen=True)
class TaskModel:
    """One task, ready for the core."""

    facts: TaskFacts
    mjb: bytes
    xmls: tuple[str, ...]  # of each geometry, as robosuite wrote it: for the files of demonstrations
    variants: Variants = field(default_factory=Variants)

    def compiled(self) -> Any:
        """The `mujoco.MjModel`."""
        import mujoco

        return mujoco.MjModel.from_binary_path("task.mjb", {"task.mjb": self.mjb})

    def save(self, path: str | Path) -> None:
        """Write the bundle."""
        from safetensors.numpy import save_file

        packed = {"model": _pack(self.mjb), "xmls": _pack(json.dumps(self.xmls).encode())}
        packed |= {f"index/{name}": value for name, value in self.variants.index.items()}
        packed |= {f"values/{name}": value for name, value in self.variants.values.items()}
        with atomic_path(path) as partial:
            save_file(packed, partial, metadata={"d2ppo_task": self.facts.model_dump_json()})


def _pack(content: bytes) -> np.ndarray:
    return np.frombuffer(zlib.compress(content, 1), dtype=np.uint8)


def load_task_model(path: str | Path) -> TaskModel:
    """Read a bundle; a `UserError` says what is wrong with it."""
    import mujoco
    from safetensors import SafetensorError, safe_open

    try:
        with explain_os_errors("reading", path):
            open(path, "rb").close()
            with safe_open(str(path), framework="numpy") as file:
                facts = _facts(file.metadata(), path)
                mjb, xmls = (zlib.decompress(file.get_tensor(name).tobytes()) for name in ("model", "xmls"))
                variants = Variants(_tensors(file, "index/"), _tensors(file, "values/"))
    except (SafetensorError, zlib.error) as error:
        raise UserError(f"{path} is not a whole task bundle ({error}); make it anew with `d2ppo bundle`") from error
    if facts.mujoco != mujoco.__version__:
        raise UserError(
            f"{path} is for mujoco {facts.mujoco}, but {mujoco.__version__} is installed; install "
            f"mujoco=={facts.mujoco}, or make the bundle anew with `d2ppo bundle`"
        )
    return TaskModel(facts, mjb, tuple(json.loads(xmls)), variants)


def _tensors(file: Any, prefix: str) -> dict[str, np.ndarray]:
    names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118, no dictionary
    return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def _facts(metadata: Mapping[str, str] | None, path: str | Path) -> TaskFacts:
    if not metadata or "d2ppo_task" not in metadata:
        raise UserError(f"{path} is a safetensors file, but no task bundle; make one with `d2ppo bundle`")
    try:
        return TaskFacts.model_validate_json(metadata["d2ppo_task"])
    except ValidationError as error:
        known = json.loads(metadata["d2ppo_task"]).get("format")
        raise UserError(
            f"{path} (format {known}) is no valid task bundle ({explain_validation(error)}); "
            "make it anew with `d2ppo bundle`"
        ) from error
