"""Cameras beside a guarded arm: software RealSense devices, the driver's threads, the policy's picture, the monitor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from d2ppo_core.observation import fit_image
from d2ppo_core.tasks import load_task, observation_spec
from d2ppo_ros.realsense import library
from d2ppo_ros.realsense.driver import CameraThread, Picture, Setup
from d2ppo_ros.realsense.settings import RealsenseSettings, wanted
from d2ppo_ros.realsense.software import SoftwareCamera
from d2ppo_ros.records import SECOND
from d2ppo_ros.safety.cameras import ImageFacts, image_facts
from robot_guarded import GuardedRig

NAMES = ("wrist", "front")
WIDTH, HEIGHT, RATE = 320, 240, 30
EXPOSURE = 12.0  # ms, which the library counts in 0.1 ms


class Eyes:
    """Two cameras that film noise at 30 Hz; what is wrong with them is the first one's.

    Args:
        on_facts: what the safety node would learn of each picture.
        on_changed: what the driver reads back and did not set, by the camera's name.

    Attributes:
        silent: no picture comes.
        shows: what is seen of a new picture, (h, w, 3) uint8 both.
        late: s by which its pictures are older than they should be.
    """

    def __init__(self, on_facts: Callable[[ImageFacts], None], on_changed: Callable[[str, dict], None]) -> None:
        settings = RealsenseSettings(cameras=list(NAMES), device="software", width=WIDTH, height=HEIGHT, fps=RATE,
                                     readback=0.1, exposure=[EXPOSURE])  # fmt: skip
        self.silent, self.shows, self.late = False, np.asarray, 0.0
        self._on_facts, self._on_changed = on_facts, on_changed
        self._policys = observation_spec(load_task("lift_image")).cameras[0]
        generator = np.random.default_rng(0)
        self.film = generator.integers(0, 256, (RATE, HEIGHT, WIDTH, 3), dtype=np.uint8)  # one second of it
        cameras = wanted(settings)
        self.soft = {camera.name: SoftwareCamera(camera) for camera in cameras}
        attach = library.attach_software({name: soft.device for name, soft in self.soft.items()})
        self.threads = {
            camera.name: CameraThread(camera, attach, settings, partial(self._see, camera.name),
                                      partial(self._changed, camera.name))
            for camera in cameras
        }  # fmt: skip
        for thread in self.threads.values():
            thread.start()
        self._running = True
        self._filming = threading.Thread(target=self._run, daemon=True)
        self._filming.start()

    def mend(self) -> None:
        """Nothing is wrong with them any more."""
        self.silent, self.shows, self.late = False, np.asarray, 0.0
        self.expose(EXPOSURE)

    def expose(self, milliseconds: float) -> None:
        """As if another program did."""
        self.soft[NAMES[0]].set_option("exposure", 10 * milliseconds)

    def close(self) -> None:
        """End everything."""
        self._running = False
        self._filming.join()
        for thread in self.threads.values():
            thread.end()

    def _run(self) -> None:
        number, due = 0, time.monotonic()
        while self._running:
            number, due = number + 1, due + 1 / RATE
            fresh, now = self.film[number % RATE], time.time_ns()
            self.soft[NAMES[1]].feed(fresh, now, number)
            if not self.silent:
                self.soft[NAMES[0]].feed(self.shows(fresh), now - round(self.late * SECOND), number)
            time.sleep(max(0.0, due - time.monotonic()))

    def _see(self, name: str, picture: Picture) -> None:
        """As the camera's node fits it, and the safety node looks at it."""
        self._on_facts(image_facts(name, picture.time, fit_image(picture.pixels, self._policys)))

    def _changed(self, name: str, setup: Setup) -> None:
        self._on_changed(name, setup.changed)


class SeeingRig(GuardedRig):
    """A guarded rig whose monitor needs two cameras.

    Attributes:
        eyes: the cameras.
        changed: by camera, the options that the driver finds changed.
    """

    def __init__(self, *arguments: Any) -> None:
        self.changed: dict[str, dict[str, tuple[float, float]]] = {}
        super().__init__(*arguments)
        self.eyes = Eyes(self._on_facts, self._on_changed)

    def guard(self, **settings: Any) -> None:
        """See `GuardedRig`."""
        with self.lock:
            super().guard(cameras=list(NAMES), **settings)
            for name, changed in self.changed.items():
                self.monitor.cameras[name].set_up(changed)

    def mend(self) -> None:
        """See `GuardedRig`."""
        self.eyes.mend()
        super().mend()

    def close(self) -> None:
        """End everything."""
        self.eyes.close()
        super().close()

    def _on_facts(self, facts: ImageFacts) -> None:
        with self.lock:
            self.monitor.on_image(facts, time.time_ns())

    def _on_changed(self, name: str, changed: dict[str, tuple[float, float]]) -> None:
        with self.lock:
            self.changed[name] = changed
            self.monitor.cameras[name].set_up(changed)
