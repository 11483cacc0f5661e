"""VectorEnv over the compiled core: MuJoCo models that share memory, an MjData for each environment, threads."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from d2ppo_core.action import apply_limits
from d2ppo_core.envs import EnvRequest, RawObservation, Step, require_finite
from d2ppo_core.errors import UserError
from d2ppo_core.opengl import choose_backend

from ..graphics import Camera
from ..painter import SEEN
from ..pool import cpu_count
from ..randomise import applied, parse
from . import layout
from .compiler import eigen_address, load_core
from .eyes import Eyes
from .library import find_task_model
from .starts import draw_start, draw_variant
from .task_model import TaskFacts, TaskModel
from .veil import Veil
from .worlds import Worlds

ARENA = 48 << 20  # bytes for contacts and solver of one environment, paged in as needed; robosuite reserves 1.3 GB
_log = logging.getLogger(__name__)
OUTCOME = np.dtype([("reward", "f8"), ("control_steps", "i8"), ("terminated", "?"), ("truncated", "?"),
                    ("success", "?"), ("diverged", "?"), ("padding", "V4")])


def make_native(request: EnvRequest) -> NativeVectorEnv:
    """What the entry point `d2ppo.simulators: native` names."""
    if request.num_envs < 1 or request.max_episode_steps < 1 or request.history < 1:
        raise UserError(f"environments, episode steps and history must be at least 1, not {request}")
    parse(request.randomise)  # a wrong number is answered at once
    choose_backend()  # before MuJoCo is imported
    try:
        core = load_core()  # first: without a compiler, nothing else is worth the wait
    except ImportError as error:
        raise UserError(f"simulator=native needs mujoco 3.3.7 ({error}); run `make setup`") from error
    return NativeVectorEnv(find_task_model(request.task), request, core)


class NativeVectorEnv:
    """A `VectorEnv` (see `d2ppo_core.envs`)."""

    def __init__(self, task: TaskModel, request: EnvRequest, core: ctypes.CDLL) -> None:
        import mujoco

        n, facts = request.num_envs, task.facts
        self.num_envs, self.max_episode_steps = n, request.max_episode_steps
        self.simulator, self.task = facts.simulator, task
        self.action = facts.action.model_copy(update={"limits": request.limits})
        self.diverged = 0  # episodes ended because the simulation's state was no longer finite
        self.threads = cpu_count(request.workers)
        self._core, self._facts = core, facts
        self.model = task.compiled()
        core.d2_set_arena(self.model._address, min(ARENA, self.model.narena))
        self.data = [mujoco.MjData(self.model) for _ in range(n)]
        self._camera = Camera(self.model)
        cameras = tuple(self._camera.checked(camera, facts.environment) for camera in request.cameras)
        self.observation = facts.observation.model_copy(update={"history": request.history, "cameras": cameras})
        self._eyes = Eyes(self.model, cameras, min(self.threads, n))
        self.painting = bool(cameras)  # False leaves the cameras out of observations, for who calls `paint` instead
        self.randomise, settings = request.randomise, parse(request.randomise)
        self.worlds = Worlds(task, self.model, n, settings, [camera.name for camera in cameras])
        self._veil = Veil(settings, facts.observation.lowdim, n, request.history) if request.randomise else None
        length = self._veil.length if self._veil else request.history  # L
        self.variants = np.zeros(n, dtype=np.int64)  # the geometry of each running episode
        self.steps = np.zeros(n, dtype=np.int64)
        self.over = np.ones(n, dtype=np.uint8)  # none has been reset yet
        self.control = (layout.CControl * (n * len(facts.arms)))()
        self.history = np.zeros((n, length, self.observation.state_size))  # (N, L, Do) without noise
        width = sum(getattr(self.data[0], name).size for name in SEEN) if cameras else 0
        self.views = np.zeros((n, length, width))
        self._batch = self._fill_batch(request)

    def _fill_batch(self, request: EnvRequest) -> layout.CBatch:
        """The structure that the core reads; what it points at is kept alive by `self`."""
        self._task = c_task(self._facts)
        self._addresses = (ctypes.c_void_p * self.num_envs)(*[d._address for d in self.data])
        self._groups = np.zeros(self.model.ngeom, dtype=np.uint8)
        for bit, geoms in enumerate(self._facts.touch_groups):
            self._groups[list(geoms)] |= 1 << bit
        return layout.CBatch(
            task=ctypes.pointer(self._task), models=self.worlds.addresses, data=self._addresses, control=self.control,
            history=self.history.ctypes.data, views=self.views.ctypes.data if self.views.size else None,
            steps=self.steps.ctypes.data, over=self.over.ctypes.data, geom_group=self._groups.ctypes.data,
            eigen=eigen_address(), history_length=self.history.shape[1],
            observation_size=self.observation.state_size, max_steps=request.max_episode_steps,
            terminate_at_success=request.terminate_at_success,
        )

    def reset(self, envs: Sequence[int], seeds: Sequence[int]) -> RawObservation:
        """See `VectorEnv.reset`."""
        rows = self._rows(envs)
        if len(seeds) != len(rows):
            raise ValueError(f"{len(seeds)} seeds for {len(rows)} environments")
        variants = [draw_variant(self._facts, int(seed)) for seed in seeds]
        starts = [
            draw_start(self._facts, self.model.qpos0, int(seed), variant)
            for seed, variant in zip(seeds, variants, strict=True)
        ]
        return self.start(rows, np.stack(starts), variants, [int(seed) for seed in seeds])

    def start(
        self, envs: Sequence[int], starts: np.ndarray, variants: Sequence[int] = (), seeds: Sequence[int] = ()
    ) -> RawObservation:
        """Start an episode in each of `envs` at the positions (n, nq), velocities zero, by default in geometry 0.

        The seeds name what domain randomisation draws.
        """
        rows, starts = self._rows(envs), np.ascontiguousarray(starts, dtype=np.float64)
        if starts.shape != (len(rows), self.model.nq):
            raise ValueError(f"starts {starts.shape} do not fit ({len(rows)}, {self.model.nq})")
        variants, seeds = variants or [0] * len(rows), seeds or [0] * len(rows)
        for row, variant, seed in zip(rows, variants, seeds, strict=True):
            self.variants[row] = variant
            self.worlds.enter(row, variant, seed, self.data[row])
        self._core.d2_reset(self._batch, len(rows), rows.ctypes.data, starts.ctypes.data, self.threads)
        if self._veil:
            for row, seed in zip(rows, seeds, strict=True):
                self._veil.begin(row, seed, self.truth(row))
        return self._observation(rows)

    def step(self, envs: Sequence[int], chunks: np.ndarray) -> Step:
        """See `VectorEnv.step`. An episode whose state is no longer finite is truncated, logged, and counted."""
        rows, chunks = self._rows(envs), np.ascontiguousarray(chunks, dtype=np.float64)
        if chunks.ndim != 3 or chunks.shape[0] != len(rows) or chunks.shape[2] != self.action.size:
            raise ValueError(f"chunks {chunks.shape} do not fit ({len(rows)}, Ta, {self.action.size})")
        if not np.isfinite(chunks).all():
            require_finite(chunks, envs)
        if self.over[rows].any():
            raise RuntimeError("the episode is over; call reset before the next step")
        if self.action.limits != "sim":  # those of `sim` are the core's own
            chunks = apply_limits(chunks, self.action)
        if self._veil:
            chunks = np.stack([self._veil.done(row, chunk) for row, chunk in zip(rows, chunks, strict=True)])
        result = np.zeros(len(rows), dtype=OUTCOME)
        self._core.d2_step(
            self._batch, len(rows), rows.ctypes.data, chunks.ctypes.data, chunks.shape[1], self.threads,
            result.ctypes.data,
        )
        if result["diverged"].any():
            for env in rows[result["diverged"]]:
                self.diverged += 1
                _log.warning("environment %d: the state is no longer finite; its episode is truncated", env)
        if self._veil:
            for row, steps in zip(rows, result["control_steps"], strict=True):
                self._veil.advance(row, self.truth(row), int(steps))
        names = ("reward", "terminated", "truncated", "success", "control_steps")
        return Step(self._observation(rows), **{name: result[name] for name in names})

    def _rows(self, envs: Sequence[int]) -> np.ndarray:
        """(n,) int32 indices, each in range and none twice: two threads must not step one environment."""
        rows = [int(env) for env in envs]
        if rows and not 0 <= min(rows) <= max(rows) < self.num_envs:
            raise IndexError(f"there is no environment {rows}; there are {self.num_envs}")
        if len(set(rows)) != len(rows):
            raise ValueError(f"an environment is named twice: {rows}")
        return np.array(rows, dtype=np.int32)

    def _observation(self, rows: np.ndarray) -> RawObservation:
        """By key (n, To, size), and of cameras (n, To, H, W, 3), copied: the core goes on writing its own."""
        if self._veil:
            seen = [self._veil.seen(row) for row in rows]
            found = {key.name: np.stack([one[key.name] for one in seen]) for key in self.observation.lowdim}
        else:
            found = self._by_key(self.history[rows])
        return found | self._images(rows) if self.painting else found

    def truth(self, env: int) -> RawObservation:
        """By key (L, size): the last control steps of an environment, without noise and delay."""
        return self._by_key(self.history[env].copy())

    def _by_key(self, states: np.ndarray) -> RawObservation:
        """(..., Do) -> by key (..., size)."""
        start, found = 0, {}
        for key in self.observation.lowdim:
            found[key.name] = states[..., start : start + key.size]
            start += key.size
        return found

    def _images(self, rows: np.ndarray) -> RawObservation:
        """What the cameras saw in To control steps; a view that equals the one before is not painted again."""
        history = self.observation.history
        views = [self.views[row, self._veil.shown(row) if self._veil else slice(None)] for row in rows]
        new = [t == 0 or not np.array_equal(view[t], view[t - 1]) for view in views for t in range(history)]
        whose = np.repeat(rows, history)[new]
        images = self._eyes.look(np.concatenate(views)[new], [self.worlds.fields[row] for row in whose])
        which = (np.cumsum(new) - 1).reshape(len(rows), history)
        return {key: image[which] for key, image in images.items()}

    def paint(self, env: int, views: np.ndarray) -> RawObservation:
        """By camera key (n, H, W, 3): what the cameras see of views (n, size), copied from `views`. Any thread."""
        return self._eyes.look(views, [self.worlds.fields[env]] * len(views))

    def render(self, env: int, height: int, width: int) -> np.ndarray:
        """See `VectorEnv.render`."""
        with applied(self.model, self.worlds.fields[env]):
            return self._camera.picture(self.data[env], self._facts.camera, height, width)

    def close(self) -> None:
        """See `VectorEnv.close`."""
        self._eyes.close()
        self._camera.close()


def c_task(facts: TaskFacts) -> layout.CTask:
    """The task's ids and numbers as the core reads them."""
    if len(facts.arms) > layout.MAX_ARMS or len(facts.reads) > layout.MAX_READS:
        raise UserError(f"the core has no room for {facts.environment}; raise the limits in core.hpp and layout.py")
    out: Any = layout.CTask(
        arms=len(facts.arms), reads=len(facts.reads), substeps=facts.control.substeps, kp=facts.control.kp,
        kd=facts.control.kd, posture_kp=facts.control.posture_kp, gripper_speed=facts.control.gripper_speed,
        position_scale=facts.action.position_scale, rotation_scale=facts.action.rotation_scale,
        success=layout.SUCCESSES[facts.success.kind], success_body=facts.success.body,
        success_other=facts.success.other,
    )
    out.limit[: len(facts.success.limit)] = facts.success.limit
    for i, arm in enumerate(facts.arms):
        out.arm[i].site, out.arm[i].hand = arm.site, arm.hand
        for name in ("qpos", "dof", "motor", "finger_qpos", "finger_motor"):
            getattr(out.arm[i], name)[:] = getattr(arm, name)
    for i, read in enumerate(facts.reads):
        out.read[i] = layout.CRead(layout.READS[read.kind], read.id, read.other, read.arm)
    return out
