"""Shared by the tests of the native simulator: robosuite's environment beside it, brought into the same state."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from d2ppo_core.envs import EnvRequest
from d2ppo_sim.native.starts import draw_variant
from d2ppo_sim.native.vector import NativeVectorEnv, make_native
from d2ppo_sim.robosuite_env import RobosuiteEnv


def native(environment: str, envs: int = 1, history: int = 1, limit: int = 10_000, terminate: bool = False,
           workers: int = 1, **options: Any) -> NativeVectorEnv:
    return make_native(EnvRequest(environment, envs, limit, history, terminate, workers, **options))


def adopt(env: NativeVectorEnv, index: int, reference: RobosuiteEnv, variant: int = 0, seed: int = 0) -> None:
    """Bring environment `index` into the reference's state, its controllers and warm start included."""
    theirs, ours = reference.env.sim.data._data, env.data[index]
    env.start([index], theirs.qpos[None], [variant], [seed])
    for name in ("qpos", "qvel", "qacc_warmstart", "ctrl"):
        getattr(ours, name)[:] = getattr(theirs, name)
    ours.time = theirs.time
    arms = len(reference.env.robots)
    for number, robot in enumerate(reference.env.robots):
        control = env.control[index * arms + number]
        control.posture[:] = robot.controller.initial_joint
        control.goal_rotation[:] = np.ravel(robot.controller.goal_ori)
        control.finger[:] = np.broadcast_to(robot.gripper.current_action, 2)
        control.has_first_mass = 0.0


def seed_of(env: NativeVectorEnv, variant: int = 0, least: int = 0) -> int:
    """The first seed from `least` on whose episode has this geometry."""
    return next(seed for seed in count(least) if draw_variant(env.task.facts, seed) == variant)


def compared(env: NativeVectorEnv) -> list[int]:
    """Addresses in qpos of arms, fingers and the objects that the task uses."""
    facts = env.task.facts
    arms = [i for arm in facts.arms for i in (*arm.qpos, *arm.finger_qpos)]
    return arms + [p.qpos + i for p in facts.placements if p.shown for i in range(7)]


def touching_pairs(reference: RobosuiteEnv, env: NativeVectorEnv) -> set[tuple[int, int]]:
    """Pairs of bodies in contact, those of unused objects left out."""
    model, data = reference.env.sim.model._model, reference.env.sim.data._data
    pairs = {tuple(sorted(int(model.geom_bodyid[g]) for g in c.geom)) for c in data.contact[: data.ncon]}
    unused = {int(model.body_rootid[model.jnt_bodyid[j]]) for p in env.task.facts.placements if not p.shown
              for j in np.flatnonzero(model.jnt_qposadr == p.qpos)}
    return {pair for pair in pairs if not any(int(model.body_rootid[b]) in unused for b in pair)}


def resident() -> float:
    """MB of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
