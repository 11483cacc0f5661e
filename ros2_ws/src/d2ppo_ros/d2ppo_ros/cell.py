"""What was measured of a cell and lies in files: calibrations, latencies, serial numbers; and which node reads what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError, explain_os_errors

NAMES = ("camera", "robot_observation", "robot_action", "gripper_observation", "gripper_action")


@dataclass(frozen=True)
class Latencies:
    """Of `latency.yaml`, as `d2ppo calibrate latency` writes it: s by name; what was not measured is absent."""

    seconds: dict[str, float]

    def chosen(self, **wanted: str) -> dict[str, float]:
        """Parameters by name: `chosen(latency="camera")`; only those that were measured, and never negative."""
        return {key: max(0.0, self.seconds[name]) for key, name in wanted.items() if name in self.seconds}


def read_latencies(path: str | Path) -> Latencies:
    """The file's latencies; none of an empty path."""
    if not path:
        return Latencies({})
    with explain_os_errors("reading", path):
        text = Path(path).read_text(encoding="utf-8")
    try:
        found = dict(yaml.safe_load(text)["latency"])
        seconds = {name: float(value) for name, value in found.items()}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no file of latencies ({' '.join(str(error).split())}); make one with `d2ppo calibrate latency`"
        ) from error
    if wrong := [name for name, value in seconds.items() if name not in NAMES or not math.isfinite(value)]:
        raise UserError(f"{path}: latency {wrong[0]} is none of {', '.join(NAMES)}, or no number; measure it anew")
    return Latencies(seconds)


STANDIN_HOSTS = ("127.0.0.2", "127.0.0.3")  # of the stand-in arms
SIMULATED_TABLE = 0.8  # m: the table's top in the simulator


def simulated_bases(arms: int) -> tuple[list[float], list[float]]:
    """Where robosuite has the arms' bases on its table tasks: m, 3 numbers an arm, and rad about the vertical."""
    if arms == 1:
        return [-0.56, 0.0, 0.912], [0.0, 0.0]
    return [0.0, -0.81, 0.912, 0.0, 0.81, 0.912], [math.pi / 2, -math.pi / 2]


def calibration_of(folder: str, camera: str) -> dict[str, str]:
    """The camera node's parameter: its file in the folder of calibrations, where there is such a folder."""
    if not folder:
        return {}
    path = Path(folder) / f"{camera}.json"
    if not path.is_file():
        raise UserError(
            f"calibrations={folder}: there is no {path.name}; put the file that `d2ppo calibrate` wrote for camera "
            f"{camera} there, under this name"
        )
    return {"calibration": str(path.absolute())}


def real_cameras(text: str, cameras: Sequence[Camera]) -> dict[str, Any]:
    """NAME=SERIAL,NAME=SERIAL as parameters of the driver: one for each camera that the policy looks through."""
    pairs = dict(part.strip().partition("=")[::2] for part in text.split(","))
    names = [camera.name for camera in cameras]
    if set(pairs) != set(names) or not all(pairs.values()):
        raise UserError(
            f"realsense={text}: the policy looks through {', '.join(names) or 'no camera'}; give each its serial "
            f"number, as realsense={','.join(f'{name}=123456789012' for name in names)}"
        )
    return {"cameras": names, "serials": [pairs[name] for name in names], "device": "real"}


def software_cameras(cameras: Sequence[Camera]) -> list[dict[str, Any]]:
    """Parameters of the stand-ins' drivers, one for each size of pictures: they show just what the policy sees."""
    sizes = dict.fromkeys((camera.height, camera.width) for camera in cameras)
    drivers = []
    for height, width in sizes:
        same = [camera for camera in cameras if (camera.height, camera.width) == (height, width)]
        drivers.append({
            "cameras": [camera.name for camera in same], "device": "software", "width": width, "height": height,
            "fields_of_view": [float(camera.field_of_view) for camera in same],
        })  # fmt: skip
    return drivers
