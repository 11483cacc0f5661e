"""A policy, an arm, and a clock for the executor's tests: plain functions of time."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2ppo_core.contract import ActionSpec
from d2ppo_ros.executor.executor import Executor
from d2ppo_ros.executor.settings import ExecutorSettings
from d2ppo_ros.records import ArmState, Chunk, ChunkRequest, Command, RobotState

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


def answer(request: ChunkRequest, **changes: Any) -> Chunk:
    """The chunk that answers `request`, its rows taken from `plan`; `changes` spoil it."""
    stamp = changes.get("stamp", request.stamp)
    fields = {
        "stamp": stamp,
        "trial": request.trial,
        "index": request.index,
        "step": STEP,
        "inference": 0,
        "checkpoint": "c",
        "executed": TA,
        "actions": np.array([plan(stamp + i * STEP) for i in range(H)]),
    }
    return Chunk(**{**fields, **changes})


def run(tested: Executor, ticks: int, period: int, latency: int, begin: int = BEGIN) -> list[Command]:
    """Start a trial and tick; the policy answers each request after `latency` ns; the arm tracks exactly."""
    tested.start("t", 3, state(begin), begin)
    tested.on_arm(0, arm(begin))
    commands: list[Command] = []
    waiting: list[tuple[int, Chunk]] = []
    for n in range(ticks):
        now = begin + n * period
        for arrival, chunk in [w for w in waiting if w[0] <= now]:
            tested.on_chunk(chunk, arrival)
        waiting = [w for w in waiting if w[0] > now]
        follow_exactly(tested, commands, now)
        command, request = tested.tick(now)
        if command is None:
            assert request is not None
            tested.on_chunk(answer(request), now)
            command, request = tested.tick(now)
        assert command is not None
        commands.append(command)
        if request is not None:
            waiting.append((now + latency, answer(request)))
    return commands


def follow_exactly(tested: Executor, commands: list[Command], now: int) -> None:
    """The arm measures the last commanded pose."""
    last = next((c for c in reversed(commands) if c.targets), None)
    position = last.targets[0].position if last else np.array([0.4, 0.0, 0.3])
    rotation = quaternion_matrix(last.targets[0].quaternion) if last else np.eye(3)
    tested.on_arm(0, ArmState(now, np.zeros(7), np.zeros(7), position, rotation))


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
