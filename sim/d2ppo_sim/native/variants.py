"""The geometries of a task: what robosuite draws anew at a hard reset (the cube's size, the hammer's head).

A task model holds one whole MuJoCo model. Of every other geometry it keeps only the numbers that differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STATISTICS = ("meaninertia", "meanmass", "meansize", "extent")  # of model.stat; the solver uses the first
CORE_ONLY = {"bvh_aabb", "stat"}  # 17 MB and more of bounding boxes, and no array


@dataclass(frozen=True)
class Variants:
    """V geometries; number 0 is the model's own. Equal sizes and ids in all of them."""

    index: dict[str, np.ndarray] = field(default_factory=dict)  # by field of the model: (n,) positions in it, flat
    values: dict[str, np.ndarray] = field(default_factory=dict)  # (V, n)

    def whole(self, model: Any, variant: int) -> dict[str, np.ndarray]:
        """What varies in a model that holds geometry 0, as whole arrays: all that Python reads of it."""
        found = {}
        for name in set(self.index) - CORE_ONLY:
            found[name] = getattr(model, name).copy()
            found[name].reshape(-1)[self.index[name]] = self.values[name][variant]
        return found


def compare(models: Iterable[Any]) -> Variants:
    """What differs between models of equal structure. Only two of them are held at a time: they are large."""
    models = iter(models)
    base = _fields(next(models))
    changes = [_changes(base, _fields(model)) for model in models]
    index = {
        name: np.unique(np.concatenate([change[name][0] for change in changes if name in change]))
        for name in base if any(name in change for change in changes)
    }
    values = {name: np.tile(base[name][where], (1 + len(changes), 1)) for name, where in index.items()}
    for row, change in enumerate(changes, start=1):
        for name, (where, new) in change.items():
            values[name][row, np.searchsorted(index[name], where)] = new
    return Variants(index, values)


def _changes(base: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By field (positions, new values), told apart by their bits: NaN equals NaN."""
    found = {}
    for name, own in base.items():
        if other[name].shape != own.shape:
            raise RuntimeError(f"robosuite's hard reset changed the size of {name}")
        where = np.flatnonzero((_bits(other[name]) != _bits(own)).any(axis=1))
        if len(where):
            found[name] = where, other[name][where]
    return found


def _bits(values: np.ndarray) -> np.ndarray:
    """(n,) -> (n, bytes of one)."""
    return values.view(np.uint8).reshape(len(values), values.itemsize)


def _fields(model: Any) -> dict[str, np.ndarray]:
    """Every array of the model, flat, and its statistics as "stat"."""
    names = [name for name in dir(model) if not name.startswith("_")]
    found = {name: np.ravel(v) for name in names if isinstance(v := getattr(model, name), np.ndarray)}
    return {**found, "stat": statistics(model)}


def statistics(model: Any) -> np.ndarray:
    """(4,) averages that MuJoCo's compiler leaves in the model."""
    return np.array([getattr(model.stat, name) for name in STATISTICS])
