"""The simulator core where there is no C++ compiler: core.cpp once more, compiled by numba.

`NumbaCore` has the functions of the compiled core (see layout.SIGNATURES), so that nobody has to know which it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mujoco
import numba
import numpy as np
from numba import njit

from . import layout
from .layout import JOINTS
from .numba_control import arm_torques, fingers, mass_matrix, rotation_of, set_goal
from .numba_memory import (
    NARENA,
    OUTCOME,
    addresses,
    batch_at,
    controls_of,
    data_at,
    doubles,
    mj_forward,
    mj_fwdPosition,
    mj_resetData,
    mj_step,
    mj_step1,
    mj_step2,
    model_at,
    octets,
    outcome_at,
    task_of,
)
from .numba_reading import observe, quaternion_of, succeeded, view, view_size

WARNINGS = int(mujoco.mjtWarning.mjNWARNING)
BAD = tuple(int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{name}")) for name in ("QPOS", "QVEL", "QACC", "CTRL"))


@njit
def arm_warnings(d):
    """MuJoCo prints a warning the first time it counts one. Counting from one keeps its threads silent."""
    for i in range(WARNINGS):
        d.warning[i].number = 1


@njit
def state_was_bad(d):
    """On a bad state MuJoCo resets it, which clears every counter, and counts the one kind: so any change tells."""
    changed = False
    for kind in BAD:
        changed |= d.warning[kind].number != 1
    return changed


@njit
def push(rows, size):
    """Move the rows (L * size,) up by one; where to write the newest (size,)."""
    rows[:-size] = rows[size:].copy()
    return rows[-size:]


@njit
def push_history(batch, env, newest):
    """The newest observation."""
    size, length = batch.observation_size, batch.history_length
    push(doubles(batch.history, env * length * size, length * size), size)[:] = newest


@njit
def push_view(batch, env, m, d, good):
    """The newest view. A state that is not finite leaves the last one in place."""
    if batch.views == 0:
        return
    size, length = view_size(m), batch.history_length
    newest = push(doubles(batch.views, env * length * size, length * size), size)
    if good:
        view(m, d, newest)


@njit
def control_step(batch, env, action, tape):
    """One control step. False if the state is no longer finite. A tape (substeps * nu,) takes down the controls."""
    task, controls = task_of(batch), controls_of(batch, env)
    model, data = addresses(batch.models, env + 1)[env], addresses(batch.data, env + 1)[env]
    m, d = model_at(model), data_at(data)
    for substep in range(task.substeps):
        mj_step1(model, data)
        for a in range(task.arms):
            arm, control = task.arm[a], controls[a]
            own = action[JOINTS * a : JOINTS * (a + 1)]  # six of the pose, one of the gripper
            if substep == 0:
                set_goal(task, arm, d, own, control)
            arm_torques(task, m, d, arm, control)
            fingers(task, m, d, arm, own[6], control)
        if tape.size:
            tape[substep * m.nu : (substep + 1) * m.nu] = doubles(d.ctrl, 0, m.nu)
        mj_step2(model, data)
        if state_was_bad(d):
            return False
    return True


@njit(nogil=True)
def start(batch_address, env, starts_address, number):
    """Start an episode at row `number` of the positions (count, nq).

    robosuite builds its controller before it opens the fingers, and that controller's first substep uses the mass
    matrix of that moment.
    """
    batch = batch_at(batch_address)
    task, controls = task_of(batch), controls_of(batch, env)
    model, data = addresses(batch.models, env + 1)[env], addresses(batch.data, env + 1)[env]
    m, d = model_at(model), data_at(data)
    given = doubles(starts_address, number * m.nq, m.nq)
    mj_resetData(model, data)
    arm_warnings(d)
    qpos, closed = doubles(d.qpos, 0, m.nq), doubles(m.qpos0, 0, m.nq)
    qpos[:] = given
    for a in range(task.arms):
        for f in range(2):
            address = task.arm[a].finger_qpos[f]
            qpos[address] = closed[address]
    mj_fwdPosition(model, data)
    mass = np.empty((JOINTS, JOINTS))
    for a in range(task.arms):
        mass_matrix(m, d, task.arm[a], mass)
        controls[a].first_mass[:] = mass.ravel()
        controls[a].has_first_mass = 1.0
    qpos[:] = given
    mj_forward(model, data)
    for a in range(task.arms):
        arm, control = task.arm[a], controls[a]
        for i in range(JOINTS):
            control.posture[i] = qpos[arm.qpos[i]]
        control.goal_position[:] = doubles(d.site_xpos, 3 * arm.site, 3)
        control.goal_rotation[:] = doubles(d.site_xmat, 9 * arm.site, 9)
        control.finger[:] = 0.0
    seen = np.empty(batch.observation_size)
    observe(batch, m, d, seen)
    for _ in range(batch.history_length):
        push_history(batch, env, seen)
        push_view(batch, env, m, d, True)
    doubles(batch.steps, env, 1).view(np.int64)[0] = 0
    octets(batch.over, env + 1)[env] = 0


@njit(nogil=True)
def run_chunk(batch_address, env, actions_address, length, outcome_address):
    """Execute a chunk (Ta, Da) open loop, up to the control step that ends the episode."""
    batch = batch_at(batch_address)
    size, nobody = batch.observation_size, np.empty(0)
    width = JOINTS * task_of(batch).arms
    data = addresses(batch.data, env + 1)[env]
    m, d = model_at(addresses(batch.models, env + 1)[env]), data_at(data)
    steps = doubles(batch.steps, env, 1).view(np.int64)
    over = octets(batch.over + env, 1)
    newest = doubles(batch.history, ((env + 1) * batch.history_length - 1) * size, size)
    seen, out = np.empty(size), outcome_at(outcome_address)
    reward, taken, any_success, terminated, diverged = 0.0, 0, False, False, False
    for t in range(length):
        if over[0]:
            break
        good = control_step(batch, env, doubles(actions_address, t * width, width), nobody)
        if good:
            observe(batch, m, d, seen)
            good = np.isfinite(seen).all()
        if not good:
            seen[:] = newest  # the last finite one
        push_history(batch, env, seen)
        push_view(batch, env, m, d, good)
        success = good and succeeded(batch, m, d)
        reward += success
        any_success |= success
        diverged = not good
        terminated = success and batch.terminate_at_success != 0
        taken += 1
        steps[0] += 1
        over[0] = terminated or diverged or steps[0] >= batch.max_steps
    out.reward, out.control_steps = reward, taken
    out.success, out.terminated, out.diverged = any_success, terminated, diverged
    out.truncated = over[0] != 0 and not terminated


@njit(nogil=True)
def observe_now(batch_address, env, out_address):
    """Observe what is in one environment's data now, without stepping."""
    batch = batch_at(batch_address)
    m, d = model_at(addresses(batch.models, env + 1)[env]), data_at(addresses(batch.data, env + 1)[env])
    observe(batch, m, d, doubles(out_address, 0, batch.observation_size))


@njit(nogil=True)
def taped_step(batch_address, env, action_address, tape_address):
    """One control step whose controls (substeps, nu) are taken down."""
    batch = batch_at(batch_address)
    task, m = task_of(batch), model_at(addresses(batch.models, env + 1)[env])
    tape = doubles(tape_address, 0, task.substeps * m.nu)
    control_step(batch, env, doubles(action_address, 0, JOINTS * task.arms), tape)


@njit(nogil=True)
def bare(model, data, controls_address, steps):
    """`steps` physics steps under the controls (steps, nu), without a controller."""
    m, d = model_at(model), data_at(data)
    for i in range(steps):
        doubles(d.ctrl, 0, m.nu)[:] = doubles(controls_address, i * m.nu, m.nu)
        mj_step(model, data)


@njit(nogil=True)
def convert(matrix_to_quaternion, source, target):
    """For tests: robosuite's two conversions between quaternion and matrix."""
    if matrix_to_quaternion:
        quaternion_of(doubles(source, 0, 9), doubles(target, 0, 4))
    else:
        rotation_of(doubles(source, 0, 4), doubles(target, 0, 9))


# What Python calls, and how many integers each takes.
ENTRIES = {start: 4, run_chunk: 5, observe_now: 3, taped_step: 4, bare: 4, convert: 3}


def compile_entries(folder: Path) -> None:
    """Compile, or take from the cache in `folder`."""
    kept, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        for entry, arguments in ENTRIES.items():
            entry.enable_caching()
            entry.compile((numba.intp,) * arguments)
    finally:
        numba.config.CACHE_DIR = kept


def for_each(count: int, threads: int, work: Callable[[int], None]) -> None:
    """Call work(0..count-1) from several threads; each result is written to its own place, so their order is free."""
    if min(threads, count) < 2:
        for i in range(count):
            work(i)
        return
    with ThreadPoolExecutor(min(threads, count)) as pool:
        list(pool.map(work, range(count)))  # the list raises what a thread raised


class NumbaCore:
    """The functions of the compiled core, with its arguments; see core.cpp for what they do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # where the compiled code is kept
        compile_entries(folder)

    def d2_set_arena(self, model: int, size: int) -> None:
        ctypes.c_int64.from_address(model + NARENA).value = size

    def d2_reset(self, batch: layout.CBatch, count: int, envs: int, starts: int, threads: int) -> None:
        at, rows = ctypes.addressof(batch), (ctypes.c_int * count).from_address(envs)
        for_each(count, threads, lambda i: start(at, rows[i], starts, i))

    def d2_step(self, batch: layout.CBatch, count: int, envs: int, chunks: int, length: int, threads: int,
                results: int) -> None:
        at, rows = ctypes.addressof(batch), (ctypes.c_int * count).from_address(envs)
        stride = 8 * length * JOINTS * batch.task.contents.arms
        for_each(count, threads,
                 lambda i: run_chunk(at, rows[i], chunks + i * stride, length, results + i * OUTCOME.itemsize))

    def d2_observe(self, batch: layout.CBatch, env: int, out: int) -> None:
        observe_now(ctypes.addressof(batch), env, out)

    def d2_tape(self, batch: layout.CBatch, env: int, action: int, controls: int) -> None:
        taped_step(ctypes.addressof(batch), env, action, controls)

    def d2_bare(self, models: int, data: int, controls: int, count: int, steps: int, threads: int) -> None:
        at = [(ctypes.c_size_t * count).from_address(ctypes.addressof(each)) for each in (models, data, controls)]
        for_each(count, threads, lambda i: bare(at[0][i], at[1][i], at[2][i], steps))

    def d2_rotation_of(self, wxyz: int, out: int) -> None:
        convert(0, wxyz, out)

    def d2_quaternion_of(self, eigen: int, rotation: int, out: int) -> None:
        convert(1, rotation, out)
