"""The measurements behind `d2ppo bench sim`. They take turns in short slices, so that all meet the same load."""

from __future__ import annotations

import time
from collections.abc import Callable
from ctypes import c_void_p
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d2ppo_core.envs import EnvRequest

from .native.compiler import load_core
from .native.vector import NativeVectorEnv, make_native
from .robosuite_env import MODEL_SEED, make_stock, numpy_seeded

SLICE = 0.25  # s
EPISODE, CHUNK, HOLD = 96, 8, 8  # control steps: of an episode, in a chunk, for which a random action is held
ENVS_PER_CORE = 25  # the papers' 50 on two cores; with few of them the last one of a chunk leaves the other cores idle


@dataclass
class Clock:
    """Control steps done, and what they took. Resets are not counted."""

    steps: int = 0
    wall: float = 0.0  # s
    cpu: float = 0.0  # s, of all threads of this process
    slices: list[float] = field(default_factory=list)  # control steps per wall second in each slice

    def run(self, work: Callable[[], int], seconds: float, between: Callable[[], None]) -> None:
        """Call `work` (which says how many steps it did) until its own time is used up; `between` is not timed."""
        steps = wall = cpu = 0.0
        while wall < seconds:
            between()
            start = time.perf_counter(), time.process_time()
            steps += work()
            wall += time.perf_counter() - start[0]
            cpu += time.process_time() - start[1]
        self.steps, self.wall, self.cpu = self.steps + int(steps), self.wall + wall, self.cpu + cpu
        self.slices.append(round(steps / wall, 2))

    def report(self) -> dict[str, Any]:
        return {
            "per_second": round(self.steps / self.wall, 2), "per_cpu_second": round(self.steps / self.cpu, 2),
            "control_steps": self.steps, "slices_per_second": self.slices,
        }


def actions(size: int, seed: int) -> np.ndarray:
    """(EPISODE, Da) random actions, tending downwards so that things are touched."""
    drawn = np.random.default_rng((0xBE4C, seed)).uniform(-1, 1, (EPISODE // HOLD, size))
    drawn[:, 2::7] -= 0.4
    return np.repeat(np.clip(drawn, -1, 1), HOLD, axis=0)


class Stock:
    """The untouched robosuite environment, its own `step`."""

    def __init__(self, environment: str, size: int) -> None:
        self._env, self._size, self._seed, self._at = make_stock(environment), size, -1, EPISODE
        with numpy_seeded(MODEL_SEED):
            self._env.reset()

    def between(self) -> None:
        if self._at == EPISODE:
            self._seed, self._at = self._seed + 1, 0
            self._actions = actions(self._size, self._seed)
            with numpy_seeded(self._seed):
                self._env.reset()

    def work(self) -> int:
        for action in self._actions[self._at : self._at + CHUNK]:
            self._env.step(action)
        self._at += CHUNK
        return CHUNK


class Native:
    """The compiled core, whole chunks in all of `env`'s environments."""

    def __init__(self, env: NativeVectorEnv) -> None:
        self._env, self._seed, self._at = env, 0, EPISODE
        self._rows = list(range(env.num_envs))

    def between(self) -> None:
        if self._at == EPISODE:
            seeds = [self._seed + row for row in self._rows]
            self._seed, self._at = self._seed + len(seeds), 0
            self._actions = np.stack([actions(self._env.action.size, seed) for seed in seeds])
            self._env.reset(self._rows, seeds)

    def work(self) -> int:
        self._env.step(self._rows, self._actions[:, self._at : self._at + CHUNK])
        self._at += CHUNK
        return CHUNK * len(self._rows)


@dataclass(frozen=True)
class Tape:
    """One native episode, so that its physics can be done again: model, first and last qpos, controls of each step."""

    model: int  # address
    start: np.ndarray  # (nq,)
    end: np.ndarray
    controls: np.ndarray  # (EPISODE, substeps, nu)


def record(env: NativeVectorEnv, episodes: int = 3) -> list[Tape]:
    """Play episodes in the first environment. `env` must outlive the tapes: the models are its own."""
    tapes, core = [], load_core()
    for seed in range(episodes):
        env.reset([0], [seed])
        start, controls = env.data[0].qpos.copy(), np.zeros((EPISODE, env.task.facts.control.substeps, env.model.nu))
        for action, row in zip(actions(env.action.size, seed), controls, strict=True):
            core.d2_tape(env._batch, 0, action.ctypes.data, row.ctypes.data)
        tapes.append(Tape(env.worlds.addresses[0], start, env.data[0].qpos.copy(), controls))
    return tapes


class Bare:
    """`mj_step` alone: recorded trajectories once more, in as many copies as there are native environments."""

    def __init__(self, model: Any, tapes: list[Tape], copies: int, threads: int) -> None:
        import mujoco

        self._core, self._model, self._tapes, self._threads = load_core(), model, tapes, threads
        self._data = [mujoco.MjData(model) for _ in range(copies)]
        self._addresses = (c_void_p * copies)(*[data._address for data in self._data])
        self._turn, self._at = -1, EPISODE

    def _playing(self) -> list[Tape]:
        """The tape of each copy."""
        return [self._tapes[(self._turn + copy) % len(self._tapes)] for copy in range(len(self._data))]

    def between(self) -> None:
        import mujoco

        if self._at < EPISODE:
            return
        pairs = zip(self._data, self._playing(), strict=True)
        if self._turn >= 0 and not all(np.array_equal(data.qpos, tape.end) for data, tape in pairs):
            raise RuntimeError("the bare physics did not follow the native trajectory")
        self._turn, self._at = self._turn + 1, 0
        for data, tape in zip(self._data, self._playing(), strict=True):
            mujoco.mj_resetData(self._model, data)
            data.qpos[:] = tape.start

    def work(self) -> int:
        tapes, kind = self._playing(), c_void_p * len(self._data)
        controls = [tape.controls[self._at :].ctypes.data for tape in tapes]
        steps = CHUNK * tapes[0].controls.shape[1]
        self._core.d2_bare(
            kind(*[tape.model for tape in tapes]), self._addresses, kind(*controls), len(tapes), steps, self._threads
        )
        self._at += CHUNK
        return CHUNK * len(tapes)


def measure(environment: str, seconds: float, threads: int) -> dict[str, Any]:
    """Every rate of one task, and the ratios."""
    request = {"max_episode_steps": 10**6, "terminate_at_success": False}
    one, many = (
        make_native(EnvRequest(environment, ENVS_PER_CORE * threads, workers=workers, **request))
        for workers in (1, threads)
    )
    tapes = record(one)
    rivals = {
        "stock": Stock(environment, one.action.size),
        "native": Native(one), "bare": Bare(one.model, tapes, one.num_envs, 1),
        "all_cores": Native(many), "bare_all_cores": Bare(one.model, tapes, one.num_envs, threads),
    }  # fmt: skip
    clocks = {name: Clock() for name in rivals}
    turns = max(1, round(seconds / SLICE))
    for _ in range(turns):
        for name, rival in rivals.items():
            clocks[name].run(rival.work, seconds / turns, rival.between)
    rates = {name: clock.report() for name, clock in clocks.items()}
    by_cpu = {name: rate["per_cpu_second"] for name, rate in rates.items()}
    ratios = {
        "native_over_stock": by_cpu["native"] / by_cpu["stock"],
        "native_over_bare": by_cpu["native"] / by_cpu["bare"],
        "scaling": rates["all_cores"]["per_second"] / rates["native"]["per_second"],
        "bare_scaling": rates["bare_all_cores"]["per_second"] / rates["bare"]["per_second"],
        "native_over_stock_wall": rates["native"]["per_second"] / rates["stock"]["per_second"],
        "native_over_bare_wall": rates["native"]["per_second"] / rates["bare"]["per_second"],
    }
    ratios["scaling_over_bare"] = ratios["scaling"] / ratios["bare_scaling"]
    return {**rates, "threads": threads, "environments": many.num_envs,
            "ratios": {name: round(value, 3) for name, value in ratios.items()}}
