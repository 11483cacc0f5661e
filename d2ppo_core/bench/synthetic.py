"""What the measurements work on: made-up data and environments of a real task's sizes. Their values do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..conf.schema import Config
from ..contract import PolicySpec, Provenance, SimulatorSpec
from ..data.robomimic import Demonstrations
from ..envs import RawObservation, Step
from ..pretrain_setup import contract_of
from ..tasks import load_task

EPISODES, LENGTH = 20, 200
NOWHERE = SimulatorSpec(name="none", version="", environment="", controller="")


def can_config(hidden: Sequence[int], images: bool = False, **sampler: Any) -> Config:
    """The options of Can (Do 23, or with a camera 9; Da 7) with H = Ta = 4, batch 256 and minibatches of 7500."""
    config = Config()
    config.task = load_task("can_image" if images else "can")
    config.policy.network = {"kind": "diffusion_mlp", "hidden": list(hidden)} | ({"vision": {}} if images else {})
    config.policy.sampler = {"kind": "ddpm"} | sampler
    return config


def spec_of(config: Config) -> PolicySpec:
    """The contract of a policy that learned from nothing."""
    about = Provenance(
        stage="pretrain", dataset="synthetic", dataset_digest="", code_version="", seed=config.seed, simulator=NOWHERE
    )
    return contract_of(config, about)


def demonstrations(spec: PolicySpec) -> Demonstrations:
    """Random walks as states, noise as actions."""
    rng = np.random.default_rng(0)
    Do, Da = spec.observation.state_size, spec.action.size
    states = [np.cumsum(rng.normal(0, 0.1, (LENGTH, Do)), 0).astype(np.float32) for _ in range(EPISODES)]
    actions = [rng.uniform(-1, 1, (LENGTH, Da)).astype(np.float32) for _ in range(EPISODES)]
    return Demonstrations("synthetic", "", NOWHERE, states, actions)


def raw_observation(spec: PolicySpec, count: int) -> RawObservation:
    """What `count` environments would show: keys (n, To, size), cameras (n, To, H, W, 3)."""
    rng, seen = np.random.default_rng(0), spec.observation
    raw = {key.name: rng.normal(0, 0.1, (count, seen.history, key.size)) for key in seen.lowdim}
    for camera in seen.cameras:
        raw[camera.key] = rng.integers(0, 256, (count, seen.history, camera.height, camera.width, 3), dtype=np.uint8)
    return raw


class StillEnv:
    """A VectorEnv in which nothing ever moves: stepping it costs nothing."""

    def __init__(self, spec: PolicySpec, num_envs: int) -> None:
        self.num_envs, self.max_episode_steps, self.simulator = num_envs, 10**9, NOWHERE
        self.observation, self.action = spec.observation, spec.action
        self._raw = raw_observation(spec, num_envs)

    def _rows(self, envs: Sequence[int]) -> RawObservation:
        return {name: value[list(envs)] for name, value in self._raw.items()}

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> RawObservation:
        """The one observation there is."""
        return self._rows(envs)

    def step(self, envs: Sequence[int], chunks: np.ndarray) -> Step:
        """Nothing happens."""
        no = np.zeros(len(envs), dtype=bool)
        steps = np.full(len(envs), chunks.shape[1])
        return Step(self._rows(envs), np.random.default_rng(0).normal(size=len(envs)), no, no, no, steps)

    def render(self, env: int, height: int, width: int) -> np.ndarray:
        """Black."""
        return np.zeros((height, width, 3), dtype=np.uint8)

    def close(self) -> None:
        """Nothing to stop."""
