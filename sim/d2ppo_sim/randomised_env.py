"""A robosuite environment under domain randomisation.

All environments of a process share one model. So its drawn fields are written just before it is used and put back, bit
for bit, right after: whoever else steps it sees the model as it was compiled.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .disturbance import Disturbance
from .episode import Observation, Outcome
from .randomise import Arrays, Randomisation, applied, deviations, draw_model
from .robosuite_env import RobosuiteEnv


class RandomisedEnv:
    """A `Simulation` (see `episode.py`). `truth` is the latest observation without noise and delay, for experts."""

    def __init__(self, env: RobosuiteEnv, settings: Randomisation) -> None:
        self.env, self.settings, self.truth = env, settings, {}
        self.observation, self.action, self.simulator = env.observation, env.action, env.simulator
        self._deviations = deviations(settings.observation_noise, env.observation.lowdim)
        self._cameras = [camera.name for camera in env.observation.cameras]
        self._drawn: Arrays = {}
        self._seen: deque[tuple[Observation, Any]] = deque(maxlen=1)  # what is on its way to the policy, oldest first

    def reset(self, seed: int) -> Observation:
        """Draw the episode's world, then start it where it would start without."""
        settings, env = self.settings, self.env
        self._drawn = draw_model(settings, env.model, env.data, self._cameras, seed)
        self._disturbance = Disturbance(settings, self._deviations, seed)
        with self._applied():
            self.truth = env.reset(seed)
        self._seen = deque(maxlen=self._disturbance.delay + 1)
        return self._pass_on(self.truth)

    def step(self, action: np.ndarray) -> Outcome:
        """One control step under the action and its noise."""
        (executed,) = self._disturbance.done(np.asarray(action, dtype=np.float64)[None])
        with self._applied():
            outcome = self.env.step(executed)
        self.truth = outcome.observation
        return Outcome(self._pass_on(self.truth), outcome.reward, outcome.success, outcome.diverged)

    def _pass_on(self, truth: Observation) -> Observation:
        """Add noise, and hand out what has been on its way for long enough; at first, the first observation."""
        self._seen.append((self._noisy(truth), self.env.view() if self._cameras else None))
        return self._seen[0][0]

    def _noisy(self, truth: Observation) -> Observation:
        seen = self._disturbance.seen({name: value[None] for name, value in truth.items()}, 1)
        return {name: value[0] for name, value in seen.items()}

    def _applied(self) -> AbstractContextManager[None]:
        """The model with this episode's fields."""
        return applied(self.env.model, self._drawn)

    def view(self) -> Any:
        """What the cameras saw when what the policy now gets was seen."""
        return self._seen[0][1]

    def images(self, view: Any) -> Observation:
        with self._applied():
            return self.env.images(view)

    def render(self, height: int, width: int, camera: str = "") -> np.ndarray:
        with self._applied():
            return self.env.render(height, width, camera)

    def state(self) -> np.ndarray:
        return self.env.state()

    def model_xml(self) -> str:
        return self.env.model_xml()

    def env_args(self) -> dict[str, Any]:
        return self.env.env_args()

    def close(self) -> None:
        self.env.close()

