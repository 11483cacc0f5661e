"""A task that is seen: two cameras of a point in the plane, painted by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from d2ppo_core.contract import ActionSpec, LowDim, ObservationSpec, PolicySpec, SimulatorSpec
from d2ppo_core.data.robomimic import Demonstrations, Episode
from d2ppo_core.envs import RawObservation, Step
from d2ppo_core.network_specs import MLPSpec, SamplerSpec, VisionSpec
from network_oracles import camera
from oracles import small_spec

Array = np.ndarray
HEIGHT, WIDTH = 16, 20
CAMERAS = (camera("left", HEIGHT, WIDTH), camera("right", HEIGHT, WIDTH))
VISION = VisionSpec(width=8, heads=2, features=6, shift=2)
NETWORK = MLPSpec(hidden=(8, 8, 8), time_size=4, vision=VISION)
DDIM = SamplerSpec(kind="ddim", train_steps=4, steps=2, finetuned_steps=2)
LOWDIM = (LowDim(name="a", size=1), LowDim(name="b", size=2))
ACTION = ActionSpec(meaning="planar_delta", position_scale=0.1, rotation_scale=0.0, gripper="none")
SIMULATOR = SimulatorSpec(name="painted", version="1", environment="Point", controller="none")


def seeing_spec(sampler: Any = DDIM, network: Any = NETWORK, history: int = 1) -> PolicySpec:
    spec = small_spec(sampler, network)
    return spec.model_copy(
        update={"observation": ObservationSpec(lowdim=LOWDIM, cameras=CAMERAS, history=history), "action": ACTION}
    )


def paint(name: str, position: Array, step: int) -> Array:
    """(H, W, 3): the point red, from the left or the right; the step counted in blue; a grey that fades in green."""
    x, y = (position if name == "left" else -position) + 1
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 1] = np.arange(HEIGHT)[:, None] * 10 + np.arange(WIDTH) * 3
    row, column = int(y / 2 * (HEIGHT - 3)) % HEIGHT, int(x / 2 * (WIDTH - 3)) % WIDTH
    image[row : row + 3, column : column + 3, 0] = 255
    image[..., 2] = step % 256
    return image


class Painted:
    """A `VectorEnv`. Episodes last `length` chunks; those of even seeds terminate after two."""

    def __init__(self, num_envs: int, history: int = 1, length: int = 4, still: bool = False) -> None:
        self.num_envs, self.history, self.length, self.still = num_envs, history, length, still
        self.max_episode_steps = 2 * length
        self.observation = ObservationSpec(lowdim=LOWDIM, cameras=CAMERAS, history=history)
        self.action, self.simulator = ACTION, SIMULATOR
        self.seeds, self.chunks = [0] * num_envs, [0] * num_envs
        self.track: list[list[tuple[Array, int]]] = [[] for _ in range(num_envs)]  # (position, step), newest last

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> RawObservation:
        for e, seed in zip(envs, seeds, strict=True):
            self.seeds[e], self.chunks[e] = seed, 0
            self.track[e] = [(np.random.default_rng(seed).uniform(-0.8, 0.8, 2), 0)] * self.history
        return self._observe(envs)

    def step(self, envs: Sequence[int], chunks: Array) -> Step:
        """`still`: the point moves by its seed alone."""
        terminated = []
        for e, chunk in zip(envs, chunks, strict=True):
            for action in chunk:
                position, step = self.track[e][-1]
                move = np.random.default_rng((self.seeds[e], step)).uniform(-1, 1, 2) if self.still else action
                self.track[e] = [*self.track[e], (np.clip(position + 0.1 * move, -1, 1), step + 1)]
            self.track[e] = self.track[e][-self.history :]
            self.chunks[e] += 1
            terminated.append(self.seeds[e] % 2 == 0 and self.chunks[e] == 2)
        ended = np.array(terminated)
        late = np.array([self.chunks[e] >= self.length for e in envs])
        close = np.array([float(np.abs(self.track[e][-1][0]).max() < 0.3) for e in envs])
        steps = np.full(len(ended), chunks.shape[1])
        return Step(self._observe(envs), close, ended, late & ~ended, close > 0, steps)

    def _observe(self, envs: Sequence[int]) -> RawObservation:
        seen: RawObservation = {
            "b": np.array([[position for position, _ in self.track[e]] for e in envs]),
            "a": np.array([[[step / 10] for _, step in self.track[e]] for e in envs]),
        }
        for c in reversed(CAMERAS):
            seen[c.key] = np.array([[paint(c.name, *row) for row in self.track[e]] for e in envs])
        return seen

    def close(self) -> None:
        """Nothing to stop."""


def painted_episodes(lengths: Sequence[int] = (7, 4, 9)) -> list[Episode]:
    """Random walks of the point."""
    rng, episodes = np.random.default_rng(0), []
    for length in lengths:
        actions = rng.uniform(-1, 1, (length, 2))
        positions = np.clip(np.cumsum(0.1 * actions, 0), -1, 1)
        obs = {c.key: np.array([paint(c.name, p, n) for n, p in enumerate(positions)]) for c in CAMERAS}
        obs |= {"a": np.arange(length)[:, None] / 10, "b": positions}
        episodes.append(Episode(obs=obs, actions=actions, rewards=np.zeros(length), dones=np.zeros(length, dtype=int)))
    return episodes


def painted_demonstrations(lengths: Sequence[int] = (7, 4, 9)) -> Demonstrations:
    """As read from a file."""
    episodes = painted_episodes(lengths)
    return Demonstrations(
        "none",
        "",
        SIMULATOR,
        [np.concatenate([e.obs["a"], e.obs["b"]], 1, dtype=np.float32) for e in episodes],
        [e.actions.astype(np.float32) for e in episodes],
        {c.name: [e.obs[c.key] for e in episodes] for c in CAMERAS},
    )
