"""VectorEnv over Ray actors: environment i lives in actor i mod W, as environment i // W of an ordinary VectorEnv.

Results equal one process bit for bit, whatever W is and whichever actors are lost on the way. The driver keeps each
episode's seed and chunks; replaying them in a new actor brings an environment to where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ..conf.schema import ClusterConfig
from ..envs import EnvRequest, RawObservation, Step, VectorEnv, make_env, require_finite
from ..errors import UserError
from .actors import Actors, Call, Episode, shares
from .cluster import Cluster

_log = logging.getLogger(__name__)


def environments(cluster: ClusterConfig, simulator: str, request: EnvRequest) -> VectorEnv:
    """The environments of `simulator`, here or on Ray as `rollout=` chose."""
    if cluster.kind == "local":
        return make_env(simulator, request)
    if cluster.kind != "ray":
        raise UserError(f"cluster.kind is '{cluster.kind}'; choose local or ray (rollout=local, rollout=ray)")
    return RayVectorEnv(cluster, simulator, request)


class RayVectorEnv:
    """A `VectorEnv` (see `d2ppo_core.envs`)."""

    def __init__(self, config: ClusterConfig, simulator: str, request: EnvRequest) -> None:
        """`request.workers` actors with one thread each; 0: one for each CPU that is free in the cluster."""
        if request.num_envs < 1 or request.workers < 0 or config.losses < 0:
            raise UserError("environments must be at least 1, workers and cluster.losses not negative")
        self.num_envs, self.max_episode_steps = request.num_envs, request.max_episode_steps
        self.diverged = 0  # episodes ended because the simulation's state was no longer finite
        self._episodes: dict[int, tuple[int, list[np.ndarray]]] = {}  # environment -> seed, chunks since its reset
        self._over = np.ones(self.num_envs, dtype=bool)  # none has been reset yet
        cluster = Cluster(config, min(request.workers, request.num_envs))
        try:
            self.workers = _count(cluster, request)
            openings = [(simulator, share) for share in shares(request, self.workers)]
            self._actors = Actors(cluster, openings, self._running, config.losses)
        except BaseException:
            cluster.leave()  # which ends its actors too
            raise
        facts = self._actors.facts
        for w in range(1, self.workers):
            if facts[w] != facts[0]:
                self.close()
                raise UserError(
                    f"the nodes of the Ray cluster simulate differently ({facts[0]['simulator']} and "
                    f"{facts[w]['simulator']}); install the same version of d2ppo and its simulators on all"
                )
        for name, value in facts[0].items():
            setattr(self, name, value)  # observation, action, simulator, randomise

    def _running(self, worker: int) -> list[Episode]:
        mine = range(worker, self.num_envs, self.workers)
        return [(env // self.workers, *self._episodes[env]) for env in mine if env in self._episodes]

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> RawObservation:
        """See `VectorEnv.reset`."""
        rows = self._rows(envs)
        if len(seeds) != len(rows):
            raise ValueError(f"{len(seeds)} seeds for {len(rows)} environments")
        found = self._scatter("reset", rows, np.array([int(seed) for seed in seeds], dtype=object))
        for env, seed in zip(rows, seeds, strict=True):
            self._episodes[env] = (int(seed), [])
        self._over[rows] = False
        return _joined([(where, raw) for where, raw in found], len(rows))

    def step(self, envs: Sequence[int], chunks: np.ndarray) -> Step:
        """See `VectorEnv.step`. An episode whose state is no longer finite is truncated, logged, and counted."""
        rows, chunks = self._rows(envs), np.asarray(chunks, dtype=np.float64)
        if chunks.ndim != 3 or chunks.shape[0] != len(rows) or chunks.shape[2] != self.action.size:
            raise ValueError(f"chunks {chunks.shape} do not fit ({len(rows)}, Ta, {self.action.size})")
        require_finite(chunks, envs)
        if self._over[rows].any():
            raise RuntimeError("the episode is over; call reset before the next step")
        found = self._scatter("step", rows, chunks)
        for env, chunk in zip(rows, chunks.copy(), strict=True):
            self._episodes[env][1].append(chunk)
        self._count_diverged(rows, [(where, count) for where, (_, count) in found])
        names = ("reward", "terminated", "truncated", "success", "control_steps")
        parts = [(where, {name: getattr(step, name) for name in names}) for where, (step, _) in found]
        seen = _joined([(where, step.observation) for where, (step, _) in found], len(rows))
        step = Step(seen, **_joined(parts, len(rows)))
        self._over[rows] = step.terminated | step.truncated
        return step

    def _count_diverged(self, rows: list[int], counts: list[tuple[list[int], int]]) -> None:
        for where, count in counts:
            if count:
                self.diverged += count
                among = ", ".join(str(rows[position]) for position in where)
                _log.warning("%d of environments %s: no longer finite; the episode is truncated", count, among)

    def _rows(self, envs: Sequence[int]) -> list[int]:
        """The indices, each in range and none twice."""
        rows = [int(env) for env in envs]
        if rows and not 0 <= min(rows) <= max(rows) < self.num_envs:
            raise IndexError(f"there is no environment {rows}; there are {self.num_envs}")
        if len(set(rows)) != len(rows):
            raise ValueError(f"an environment is named twice: {rows}")
        return rows

    def _scatter(self, method: str, rows: list[int], values: np.ndarray) -> list[tuple[list[int], object]]:
        """Call `method(envs, values)` of all actors at once, each with its share: positions in `rows`, and answer."""
        where: dict[int, list[int]] = {}  # actor -> positions in rows
        for position, env in enumerate(rows):
            where.setdefault(env % self.workers, []).append(position)
        calls: dict[int, Call] = {
            w: (method, [rows[p] // self.workers for p in positions], values[positions])
            for w, positions in where.items()
        }
        answers = self._actors.call(calls)
        return [(positions, answers[w]) for w, positions in where.items()]

    def render(self, env: int, height: int, width: int) -> np.ndarray:
        """See `VectorEnv.render`."""
        (row,) = self._rows([env])
        w = row % self.workers
        return self._actors.call({w: ("render", row // self.workers, height, width)})[w]

    def close(self) -> None:
        """See `VectorEnv.close`."""
        self._actors.close()


def _count(cluster: Cluster, request: EnvRequest) -> int:
    """How many actors."""
    if request.workers > cluster.cpus:
        raise UserError(
            f"rollout.workers={request.workers}, but the Ray cluster at {cluster.address} has {cluster.cpus} CPUs; "
            "lower it, or leave it out for one actor on each"
        )
    free = cluster.free_cpus() if cluster.first else cluster.cpus
    return min(request.workers or max(1, free), request.num_envs)


def _joined(parts: list[tuple[list[int], dict[str, np.ndarray]]], n: int) -> dict[str, np.ndarray]:
    """Rows of several actors, each with its positions, as arrays (n, ...)."""
    out = {}
    for name, first in parts[0][1].items() if parts else ():
        out[name] = np.empty((n, *first.shape[1:]), dtype=first.dtype)
        for where, part in parts:
            out[name][where] = part[name]
    return out
