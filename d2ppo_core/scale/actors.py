"""W Ray actors that each hold a VectorEnv. One that is lost is replaced, and brought to where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..envs import EnvRequest, Step, VectorEnv, make_env
from ..errors import UserError
from .cluster import Cluster

START_SECONDS = 180.0  # for a process to start, and to compile the simulator where it is new
GET_SECONDS = 60.0  # for an answer that is ready to arrive
SETTLE = 0.5  # s after a loss, before the head is looked at: the two may go together
_log = logging.getLogger(__name__)
Episode = tuple[int, int, list[np.ndarray]]
"""Of a running episode: environment in its actor, seed, chunks (Ta, Da) executed so far."""
Call = tuple[Any, ...]
"""A method's name, then its arguments."""


class Host:
    """What an actor runs: an ordinary VectorEnv of the registry, stepped by one thread."""

    _env: VectorEnv

    def open(self, simulator: str, request: EnvRequest) -> dict[str, Any]:
        """Make the environments, and say what they are."""
        self._env = make_env(simulator, request)
        facts = {name: getattr(self._env, name) for name in ("observation", "action", "simulator")}
        return facts | {"randomise": getattr(self._env, "randomise", {})}

    def replay(self, episodes: Sequence[Episode]) -> None:
        """Bring each environment to where it was: a start depends on its seed alone, a chunk on the state alone."""
        for env, seed, chunks in episodes:
            self._env.reset([env], [seed])
            for chunk in chunks:
                self._env.step([env], chunk[None])

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> Any:
        return self._env.reset(envs, seeds)

    def step(self, envs: Sequence[int], chunks: np.ndarray) -> tuple[Step, int]:
        """The step, and how many of `envs` diverged in it."""
        before = getattr(self._env, "diverged", 0)
        step = self._env.step(envs, chunks)
        return step, getattr(self._env, "diverged", 0) - before

    def render(self, env: int, height: int, width: int) -> np.ndarray:
        return self._env.render(env, height, width)


class Actors:
    """Calls of several actors at once, which succeed although actors are lost: killed, or with their machine."""

    def __init__(
        self,
        cluster: Cluster,
        openings: Sequence[tuple[str, EnvRequest]],
        running: Callable[[int], list[Episode]],
        losses: int,
    ) -> None:
        """`openings`: for each actor what `Host.open` is given; `running(w)`: the episodes that actor w is in.

        More than `losses` rounds of replacing in a row end the run.
        """
        self._cluster, self._openings, self._running, self._losses = cluster, openings, running, losses
        self._ray = cluster._ray
        self._host = self._ray.remote(max_restarts=0, scheduling_strategy="SPREAD", num_cpus=0)(Host)
        self.size = len(openings)
        reserving = self._host.options(num_cpus=1) if cluster.first else self._host
        self._actors = [reserving.remote() for _ in openings]
        self.facts = self.call({w: ("open", *opening) for w, opening in enumerate(openings)})

    def call(self, calls: dict[int, Call]) -> dict[int, Any]:
        """Actor -> result of its call. Raises what an environment raised, once every other answer is in."""
        results, waiting = {}, dict(calls)
        for _ in range(self._losses + 1):
            found, lost = self._round(waiting)
            results |= found
            if not lost:
                return results
            waiting = {w: calls[w] for w in lost}
            self._replace(lost)
        raise UserError(
            f"Ray actors with environments were lost {self._losses + 1} times in a row ({next(iter(lost.values()))}); "
            "if memory ran out use fewer rollout.envs or rollout.workers, then run the same command with resume=true"
        )

    def _round(self, calls: dict[int, Call]) -> tuple[dict[int, Any], dict[int, str]]:
        """Results of the actors that answered, and reasons of those that are lost."""
        errors, results, lost, failure = self._ray.exceptions, {}, {}, None
        sent = {w: getattr(self._actors[w], method).remote(*values) for w, (method, *values) in calls.items()}
        for w, answer in sent.items():
            try:
                if not self._cluster.ready([answer], START_SECONDS if calls[w][0] == "open" else float("inf")):
                    raise UserError(
                        f"no CPU of the Ray cluster was free for an actor within {START_SECONDS:.0f} s "
                        f"({self._cluster.cpus} in all); end other work on it, or lower rollout.workers"
                    )
                results[w] = self._ray.get(answer, timeout=GET_SECONDS)
            except errors.RayTaskError as error:  # raised by the environment
                failure = failure or _as_raised(error)
            except (errors.RayActorError, errors.ObjectLostError, errors.GetTimeoutError) as error:
                lost[w] = _reason(error)
        if failure is not None:
            raise failure
        return results, lost

    def _replace(self, lost: dict[int, str]) -> None:
        """New actors, in the states of the lost ones. One that is lost again meanwhile shows in the next call."""
        time.sleep(SETTLE)
        self._cluster.require_head()
        for w, reason in lost.items():
            _log.warning("Ray actor %d is lost (%s); it is replaced, and its episodes are played again", w, reason)
            self._ray.kill(self._actors[w])  # where only the way to it is lost
            self._actors[w] = self._host.remote()  # reserves nothing: what is left of the cluster may be full
        opened, _ = self._round({w: ("open", *self._openings[w]) for w in lost})
        self._round({w: ("replay", self._running(w)) for w in opened})

    def close(self) -> None:
        """End the actors, and leave the cluster. Safe to call twice."""
        if self._actors and self._cluster.answers():
            for actor in self._actors:
                self._ray.kill(actor)
        self._actors = []
        self._cluster.leave()


def _as_raised(error: Any) -> Exception:
    """What was raised in the actor: a UserError as it is, all else as a RuntimeError with its traceback."""
    return UserError(str(error.cause)) if isinstance(error.cause, UserError) else RuntimeError(str(error))


def _reason(error: Exception) -> str:
    """The first words of Ray's explanation."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]


def shares(request: EnvRequest, workers: int) -> list[EnvRequest]:
    """Environment i goes to actor i mod W: what each actor is asked for."""
    return [replace(request, num_envs=len(range(w, request.num_envs, workers)), workers=1) for w in range(workers)]
