"""Reading and writing robomimic's HDF5 layout with plain h5py.

data                    attrs: total, env_args (JSON: env_name, env_version, type, env_kwargs), and our own
                        rendering (JSON: contract.Camera of each camera); without it robosuite's settings are assumed
data/demo_i             attrs: num_samples, model_file (MuJoCo XML)
  actions (T, Da) f8    states (T, 1+nq+nv) f8 [time, qpos, qvel] before each action
  rewards (T,)          dones (T,)
  obs/<key> (T, ...)    next_obs/<key> (T, ...)
  obs/<camera>_image (T, H, W, 3) uint8, upright RGB, compressed
mask/<name>             names of demonstrations, e.g. train and valid
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..contract import ActionSpec, Camera, ObservationSpec, SimulatorSpec
from ..errors import UserError
from ..files import atomic_path, sha256
from ..response import KP
from . import robosuite15

RENDERING = "rendering"
"""Attribute of `data` that says how the images were made: JSON, a list of `contract.Camera`."""
STOCK_LOOK = {"colour": "rgb", "origin": "top_left", "reflections": True, "multisampling": 4}
"""How robomimic's images are, which say nothing: rendered at robosuite's own settings and flipped upright."""


@dataclass
class Episode:
    """One demonstration of T control steps. `obs[key]` is what the policy saw before each of the `actions`."""

    obs: dict[str, np.ndarray]  # (T, ...)
    actions: np.ndarray  # (T, Da) float64, raw policy units
    rewards: np.ndarray  # (T,)
    dones: np.ndarray  # (T,) int
    states: np.ndarray | None = None  # (T, 1+nq+nv)
    next_obs: dict[str, np.ndarray] | None = None
    model_file: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Demonstrations:
    """Episodes of one file, reduced to what a policy of a given contract needs."""

    path: str
    digest: str  # sha256 of the file
    simulator: SimulatorSpec
    states: list[np.ndarray]  # for each episode (T, Do) float32, keys in the contract's order
    actions: list[np.ndarray]  # for each episode (T, Da) float32
    images: dict[str, list[np.ndarray]] = field(default_factory=dict)  # by camera, for each episode (T, H, W, 3) uint8


def write_demonstrations(
    path: str | Path, episodes: Iterable[Episode], env_args: dict[str, Any], attrs: dict[str, Any]
) -> None:
    """Write a file that robomimic opens. It appears whole or not at all; `attrs` are added to `data`.

    It is composed in memory: HDF5 itself ends the process when the disk is full.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", track_order=True) as file:
        data, total, names = file.create_group("data"), 0, []
        for index, episode in enumerate(episodes):
            group = data.create_group(f"demo_{index}")
            _write_episode(group, episode)
            total += len(episode.actions)
            names.append(group.name.rsplit("/", 1)[1].encode())
        data.attrs.update({"total": total, "env_args": json.dumps(env_args), **attrs})
        held_out = max(1, len(names) // 10)  # robomimic's own convention: every file carries a train/valid split
        file["mask/train"], file["mask/valid"] = names[:-held_out], names[-held_out:]
    with atomic_path(path) as partial:
        partial.write_bytes(memory.getbuffer())


def _write_episode(group: h5py.Group, episode: Episode) -> None:
    group.attrs.update({"num_samples": len(episode.actions), "model_file": episode.model_file, **episode.attrs})
    for name in ("actions", "rewards", "dones", "states"):
        if getattr(episode, name) is not None:
            group.create_dataset(name, data=getattr(episode, name))
    for name in ("obs", "next_obs"):
        for key, value in (getattr(episode, name) or {}).items():
            packing = {"compression": "gzip"} if value.ndim == 4 else {}  # images, as robomimic packs them
            group.create_dataset(f"{name}/{key}", data=value, **packing)


def read_demonstrations(
    path: str | Path, environment: str, observation: ObservationSpec, action: ActionSpec, max_episodes: int = 0
) -> Demonstrations:
    """Read and check a robomimic file against the contract.

    Args:
        environment: the simulator's name of the task that the file must be of, e.g. "Lift".
        max_episodes: keep only the first n demonstrations; 0 keeps all.

    Raises:
        UserError: missing, truncated or foreign file; wrong task, key, size or control rate; NaN.
    """
    path = Path(path)
    digest = sha256(path)
    try:
        with h5py.File(path, "r") as file:
            data = file["data"]
            simulator = _simulator(data, path, environment, action)
            _require_rendering(data, path, observation.cameras)
            names = sorted((n for n in data if n.startswith("demo")), key=lambda n: int(n.rsplit("_", 1)[1]))
            names = names[:max_episodes] if max_episodes else names
            if not names:
                raise UserError(f"{path} holds no demonstrations; record some with `d2ppo demos`")
            states = [_states(data[name], observation, simulator, path) for name in names]
            actions = [_actions(data[name], action, path) for name in names]
            images = {c.name: [_images(data[name], c, path) for name in names] for c in observation.cameras}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable robomimic HDF5 file ({error}); copy or record it again") from error
    if _is_15(simulator.version):
        print(f"{path} was recorded with robosuite {simulator.version}: {robosuite15.NOTE}", file=sys.stderr)
    return Demonstrations(str(path), digest, simulator, states, actions, images)


def _is_15(version: str) -> bool:
    return version.startswith("1.5")


def _simulator(data: h5py.Group, path: Path, environment: str, action: ActionSpec) -> SimulatorSpec:
    """Check the file's env_args (task, controller, control rate) and say where the data came from."""
    args = json.loads(data.attrs["env_args"])
    name, version, kwargs = (
        args.get("env_name", ""),
        str(args.get("env_version", "unknown")),
        args.get("env_kwargs", {}),
    )
    if name != environment:
        raise UserError(
            f"{path} holds demonstrations of {name or 'an unnamed task'}, not of {environment}; "
            "choose the matching task="
        )
    controller = kwargs.get("controller_configs") or {}
    wrong = []
    if kwargs.get("control_freq", action.control_hz) != action.control_hz:
        wrong.append(f"control_freq {kwargs['control_freq']} instead of {action.control_hz}")
    if _is_15(version):
        wrong += robosuite15.controller_differences(kwargs, action)
    elif controller:
        wrong += _controller_differences(controller, action)
    if wrong:
        made = f"recorded with robosuite {version}" if _is_15(version) else "recorded"
        raise UserError(
            f"{path} was {made} under another contract: {'; '.join(wrong)}; use data of the task's own controller"
        )
    about = _about_controller(version, kwargs)
    simulator = kwargs.get("simulator", "robosuite")
    return SimulatorSpec(name=simulator, version=version, environment=name, controller=about)


def _about_controller(version: str, env_kwargs: dict[str, Any]) -> str:
    if _is_15(version):
        return robosuite15.describe_controller(env_kwargs)
    controller = env_kwargs.get("controller_configs")
    if not controller:
        return "none"
    return f"{controller.get('type', 'none')} kp {controller.get('kp')} damping {controller.get('damping')}"


def _controller_differences(controller: dict[str, Any], action: ActionSpec) -> list[str]:
    scale = [action.position_scale] * 3 + [action.rotation_scale] * 3
    wrong = []
    if controller.get("type") != "OSC_POSE":
        wrong.append(f"controller {controller.get('type')} instead of OSC_POSE")
    if controller.get("control_delta", True) is not True:
        wrong.append("absolute instead of delta actions")
    if controller.get("output_max", scale) != scale:
        wrong.append(f"output_max {controller['output_max']} instead of {scale}")
    for name, value in (("kp", KP), ("damping", 1)):
        if np.any(np.asarray(controller.get(name, value)) != value):  # one number, or one for each direction
            wrong.append(f"{name} {controller[name]} instead of {value:g}")
    return wrong


def _states(demo: h5py.Group, observation: ObservationSpec, simulator: SimulatorSpec, path: Path) -> np.ndarray:
    """(T, Do) float32 in the contract's order."""
    columns = {}
    for key in observation.lowdim:
        where = f"{path}: {demo.name}/obs/{key.name}"
        if f"obs/{key.name}" not in demo:
            raise UserError(f"{where} is missing; the task needs it: add the key when extracting observations")
        column = np.asarray(demo[f"obs/{key.name}"])
        if column.ndim != 2 or column.shape[1] != key.size:
            raise UserError(f"{where} has shape {column.shape}, expected (T, {key.size}); is it the file of this task?")
        columns[key.name] = _finite(column, where)
    if {len(c) for c in columns.values()} != {len(demo["actions"])}:
        raise UserError(
            f"{path}: {demo.name} has observations and actions of different lengths; the file is damaged, record it "
            "again"
        )
    if _is_15(simulator.version) and "object" in columns:
        where = f"{path}: {demo.name}/obs/object"
        columns["object"] = robosuite15.object_as_in_141(simulator.environment, columns, where)
    return np.concatenate(list(columns.values()), axis=1, dtype=np.float32)  # To = 1 each: [T, size] ... -> [T, Do]


def _actions(demo: h5py.Group, action: ActionSpec, path: Path) -> np.ndarray:
    """(T, Da) float32."""
    where, actions = f"{path}: {demo.name}/actions", np.asarray(demo["actions"])
    if actions.ndim != 2 or actions.shape[1] != action.size:
        raise UserError(f"{where} has shape {actions.shape}, expected (T, {action.size}); is it the file of this task?")
    if np.abs(_finite(actions, where)).max(initial=0) > 1 + 1e-6:
        raise UserError(f"{where} leaves [-1, 1]: these are not {action.meaning} actions; convert them to deltas first")
    return actions.astype(np.float32)


def _require_rendering(data: h5py.Group, path: Path, cameras: tuple[Camera, ...]) -> None:
    """Refuse images that were made otherwise than the contract says; what a file leaves unsaid is robosuite's own."""
    if not cameras:
        return
    stated = {about["name"]: about for about in json.loads(data.attrs.get(RENDERING, "[]"))}
    wrong = []
    for camera in cameras:
        made = stated.get(camera.name, STOCK_LOOK)
        wrong += [
            f"{camera.name}.{name}: {value} | {made[name]}"
            for name, value in camera.model_dump().items()
            if name in made and made[name] != value
        ]
    if wrong:
        said = "says" if stated else "does not say how its images were rendered, so robosuite's settings are assumed"
        raise UserError(
            f"the images in {path} are not what the task's contract states; the file {said} (task | file): "
            f"{'; '.join(wrong)}; record them with `d2ppo demos`, or state the file's settings in the task's cameras"
        )


def _images(demo: h5py.Group, camera: Camera, path: Path) -> np.ndarray:
    """(T, H, W, 3) uint8, as they lie in the file."""
    where = f"{path}: {demo.name}/obs/{camera.key}"
    if f"obs/{camera.key}" not in demo:
        raise UserError(f"{where} is missing; the task has this camera: record or extract its images")
    stored, expected = demo[f"obs/{camera.key}"], (len(demo["actions"]), camera.height, camera.width, 3)
    if stored.dtype != np.uint8 or stored.shape != expected:
        raise UserError(f"{where} is {stored.dtype} {stored.shape}, expected uint8 {expected}")
    return np.asarray(stored)


def _finite(values: np.ndarray, where: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise UserError(f"{where} holds NaN or infinity at step {bad[0]} ({len(bad)} steps); remove that demonstration")
    return values
