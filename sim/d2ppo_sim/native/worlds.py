"""Which model each environment steps: one for all where nothing varies, else forks of it by geometry."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .forks import Fork, Image
from .task_model import TaskModel


class Worlds:
    """The models of N environments. Environments of the same geometry share one."""

    def __init__(self, task: TaskModel, model: Any, num_envs: int) -> None:
        self._task, self._model = task, model
        self.addresses = (ctypes.c_void_p * num_envs)(*[model._address] * num_envs)
        self.fields: list[dict[str, np.ndarray]] = [{}] * num_envs
        self._image: Image | None = None
        self._shared: dict[int, tuple[Fork, dict[str, np.ndarray]]] = {}  # by geometry

    def enter(self, env: int, variant: int) -> None:
        """From now on `env` has this geometry. `fields` then says how its model differs from the compiled one."""
        if variant == 0:
            self.addresses[env], self.fields[env] = self._model._address, {}
            return
        if variant not in self._shared:
            self._shared[variant] = self._fork(variant), self._task.variants.whole(self._model, variant)
        fork, self.fields[env] = self._shared[variant]
        self.addresses[env] = fork.address

    def _fork(self, variant: int) -> Fork:
        """A new model of this geometry."""
        self._image = self._image or Image(self._model)
        fork, variants = self._image.fork(), self._task.variants
        for name, index in variants.index.items():
            fork.write(name, variants.values[name][variant], index)
        return fork
