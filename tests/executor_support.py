"""A policy, an arm, and a clock for the executor's tests: plain functions of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from d2ppo_core.contract import ActionSpec
from d2ppo_core.response import Motion, advance, osc_goal, osc_goal_rotation
from d2ppo_ros.executor.executor import Executor
from d2ppo_ros.executor.settings import ExecutorSettings
from d2ppo_ros.records import ArmState, Chunk, ChunkRequest, Command, RobotState, Target

SPEC = ActionSpec()
STEP = 50_000_000  # ns between actions at 20 Hz
H, TA = 8, 4
BEGIN = 7_000_000_000  # ns, of the first state


def executor(mode: str, spec: ActionSpec = SPEC, horizon: int = H, executed: int = TA, **settings: Any) -> Executor:
    """An executor in the given mode."""
    return Executor(ExecutorSettings(mode=mode, **settings), spec, horizon, executed)


def state(stamp: int, trial: str = "t") -> RobotState:
    """A robot state of which only the time matters."""
    return RobotState(stamp, trial, 0, {})


def arm(stamp: int, position: tuple[float, float, float] = (0.4, 0.0, 0.3)) -> ArmState:
    """An arm that measures this position and no rotation."""
    return ArmState(stamp, np.zeros(7), np.zeros(7), np.array(position), np.eye(3))


def plan(time: int) -> np.ndarray:
    """(7,) what the policy wants at `time` whatever it has seen: every chunk is a window of the same plan."""
    s = (time - BEGIN) / 1e9
    wave = [np.sin(3 * s), np.cos(2 * s), np.sin(5 * s + 1), np.sin(s), np.cos(4 * s), np.sin(2 * s), np.sin(9 * s)]
    return 0.5 * np.array(wave)


Plan = Callable[[int], np.ndarray]


def answer(request: ChunkRequest, wanted: Plan = plan, **changes: Any) -> Chunk:
    """The chunk that answers `request`, its rows as `wanted` says for their times; `changes` spoil it."""
    stamp = changes.get("stamp", request.stamp)
    fields = {
        "stamp": stamp,
        "trial": request.trial,
        "index": request.index,
        "step": STEP,
        "inference": 0,
        "checkpoint": "c",
        "executed": TA,
        "actions": np.array([wanted(stamp + i * STEP) for i in range(H)]),
    }
    return Chunk(**{**fields, **changes})


def run(tested: Executor, ticks: int, period: int, latency: int, wanted: Plan = plan, **spoil: Any) -> list[Command]:
    """Start a trial and tick; the policy answers each request after `latency` ns; the arm does as told."""
    tested.start("t", 3, state(BEGIN), BEGIN)
    commands: list[Command] = []
    waiting: list[tuple[int, Chunk]] = []
    for n in range(ticks):
        now = BEGIN + n * period
        for arrival, chunk in [w for w in waiting if w[0] <= now]:
            tested.on_chunk(chunk, arrival)
        waiting = [w for w in waiting if w[0] > now]
        follow_exactly(tested, commands, now)
        command, request = tested.tick(now)
        if command is None:
            assert request is not None
            tested.on_chunk(answer(request, wanted, **spoil), now)
            command, request = tested.tick(now)
        assert command is not None
        commands.append(command)
        if request is not None:
            waiting.append((now + latency, answer(request, wanted, **spoil)))
    return commands


def follow_exactly(tested: Executor, commands: list[Command], now: int) -> None:
    """The arm measures where the last command leads."""
    last = next((c for c in reversed(commands) if c.targets), None)
    if last is None:
        tested.on_arm(0, arm(now))
    else:
        motion = carried_on(last.targets[0], (now - last.stamp) / 1e9)
        tested.on_arm(0, ArmState(now, np.zeros(7), np.zeros(7), motion.position, motion.rotation))


def carried_on(target: Target, seconds: float) -> Motion:
    """Where the controller takes an arm that has this target."""
    rotation = quaternion_matrix(target.quaternion)
    motion = Motion(target.position, rotation, target.velocity, target.acceleration)
    goal = osc_goal(target.position, target.velocity[:3], target.acceleration[:3])
    turned = osc_goal_rotation(rotation, target.velocity[3:], target.acceleration[3:])
    return advance(motion, goal, turned, seconds)


def quaternion_matrix(quaternion: np.ndarray) -> np.ndarray:
    """(4,) xyzw -> (3, 3)."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
