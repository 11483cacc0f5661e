"""Which model each environment steps: one for all where nothing varies, else forks of it by geometry or by episode."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from ..randomise import Arrays, Randomisation, applied, draw_model
from .forks import Fork, Image
from .task_model import TaskModel


class Worlds:
    """The models of N environments. Those of the same geometry share one, unless randomisation changes the model."""

    def __init__(
        self, task: TaskModel, model: Any, num_envs: int, settings: Randomisation, cameras: Sequence[str]
    ) -> None:
        self._task, self._model, self._settings, self._cameras = task, model, settings, cameras
        self.addresses = (ctypes.c_void_p * num_envs)(*[model._address] * num_envs)
        self.fields: list[Arrays] = [{}] * num_envs  # how each model differs from the compiled one, as Python needs it
        self._image: Image | None = None
        self._shared: dict[int, tuple[Fork, Arrays]] = {}  # by geometry
        self._private: dict[int, Fork] = {}  # by environment

    def enter(self, env: int, variant: int, seed: int, scratch: Any) -> None:
        """Give `env` the geometry, and what the terms of randomisation draw for `seed`; `scratch` is any data.

        An episode's model is forked anew: nothing can be left of the one before.
        """
        self._private.pop(env, None)
        self.addresses[env], self.fields[env] = self._of_geometry(variant)
        if self._settings == Randomisation():
            return
        with applied(self._model, self.fields[env]):
            drawn = draw_model(self._settings, self._model, scratch, self._cameras, seed)
        if drawn:
            fork = self._private[env] = self._fork(variant)
            for name, values in drawn.items():
                fork.write(name, values)
            self.addresses[env], self.fields[env] = fork.address, self.fields[env] | drawn

    def _of_geometry(self, variant: int) -> tuple[int, Arrays]:
        if variant == 0:
            return self._model._address, {}
        if variant not in self._shared:
            self._shared[variant] = self._fork(variant), self._task.variants.whole(self._model, variant)
        fork, fields = self._shared[variant]
        return fork.address, fields

    def _fork(self, variant: int) -> Fork:
        """A new model of this geometry."""
        self._image = self._image or Image(self._model)
        fork, variants = self._image.fork(), self._task.variants
        if variant:
            for name, index in variants.index.items():
                fork.write(name, variants.values[name][variant], index)
        return fork
