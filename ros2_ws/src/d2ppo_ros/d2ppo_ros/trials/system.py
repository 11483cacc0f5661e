"""What the desk works with, as it sees it: `rig.py` is the real one, tests have their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .policies import Policy


class Trouble(Exception):
    """What went wrong with the robot or its nodes, in words."""


@dataclass(frozen=True)
class Ended:
    """How a trial came to its end."""

    reason: str  # "success", "time", "cancelled", or why it was stopped
    success: bool  # as the simulator sees it
    steps: int = 0
    seconds: float = 0.0
    record: str = ""
    safety: list[dict[str, Any]] = field(default_factory=list)  # changes of state, with s since the begin
    counts: dict[str, int] = field(default_factory=dict)  # commands passed, changed, refused


@dataclass(frozen=True)
class Status:
    """How robot and safety stand."""

    safety: dict[str, Any]  # state, check, reason, age in s
    robot: list[dict[str, Any]] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    down: str = ""  # what has ended that is needed


class Rig(Protocol):
    """What the desk works with. `finish` and `stop` may be called at any time, from any thread."""

    simulated: bool

    def up(self) -> None: ...
    def load(self, policy: Policy) -> None: ...
    def reset(self, seed: int) -> None: ...
    def ready(self) -> None: ...  # before `run` is asked for: a `finish` from now on ends that trial
    def run(self, trial: str, seed: int, elapsed: Callable[[float], None]) -> Ended: ...
    def finish(self) -> None: ...
    def stop(self) -> None: ...
    def arm(self) -> str: ...
    def rearm(self) -> str: ...
    def disarm(self) -> str: ...
    def status(self) -> Status: ...
    def picture(self, camera: str) -> Any: ...
    def close(self) -> None: ...
