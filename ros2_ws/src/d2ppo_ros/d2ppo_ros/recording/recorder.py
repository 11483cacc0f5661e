"""What the recorder's node records, and when: without ROS.

A trial is everything that caused the motion. Topics are named relative to the robot's namespace; `{}` stands for the
number of an arm or the name of a camera.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from d2ppo_core.errors import UserError
from d2ppo_core.version import code_version

from ..parameters import parameter
from .writer import Topic, TrialWriter

OURS = "d2ppo_interfaces/msg/"
TOPICS = {
    "robot/state": OURS + "StateVector",
    "robot/arm{}": OURS + "ArmState",
    "robot/contract": "std_msgs/msg/String",
    "object/state": OURS + "StateVector",
    "policy/contract": "std_msgs/msg/String",
    "policy/request": OURS + "ChunkRequest",
    "policy/chunk": OURS + "ActionChunk",
    "policy/status": OURS + "PolicyStatus",
    "command/requested": OURS + "Command",
    "command/sent": OURS + "Command",
    "command/applied": OURS + "Command",
    "safety/state": OURS + "SafetyState",
    "episode": OURS + "EpisodeState",
    "camera/{}/contract": "std_msgs/msg/String",
    "camera/{}/setup": "std_msgs/msg/String",
    "camera/{}/image": "sensor_msgs/msg/Image",
    "camera/{}/frame": OURS + "FrameInfo",
    "camera/{}/camera_info": "sensor_msgs/msg/CameraInfo",
    "camera/{}/raw": "sensor_msgs/msg/Image",
}
OPTIONAL = ("object/state", "episode", "camera/{}/setup")  # recorded where somebody publishes them, never waited for
LIBRARIES = ("torch", "numpy", "rosbags", "mujoco", "robosuite")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RecorderSettings:
    """Parameters of the recorder's node."""

    folder: str = parameter("runs/records", "where trials go, each into a folder of its own name")
    arms: int = parameter(1, "how many arms the robot has", low=1, high=2)
    cameras: list[str] = parameter([], "names of the policy's cameras")
    raw: bool = parameter(False, "record the cameras' raw pictures, too: many MB a second")
    extra: list[str] = parameter([], "more topics to record, each as 'NAME package/msg/Type'")
    patience: float = parameter(5.0, "how long a trial's begin waits for publishers", unit="s", low=0.0, high=60.0)
    settle: float = parameter(0.2, "then, until they have found the recorder, too", unit="s", low=0.0, high=5.0)
    linger: float = parameter(1.0, "recorded on after the stop", unit="s", low=0.0, high=10.0)
    queue: int = parameter(256, "what may wait for the disk; more is dropped", unit="MiB", low=1, high=16384)


def _filled(name: str, settings: RecorderSettings) -> list[str]:
    """A topic's names: of one with a gap, one for each arm or camera."""
    arms = [str(arm) for arm in range(settings.arms)]
    return [name.format(place) for place in (arms if name.startswith("robot/") else settings.cameras)] if (
        "{}" in name) else [name]  # fmt: skip


def optional(settings: RecorderSettings) -> set[str]:
    """Relative names of the topics that are not waited for."""
    return {name for gap in OPTIONAL for name in _filled(gap, settings)}


def wanted(settings: RecorderSettings) -> dict[str, str]:
    """Relative (or, of extras, any) name of each topic to record, and its type."""
    found = {}
    for gap, kind in TOPICS.items():
        if gap != "camera/{}/raw" or settings.raw:
            found.update(dict.fromkeys(_filled(gap, settings), kind))
    for line in settings.extra:
        name, _, kind = line.strip().partition(" ")
        if not re.fullmatch(r"\w+/msg/\w+", kind.strip()):
            raise UserError(f"recorder: extra holds '{line}'; write 'NAME package/msg/Type'")
        found[name] = kind.strip()
    return found


class Recorder:
    """One trial at a time. Any thread may call `take`; `start` and `stop` are called by one."""

    def __init__(self, settings: RecorderSettings) -> None:
        self.settings = settings
        self._writer: TrialWriter | None = None

    @property
    def folder(self) -> Path | None:
        """Of the trial that is being recorded."""
        return self._writer.folder if self._writer else None

    def start(self, trial: str, metadata: str, topics: Sequence[Topic], seen: Mapping[str, Any] | None = None) -> Path:
        """Open the trial's folder; `metadata` is a JSON object, or empty; `seen`, what the recorder knows itself.

        Raises:
            UserError: another trial is being recorded, no name for a folder, no JSON, or the folder exists.
        """
        if self._writer:
            raise UserError(f"{self._writer.folder} is still being recorded; stop that first")
        if not NAME.fullmatch(trial):
            raise UserError(f"'{trial}' cannot name a trial; use letters, digits, dots, dashes and underscores")
        try:
            stated = json.loads(metadata or "{}")
        except ValueError as error:
            raise UserError(f"the metadata of {trial} are no JSON ({error})") from error
        if not isinstance(stated, dict):
            raise UserError(f"the metadata of {trial} are {type(stated).__name__}, not an object of names and values")
        about = {**stated, **(seen or {}), "trial": trial, "versions": versions()}
        path = Path(self.settings.folder).expanduser() / trial
        self._writer = TrialWriter(path, topics, about, self.settings.queue * 2**20)
        return path

    def take(self, topic: str, received: int, message: bytes) -> None:
        """A message has come; outside of a trial it is forgotten."""
        if writer := self._writer:
            writer.write(topic, received, message)

    def lose(self, topic: str, messages: int) -> None:
        """The middleware says that messages were lost."""
        if writer := self._writer:
            writer.lose(topic, messages)

    def stop(self, why: str) -> dict[str, Any]:
        """End the trial; what its trial.json says."""
        if not self._writer:
            raise UserError("nothing is being recorded")
        writer, self._writer = self._writer, None
        return writer.close({"ended": why})


def versions() -> dict[str, str]:
    """Of this program, Python, and the libraries on which a trial may depend."""
    found = {"d2ppo": code_version(), "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def until(done: Callable[[], bool], seconds: float) -> None:
    """Wait until `done`, at most so long."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
