"""Reach: a point in the plane goes around a post to a goal. Plain NumPy, for tests and first steps.

    y
    ^            .---.
    |  start    ( post )        goal        (world frame, metres; the post stands at the origin)
    |   x        '---'           o
    +----------------------------------> x

A step moves the point by at most 0.1 m along each axis. A step that would touch the post is not taken at all, so a
careless policy is caught in front of it. Reward 1 for each control step that ends within the goal's radius.
Demonstrations pass the post on either side: two modes, whose mean runs into the post.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from d2ppo_core.contract import ActionSpec, LowDim, ObservationSpec, SimulatorSpec
from d2ppo_core.envs import EnvRequest, RawObservation, Step, require_finite
from d2ppo_core.errors import UserError

from .episode import Observation, Outcome

STEP = 0.1  # m at an action of 1
POST_RADIUS = 0.3  # m
GOAL_RADIUS = 0.05  # m
WALL = 1.5  # m, the point stays within +-WALL
CONTROL_HZ = 20
OBSERVATION = ObservationSpec(
    lowdim=(LowDim(name="position", size=2, body="point"), LowDim(name="goal", size=2, body="goal"))
)
ACTION = ActionSpec(
    meaning="planar_delta", position_scale=STEP, rotation_scale=0.0, gripper="none", control_hz=CONTROL_HZ
)
SIMULATOR = SimulatorSpec(name="toy", version="1", environment="Reach", controller="none")


def draw_start(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and goal (2,) m of the episode named by `seed`: on either side of the post, each in a box."""
    x0, y0, x1, y1 = np.random.default_rng((0x5EAC4, seed)).uniform(-1.0, 1.0, 4)
    return np.array([-1.0 + 0.1 * x0, 0.4 * y0]), np.array([1.0 + 0.1 * x1, 0.4 * y1])


def advance(position: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Positions (n, 2) m after one control step under raw actions (n, 2)."""
    move = STEP * np.clip(action, -1.0, 1.0)
    target = np.clip(position + move, -WALL, WALL)
    return np.where(_touches_post(position, target)[:, None], position, target)


def _touches_post(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the segments start-end come within the post's radius of the origin.

    Written out by component: sums inside matrix products may depend on the batch's size in their last bit.
    """
    (x, y), (dx, dy) = start.T, (end - start).T
    length2 = dx * dx + dy * dy
    share = np.clip(-(x * dx + y * dy) / np.where(length2 > 0, length2, 1.0), 0.0, 1.0)
    nearest_x, nearest_y = x + share * dx, y + share * dy
    return nearest_x * nearest_x + nearest_y * nearest_y < POST_RADIUS**2


def reached(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(n,) bool: within the goal's radius."""
    dx, dy = (position - goal).T
    return dx * dx + dy * dy < GOAL_RADIUS**2


def make_toy(request: EnvRequest) -> ReachVectorEnv:
    """What the entry point `d2ppo.simulators: toy` names."""
    if request.task != "Reach":
        raise UserError(f"the toy simulator has no '{request.task}'; its only environment is 'Reach'")
    return ReachVectorEnv(request)


class ReachVectorEnv:
    """A `VectorEnv` (see `d2ppo_core.envs`); all environments move in the same NumPy calls."""

    def __init__(self, request: EnvRequest) -> None:
        n = self.num_envs = request.num_envs
        self.max_episode_steps = request.max_episode_steps
        self.observation = OBSERVATION.model_copy(update={"history": request.history})
        self.action, self.simulator, self.diverged = ACTION, SIMULATOR, 0
        self._terminate = request.terminate_at_success
        self._position = np.zeros((n, request.history, 2))  # (N, To, 2) m, oldest first
        self._goal = np.zeros((n, 2))
        self._steps = np.zeros(n, dtype=np.int64)
        self._over = np.ones(n, dtype=bool)

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> RawObservation:
        """See `VectorEnv.reset`."""
        for env, seed in zip(envs, seeds, strict=True):
            self._position[env], self._goal[env] = draw_start(int(seed))
        rows = np.asarray(envs)
        self._steps[rows], self._over[rows] = 0, False
        return self._observe(rows)

    def step(self, envs: Sequence[int], chunks: np.ndarray) -> Step:
        """See `VectorEnv.step`."""
        rows, chunks = np.asarray(envs), np.asarray(chunks, dtype=np.float64)
        if chunks.ndim != 3 or chunks.shape[0] != len(rows) or chunks.shape[2] != 2:
            raise ValueError(f"chunks {chunks.shape} do not fit ({len(rows)}, Ta, 2)")
        require_finite(chunks, envs)
        if self._over[rows].any():
            raise RuntimeError("the episode is over; call reset before the next step")
        n = len(rows)
        reward, taken = np.zeros(n), np.zeros(n, dtype=np.int64)
        terminated, success = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        for t in range(chunks.shape[1]):
            live = np.flatnonzero(~self._over[rows])
            if not len(live):
                break
            there = self._advance(rows[live], chunks[live, t])
            reward[live] += there
            success[live] |= there
            terminated[live] = there & self._terminate
            taken[live] += 1
            self._over[rows[live]] = terminated[live] | (self._steps[rows[live]] >= self.max_episode_steps)
        return Step(self._observe(rows), reward, terminated, self._over[rows] & ~terminated, success, taken)

    def _advance(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """One control step of the environments `rows` (n,); (n,) bool whether they are at their goal."""
        self._position[rows, :-1] = self._position[rows, 1:]
        self._position[rows, -1] = advance(self._position[rows, -1], actions)
        self._steps[rows] += 1
        return reached(self._position[rows, -1], self._goal[rows])

    def _observe(self, rows: np.ndarray) -> RawObservation:
        """By key (n, To, 2)."""
        position = self._position[rows].copy()
        return {"position": position, "goal": np.repeat(self._goal[rows, None], position.shape[1], axis=1)}

    def render(self, env: int, height: int, width: int) -> np.ndarray:
        """See `VectorEnv.render`."""
        return picture(self._position[env, -1], self._goal[env], height, width)

    def close(self) -> None:
        """Nothing to stop."""


class Reach:
    """The same task as a `Simulation` (see `episode.py`), for the demonstrations."""

    observation, action, simulator = OBSERVATION, ACTION, SIMULATOR

    def __init__(self) -> None:
        self._position = self._goal = np.zeros(2)
        self._steps = 0

    def reset(self, seed: int) -> Observation:
        self._position, self._goal = draw_start(seed)
        self._steps = 0
        return self._observe()

    def step(self, action: np.ndarray) -> Outcome:
        self._position = advance(self._position[None], np.asarray(action)[None])[0]
        self._steps += 1
        there = bool(reached(self._position[None], self._goal[None])[0])
        return Outcome(self._observe(), float(there), there)

    def _observe(self) -> Observation:
        return {"position": self._position.copy(), "goal": self._goal.copy()}

    def state(self) -> np.ndarray:
        """(5,): time s, position, goal m."""
        return np.concatenate([[self._steps / CONTROL_HZ], self._position, self._goal])

    def model_xml(self) -> str:
        """There is no MuJoCo model."""
        return ""

    def env_args(self) -> dict[str, Any]:
        """In robomimic's form; `simulator` tells our reader which one it was."""
        kwargs = {"simulator": "toy", "control_freq": CONTROL_HZ}
        return {"env_name": "Reach", "env_version": SIMULATOR.version, "type": 2, "env_kwargs": kwargs}

    def render(self, height: int, width: int) -> np.ndarray:
        return picture(self._position, self._goal, height, width)

    def close(self) -> None:
        """Nothing to free."""


def picture(position: np.ndarray, goal: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB: the post grey, the goal green, the point blue; y points up."""
    x = np.linspace(-WALL, WALL, width)[None, :]
    y = np.linspace(WALL, -WALL, height)[:, None]
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    discs = (
        (np.zeros(2), POST_RADIUS, (120, 120, 120)),
        (goal, max(GOAL_RADIUS, 0.06), (40, 170, 60)),
        (position, 0.05, (30, 80, 220)),
    )
    for centre, radius, colour in discs:
        image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = colour
    return image
