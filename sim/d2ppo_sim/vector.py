"""VectorEnv over worker processes: each hosts some of the N environments and runs whole chunks.

Environment i lives in worker i mod W. Every episode depends on its seed alone, so results do not depend on W.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from d2ppo_core.action import apply_limits
from d2ppo_core.contract import Camera
from d2ppo_core.envs import EnvRequest, RawObservation, Step, require_finite
from d2ppo_core.errors import UserError

from .episode import ChunkResult, Episode, Observation, Simulation, specs
from .pool import cpu_count, make_pool

_log = logging.getLogger(__name__)
BuildSimulation = Callable[[str], Simulation]


def make_robosuite(request: EnvRequest) -> PooledVectorEnv:
    """What the entry point `d2ppo.simulators: robosuite` names."""
    build = partial(build_robosuite, cameras=request.cameras, randomise=request.randomise)
    return PooledVectorEnv(build, request)


def build_robosuite(
    environment: str, cameras: Sequence[Camera] = (), randomise: dict[str, Any] | None = None
) -> Simulation:
    """Build one robosuite environment (in whichever process this is called)."""
    from .robosuite_env import RobosuiteEnv

    if not randomise:
        return RobosuiteEnv(environment, cameras)
    from .randomise import parse
    from .randomised_env import RandomisedEnv

    settings = parse(randomise)  # first: a wrong number is answered at once
    return RandomisedEnv(RobosuiteEnv(environment, cameras), settings)


class Host:
    """One worker's environments. The first is built at once, each other one when it is first reset."""

    def __init__(self, build: BuildSimulation, request: EnvRequest) -> None:
        self._build = build
        self._request = request
        self._spare: Episode | None = self._new()
        self._episodes: dict[int, Episode] = {}

    def _new(self) -> Episode:
        r = self._request
        return Episode(self._build(r.task), r.history, r.max_episode_steps, r.terminate_at_success)

    def specs(self) -> dict[str, Any]:
        episode = self._spare or next(iter(self._episodes.values()))
        return specs(episode.simulation, self._request.history)

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> list[Observation]:
        for env in envs:
            if env not in self._episodes:
                self._episodes[env], self._spare = self._spare or self._new(), None
        return [self._episodes[env].reset(seed) for env, seed in zip(envs, seeds, strict=True)]

    def step(self, envs: Sequence[int], chunks: np.ndarray) -> list[ChunkResult]:
        for env in envs:
            if env not in self._episodes:
                raise RuntimeError(f"environment {env} was never reset")
        return [self._episodes[env].run_chunk(chunk) for env, chunk in zip(envs, chunks, strict=True)]

    def render(self, env: int, height: int, width: int) -> np.ndarray:
        return self._episodes[env].render(height, width)

    def close(self) -> None:
        for episode in [*self._episodes.values(), *([self._spare] if self._spare else [])]:
            episode.close()
        self._episodes, self._spare = {}, None


class PooledVectorEnv:
    """A `VectorEnv` (see `d2ppo_core.envs`) for simulations that run one at a time."""

    def __init__(self, build: BuildSimulation, request: EnvRequest) -> None:
        if request.num_envs < 1 or request.max_episode_steps < 1 or request.history < 1:
            raise UserError(f"environments, episode steps and history must be at least 1, not {request}")
        workers = min(cpu_count(request.workers), request.num_envs)
        self.num_envs = request.num_envs
        self.max_episode_steps = request.max_episode_steps
        self.randomise = request.randomise
        self.diverged = 0  # episodes ended because the simulation's state was no longer finite
        self._pool = make_pool(Host, [(build, request)] * workers, in_process=workers == 1)
        self._pool.send(0, "specs")
        for name, value in self._pool.receive(0).items():
            setattr(self, name, value)  # observation, action, simulator
        self.action = self.action.model_copy(update={"limits": request.limits})

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> RawObservation:
        """See `VectorEnv.reset`."""
        return _stack(self._scatter("reset", envs, [int(seed) for seed in seeds]))

    def step(self, envs: Sequence[int], chunks: np.ndarray) -> Step:
        """See `VectorEnv.step`. An episode whose state is no longer finite is truncated, logged, and counted."""
        chunks = np.asarray(chunks, dtype=np.float64)
        if chunks.ndim != 3 or chunks.shape[0] != len(envs) or chunks.shape[2] != self.action.size:
            raise ValueError(f"chunks {chunks.shape} do not fit ({len(envs)}, Ta, {self.action.size})")
        require_finite(chunks, envs)
        if self.action.limits != "sim":  # those of `sim` are the controller's own
            chunks = apply_limits(chunks, self.action)
        results: list[ChunkResult] = self._scatter("step", envs, list(chunks))
        for env, result in zip(envs, results, strict=True):
            if result.diverged:
                self.diverged += 1
                _log.warning("environment %d: the state is no longer finite; its episode is truncated", env)
        return Step(
            observation=_stack([r.observation for r in results]),
            reward=np.array([r.reward for r in results], dtype=np.float64),
            terminated=np.array([r.terminated for r in results], dtype=bool),
            truncated=np.array([r.truncated for r in results], dtype=bool),
            success=np.array([r.success for r in results], dtype=bool),
            control_steps=np.array([r.control_steps for r in results], dtype=np.int64),
        )

    def _scatter(self, method: str, envs: Sequence[int], values: list[Any]) -> list[Any]:
        """Call `method(envs, values)` of all workers at once, each with its share; results in the order of `envs`."""
        shares: dict[int, list[int]] = {}  # worker -> positions in envs
        for position, env in enumerate(envs):
            if not 0 <= env < self.num_envs:
                raise IndexError(f"there is no environment {env}; there are {self.num_envs}")
            shares.setdefault(env % self._pool.size, []).append(position)
        for worker, positions in shares.items():
            self._pool.send(worker, method, [int(envs[p]) for p in positions], [values[p] for p in positions])
        results: list[Any] = [None] * len(envs)
        failure: Exception | None = None
        for worker, positions in shares.items():
            try:
                answers = self._pool.receive(worker)
            except Exception as error:  # take every other answer too, so that none is mistaken for a later one's
                failure = failure or error
                continue
            for position, answer in zip(positions, answers, strict=True):
                results[position] = answer
        if failure is not None:
            raise failure
        return results

    def render(self, env: int, height: int, width: int) -> np.ndarray:
        """See `VectorEnv.render`."""
        worker = env % self._pool.size
        self._pool.send(worker, "render", env, height, width)
        return self._pool.receive(worker)

    def close(self) -> None:
        """See `VectorEnv.close`."""
        self._pool.close()


def _stack(rows: list[Observation]) -> RawObservation:
    """n observations (To, ...) by key -> (n, To, ...)."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
