"""What can go wrong with a robot and its cameras, put into what the simulator sends: late, lost, frozen, silent."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..parameters import parameter

Pictures = dict[str, np.ndarray]


@dataclass(frozen=True)
class Faults:
    """Parameters of the simulator's node that may be changed while it runs."""

    image_latency: float = parameter(0.0, "how late pictures are sent", unit="s", low=0.0, high=5.0)
    image_jitter: float = parameter(0.0, "up to how much later still, at random", unit="s", low=0.0, high=5.0)
    drop_frames: float = parameter(0.0, "share of the pictures that are lost", low=0.0, high=1.0)
    frozen_camera: bool = parameter(False, "the same picture again and again, under new stamps")
    silent_camera: bool = parameter(False, "no pictures")
    state_latency: float = parameter(0.0, "how late the robot's state is sent", unit="s", low=0.0, high=5.0)
    silent_state: bool = parameter(False, "no states of the robot")
    stuck_gripper: bool = parameter(False, "the fingers do not move")
    blocked_arm: bool = parameter(False, "something holds the arm")
    clock_jump: float = parameter(0.0, "how far the node's clock is off", unit="s", low=-3600.0, high=3600.0)


def after(seconds: float, send: Callable[..., None], *what: Any) -> None:
    """Send now, or later from another thread."""
    if seconds <= 0:
        send(*what)
        return
    timer = threading.Timer(seconds, send, what)
    timer.daemon = True
    timer.start()


class FaultyCameras:
    """Decides which pictures are sent, and when."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._last: Pictures = {}

    def send(self, faults: Faults, pictures: Pictures, stamp: int, say: Callable[[Pictures, int], None]) -> None:
        """Call `say(pictures, stamp)` as the faults have it."""
        if faults.silent_camera or self._random.random() < faults.drop_frames:
            return
        if not (faults.frozen_camera and self._last):
            self._last = pictures
        after(faults.image_latency + faults.image_jitter * self._random.random(), say, self._last, stamp)
