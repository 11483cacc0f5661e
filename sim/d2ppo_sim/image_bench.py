"""How long camera images take: at the settings that the tasks state, and at robosuite's own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from d2ppo_core.contract import Camera
from d2ppo_core.tasks import load_task, observation_spec, task_names

from .painter import STOCK
from .robosuite_env import RobosuiteEnv

BLOCKS, WARM_UP = 2, 3  # blocks of each setting; images at the start of a block that do not count


def image_tasks() -> list[str]:
    """Every task with cameras."""
    return [name for name in task_names() if load_task(name).observation.get("cameras")]


def image_tasks_of(environment: str) -> list[str]:
    """Those in one of robosuite's environments."""
    return [name for name in image_tasks() if load_task(name).environment == environment]


def bench_images(task: str, repeats: int = 10) -> list[dict[str, Any]]:
    """Time each camera of a task in this process.

    Returns:
        For each camera its name; for `ours` and `stock` settings milliseconds an image and images per second, both of
        wall and of CPU time (medians); and the load average, as others slow the wall clock down.
    """
    config = load_task(task)
    env = RobosuiteEnv(config.environment, observation_spec(config).cameras)
    env.reset(0)
    try:
        return [_camera(env, camera, repeats) for camera in env.observation.cameras]
    finally:
        env.close()


def _camera(env: RobosuiteEnv, camera: Camera, repeats: int) -> dict[str, Any]:
    """Both settings take turns in blocks, so that both meet the same load.

    In blocks, because a driver puts off part of the work until its other buffer is used, which would be charged there.
    """
    stock = camera.model_copy(update={"reflections": STOCK.reflections, "multisampling": STOCK.multisampling})
    kinds, times = {"ours": camera, "stock": stock}, {"ours": [], "stock": []}
    for _ in range(BLOCKS):
        for name, kind in kinds.items():
            times[name] += [_one(env, kind) for _ in range(WARM_UP + repeats)][WARM_UP:]
    found = {name: _summary(values) for name, values in times.items()}
    size = f"{camera.height}x{camera.width}"
    return {"camera": camera.name, "size": size, **found, "load": round(os.getloadavg()[0], 2)}


def _one(env: RobosuiteEnv, camera: Camera) -> tuple[float, float]:
    """(wall, CPU) seconds of one image, its view included."""
    start = time.perf_counter(), time.process_time()
    env._camera.image(env.data, env.view(), camera)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _summary(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = np.median(values, axis=0).tolist()
    return {
        "ms": round(1e3 * wall, 2), "cpu_ms": round(1e3 * cpu, 2),
        "per_second": round(1 / wall, 1), "per_cpu_second": round(1 / cpu, 1),
    }  # fmt: skip
