"""A session's desk without ROS: policies that are only names, and a robot that does what it is told at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from d2ppo_ros.trials.desk import Desk
from d2ppo_ros.trials.journal import NAME, Journal
from d2ppo_ros.trials.policies import Curtain, Policy
from d2ppo_ros.trials.session import Plan, Session
from d2ppo_ros.trials.system import Ended, Status, Trouble

NAMES = ("heron", "walrus", "ibex")


def policies(folder: Path, names: tuple[str, ...] = NAMES) -> list[Policy]:
    """Policies as far as the desk looks at them."""
    digests = [f"{n:x}{'d' * 62}{n:x}" for n in range(1, 1 + len(names))]
    paths = [folder / "runs" / name / "policy.safetensors" for name in names]
    return [Policy(*about, SimpleNamespace()) for about in zip(names, paths, digests, strict=True)]


def plan(found: list[Policy], episodes: int = 3, seed: int = 7, blind: bool = True) -> Plan:
    return Plan(seed, tuple(range(100, 100 + episodes)), blind, tuple(policy.about for policy in found))


class FakeRig:
    """Remembers what it was told; a trial lasts until it is ended, or `lasts` seconds."""

    def __init__(self, simulated: bool = True) -> None:
        self.simulated, self.lasts = simulated, 0.0
        self.calls: list[tuple[str, Any]] = []
        self.state, self.reason, self.stopped_at = "READY", "", 0.0
        self.broken = ""  # what loading complains of
        self.slow = 0.0  # s that loading takes
        self.late = 0.0  # s until a trial that was asked for really begins
        self.cameras = ["wrist"]
        self._over = threading.Event()

    def up(self) -> None:
        self.calls.append(("up", None))

    def load(self, policy: Policy) -> None:
        self.calls.append(("load", policy.name))
        time.sleep(self.slow)
        if self.broken:
            raise Trouble(self.broken.format(path=policy.path, digest=policy.digest, name=policy.name))

    def reset(self, seed: int) -> None:
        self.calls.append(("reset", seed))

    def ready(self) -> None:
        self._over.clear()

    def run(self, trial: str, seed: int, elapsed: Callable[[float], None]) -> Ended:
        self.calls.append(("run", (trial, seed)))
        time.sleep(self.late)
        elapsed(0.5)
        ended = self._over.wait(self.lasts or 30.0)
        if self.state == "STOPPED":
            return Ended(f"safety: {self.reason}", False, 3, 0.2, "", [{"after": 0.1, "state": "STOPPED"}])
        return Ended("cancelled" if ended else "success", not ended, 10, 0.5)

    def finish(self) -> None:
        self._over.set()

    def stop(self) -> None:
        self.stopped_at = time.monotonic()
        self.state, self.reason = "STOPPED", "emergency stop"
        self._over.set()

    def arm(self) -> str:
        if self.state != "READY":
            return f"cannot arm: safety is {self.state}"
        self.state = "ARMED"
        return ""

    def rearm(self) -> str:
        self.state, self.reason = "READY", ""
        return ""

    def disarm(self) -> str:
        self.state = "READY" if self.state == "ARMED" else self.state
        return ""

    def status(self) -> Status:
        arm = {"arm": 0, "position": [0.1, -0.02, 0.96], "force": 1.5, "fault": "", "ok": True, "age": 0.01}
        return Status({"state": self.state, "check": "", "reason": self.reason, "age": 0.0}, [arm], self.cameras)

    def picture(self, camera: str) -> tuple[int, np.ndarray] | None:
        if camera not in self.cameras:
            return None
        ramp = np.linspace(0, 255, 160, dtype=np.uint8)
        rows = np.repeat(ramp[:120, None], 160, 1)
        return time.time_ns(), np.stack([rows, np.repeat(ramp[None], 120, 0), 255 - rows], -1)

    def close(self) -> None:
        self.calls.append(("close", None))


def make(folder: Path, rig: FakeRig, episodes: int = 2, names: tuple[str, ...] = NAMES[:2], seed: int = 7,
         blind: bool = True) -> Desk:  # fmt: skip
    """A desk with a new session in `folder`, or with the one that is there; not begun."""
    found, journal = policies(folder, names), Journal(folder / NAME, patience=0.0)
    session = Session(journal, None if journal.events else plan(found, episodes, seed, blind))
    desk = Desk(session, found, rig, folder, Curtain([policy.about for policy in found], session.hidden))
    desk.journal = journal  # type: ignore[attr-defined]
    return desk


def until(done: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.005)
    return answer


def phase(desk: Desk, wanted: str) -> None:
    until(lambda: desk.phase == wanted)


def leave(desk: Desk) -> None:
    """As a program does that is killed: only the file is left."""
    desk.close()
    desk.journal.close()  # type: ignore[attr-defined]


def one_trial(desk: Desk, outcome: str = "success", **about: str) -> None:
    """From SETUP through a trial that the person ends, to its outcome."""
    phase(desk, "SETUP")
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    desk.act("arm", desk.step, {})
    desk.act("start", desk.step, {})
    phase(desk, "RUNNING")
    until(lambda: desk.rig.calls[-1][0] == "run")
    desk.act("end", desk.step, {})
    phase(desk, "JUDGE")
    desk.act("save", desk.step, {"outcome": outcome, **about})
    until(lambda: desk.phase in ("SETUP", "DONE"))
