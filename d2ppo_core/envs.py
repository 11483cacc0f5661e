"""What fine-tuning and evaluation need from any simulator: the VectorEnv protocol and the registry.

A VectorEnv never resets by itself. `step` returns the observation after the chunk, the final one where the episode
ended; the caller then calls `reset` for those environments. So the final observation can never be confused with the
first one of the next episode, and the caller alone decides every episode's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol

import numpy as np

from .contract import ActionSpec, Camera, ObservationSpec, SimulatorSpec
from .errors import UserError

RawObservation = dict[str, np.ndarray]
"""By key, `(n, To, size)` float64 for low-dimensional keys, `(n, To, H, W, 3)` uint8 for cameras; oldest first.

A camera's key is `NAME_image`. With To = 1 there is one picture a chunk, taken after its last control step.
"""


@dataclass(frozen=True)
class Step:
    """Result of one action chunk in n environments (gymnasium's five values; arrays have length n).

    A chunk ends early at the first control step that terminates or truncates the episode.
    """

    observation: RawObservation
    reward: np.ndarray  # float64, sum over the chunk's control steps
    terminated: np.ndarray  # bool: the task ended (success, where the environment terminates at success)
    truncated: np.ndarray  # bool: the time limit was reached; never true together with terminated
    success: np.ndarray  # bool: the task's success test held at some control step of this chunk
    control_steps: np.ndarray  # int: control steps really taken, 1..Ta


class VectorEnv(Protocol):
    """N environments of one task, addressed by index 0..N-1."""

    num_envs: int
    max_episode_steps: int
    observation: ObservationSpec  # this simulator's own side of the contract
    action: ActionSpec
    simulator: SimulatorSpec
    # Where domain randomisation is applied: randomise: dict[str, Any], the terms of the request

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> RawObservation:
        """Start an episode in each of `envs`; the start depends on its seed alone. Returns n = len(envs) rows."""
        ...

    def step(self, envs: Sequence[int], chunks: np.ndarray) -> Step:
        """Execute `chunks` (n, Ta, Da), raw policy actions, open loop in `envs`."""
        ...

    def render(self, env: int, height: int, width: int) -> np.ndarray:
        """A picture (height, width, 3) uint8 RGB, upright, of environment `env` as it is now."""
        ...

    def close(self) -> None:
        """Stop the workers. Safe to call twice."""
        ...


@dataclass(frozen=True)
class EnvRequest:
    """What a command asks a simulator for."""

    task: str  # the simulator's own name of the task, e.g. "Lift"
    num_envs: int
    max_episode_steps: int
    history: int = 1  # To
    terminate_at_success: bool = True
    workers: int = 0  # processes; 0: one for each CPU core
    cameras: tuple[Camera, ...] = ()  # rendered into the observations, as they are stated
    randomise: dict[str, Any] = field(default_factory=dict)  # terms of domain randomisation, as plain data; {}: none
    limits: Literal["sim", "robot"] = "sim"  # profile of `action.apply_limits` that every executed action goes through


class EnvFactory(Protocol):
    """What the entry-point group `d2ppo.simulators` holds."""

    def __call__(self, request: EnvRequest) -> VectorEnv: ...


def make_env(simulator: str, request: EnvRequest) -> VectorEnv:
    """Build the environments with the simulator registered under that name."""
    found = {point.name: point for point in entry_points(group="d2ppo.simulators")}
    if simulator not in found:
        raise UserError(f"there is no simulator '{simulator}'; installed are {', '.join(sorted(found)) or 'none'}")
    try:
        factory = found[simulator].load()
    except ImportError as error:
        raise UserError(
            f"the simulator '{simulator}' cannot be loaded ({error}); run `make setup`, or install the 'sim' extra"
        ) from error
    env = factory(request)
    wrong = _ignored(simulator, request, env)
    if wrong:
        env.close()
        raise UserError(wrong)
    return env


def _ignored(simulator: str, request: EnvRequest, env: VectorEnv) -> str:
    """What was asked for and silently left out, as a sentence; empty: nothing."""
    if [c.name for c in request.cameras] != [c.name for c in env.observation.cameras]:
        asked = ", ".join(c.name for c in request.cameras)
        return f"the simulator '{simulator}' renders no camera images ({asked}); use simulator=native or robosuite"
    if request.randomise and getattr(env, "randomise", {}) != request.randomise:
        return f"the simulator '{simulator}' has no domain randomisation; use simulator=native or randomise=none"
    if request.limits != env.action.limits:
        return f"the simulator '{simulator}' has no limits={request.limits}; use simulator=native or robosuite"
    return ""


def require_finite(chunks: np.ndarray, envs: Sequence[int]) -> None:
    """Refuse actions that are not numbers, before any environment moves."""
    bad = [envs[i] for i in np.flatnonzero(~np.isfinite(chunks).all(axis=(1, 2)))]
    if bad:
        raise UserError(
            f"the policy produced NaN or infinity for environment {bad[0]} ({len(bad)} of {len(envs)}); "
            "it has diverged: lower the learning rate, or go back to an earlier checkpoint"
        )
