"""One native environment as a `Simulation` (see `episode.py`): what recording demonstrations needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from d2ppo_core.contract import Camera
from d2ppo_core.envs import EnvRequest, RawObservation

from ..episode import Observation, Outcome
from ..robosuite_env import env_kwargs
from .vector import make_native

NO_LIMIT = 2**31 - 1  # control steps: whoever steps a `Simulation` ends its episodes


class NativeSimulation:
    """One robosuite task in compiled code, one control step at a time."""

    def __init__(
        self, environment: str, cameras: Sequence[Camera] = (), randomise: dict[str, Any] | None = None
    ) -> None:
        request = EnvRequest(environment, 1, NO_LIMIT, terminate_at_success=False, workers=1, cameras=tuple(cameras),
                             randomise=randomise or {})
        self._env = make_native(request)
        self.observation, self.action, self.simulator = self._env.observation, self._env.action, self._env.simulator

    @property
    def truth(self) -> Observation:
        """The latest observation without noise and delay, for experts."""
        return {name: value[-1] for name, value in self._env.truth(0).items()}

    def reset(self, seed: int) -> Observation:
        return self._without_images(self._env.reset([0], [seed]))

    def step(self, action: np.ndarray) -> Outcome:
        """One control step (1/20 s) under a raw action (Da,); the core clips it to [-1, 1]."""
        before = self._env.diverged
        step = self._env.step([0], np.asarray(action, dtype=np.float64)[None, None])
        diverged = self._env.diverged > before
        seen = self._without_images(step.observation)
        return Outcome(seen, float(step.reward[0]), bool(step.success[0]), diverged)

    def view(self) -> Observation:
        """What the cameras saw at the latest observation: here they have painted already."""
        return self._images

    def images(self, view: Observation) -> Observation:
        """By key (H, W, 3) uint8."""
        return view

    def _without_images(self, seen: RawObservation) -> Observation:
        """By key (1, 1, size) -> (size,); images are kept for `view`."""
        only = {name: value[0, 0] for name, value in seen.items()}
        self._images = {camera.key: only.pop(camera.key) for camera in self.observation.cameras}
        return only

    def state(self) -> np.ndarray:
        """(1 + nq + nv,) float64: time, qpos, qvel, as robomimic keeps them."""
        data = self._env.data[0]
        return np.concatenate([[data.time], data.qpos, data.qvel])

    def model_xml(self) -> str:
        """The model of this episode as one MJCF text, as robosuite wrote it."""
        return self._env.task.xmls[self._env.variants[0]]

    def env_args(self) -> dict[str, Any]:
        """robomimic's description of this environment: stock robosuite's, which can be brought into the same states."""
        args, cameras = self._env.task.facts.env_args, self.observation.cameras
        return {**args, "env_kwargs": env_kwargs(args["env_name"], cameras)}

    def render(self, height: int, width: int) -> np.ndarray:
        return self._env.render(0, height, width)

    def close(self) -> None:
        self._env.close()

