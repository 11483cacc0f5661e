"""One episode after another in one simulation: history, time limit, chunks. The same for every simulator."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from d2ppo_core.contract import ActionSpec, ObservationSpec, SimulatorSpec

Observation = dict[str, np.ndarray]
"""One time step: by key (size,) float64, or (H, W, 3) uint8 for a camera."""


@dataclass(frozen=True)
class Outcome:
    """One control step. A simulation whose state is no longer finite says so, with the last finite observation."""

    observation: Observation
    reward: float
    success: bool
    diverged: bool = False


class Simulation(Protocol):
    """One environment, stepped one control step at a time, without history or time limit."""

    observation: ObservationSpec
    action: ActionSpec
    simulator: SimulatorSpec

    def reset(self, seed: int) -> Observation: ...

    def step(self, action: np.ndarray) -> Outcome: ...

    def render(self, height: int, width: int) -> np.ndarray: ...

    def close(self) -> None: ...

    # Only where `observation.cameras` are stated:

    def view(self) -> Any:
        """Where everything stands now, from which `images` can be made later."""
        ...

    def images(self, view: Any) -> Observation: ...


@dataclass
class Glance:
    """One control step as the cameras saw it; painted only if somebody looks."""

    view: Any
    images: Observation = field(default_factory=dict)


@dataclass(frozen=True)
class ChunkResult:
    """One environment's share of `d2ppo_core.envs.Step`; `observation[key]` is (To, size)."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    success: bool
    control_steps: int
    diverged: bool


class Episode:
    """Runs chunks in a `Simulation`, never beyond the end of the episode."""

    def __init__(self, simulation: Simulation, history: int, max_steps: int, terminate_at_success: bool) -> None:
        self.simulation = simulation
        self._max_steps = max_steps
        self._terminate_at_success = terminate_at_success
        self._seen: deque[Observation] = deque(maxlen=history)
        self._glances: deque[Glance] = deque(maxlen=history)
        self._has_cameras = bool(simulation.observation.cameras)
        self._steps = 0
        self._over = True

    def reset(self, seed: int) -> Observation:
        """Start the episode named by `seed`; its first observation fills the whole history."""
        first = self.simulation.reset(seed)
        self._seen.extend([first] * self._seen.maxlen)  # type: ignore[operator]
        if self._has_cameras:
            self._glances.extend([Glance(self.simulation.view())] * self._seen.maxlen)  # type: ignore[operator]
        self._steps, self._over = 0, False
        return self._history()

    def run_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute `actions` (Ta, Da) open loop, up to the first control step that ends the episode."""
        if self._over:
            raise RuntimeError("the episode is over; call reset before the next step")
        reward, success, diverged, taken = 0.0, False, False, 0
        for action in actions:
            outcome = self.simulation.step(action)
            self._seen.append(outcome.observation)
            if self._has_cameras:
                self._glances.append(Glance(self.simulation.view()))
            self._steps += 1
            taken += 1
            reward += outcome.reward
            success |= outcome.success
            diverged = outcome.diverged
            terminated = outcome.success and self._terminate_at_success
            self._over = terminated or diverged or self._steps >= self._max_steps
            if self._over:
                break
        return ChunkResult(
            self._history(), reward, terminated, self._over and not terminated, success, taken, diverged
        )

    def _history(self) -> Observation:
        """The last To observations, oldest first: by key (To, size); by camera (To, H, W, 3)."""
        history = {name: np.stack([seen[name] for seen in self._seen]) for name in self._seen[0]}
        for glance in self._glances:
            glance.images = glance.images or self.simulation.images(glance.view)
        for camera in self.simulation.observation.cameras:
            history[camera.key] = np.stack([glance.images[camera.key] for glance in self._glances])
        return history

    def render(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB, upright."""
        return self.simulation.render(height, width)

    def close(self) -> None:
        self.simulation.close()


def specs(simulation: Simulation, history: int) -> dict[str, Any]:
    """The simulation's side of the contract under an observation history of To = `history`."""
    return {
        "observation": simulation.observation.model_copy(update={"history": history}),
        "action": simulation.action,
        "simulator": simulation.simulator,
    }
