"""Many models for the memory of little more than one: forks of a compiled model that share what they do not change.

A model's arrays lie in one block. An image of that block is kept in a file without a name, in memory; each fork maps it
copy-on-write: the system copies a page (4 KiB) when the fork writes to it, and all others stay shared.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np

from .structures import mujoco_structure
from .variants import STATISTICS


class Image:
    """A compiled model, from which forks are made: equal to what it was when this image was."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._bytes = ctypes.string_at(model._address, mujoco_structure("mjModel").itemsize)
        self._file = os.memfd_create("d2ppo-model")
        os.ftruncate(self._file, model.nbuffer)
        with mmap.mmap(self._file, model.nbuffer) as block:
            block[:] = ctypes.string_at(int(self.structure()["buffer"]), model.nbuffer)

    def structure(self) -> np.ndarray:
        """() a copy of the C structure."""
        return np.frombuffer(bytearray(self._bytes), dtype=mujoco_structure("mjModel")).reshape(())

    def fork(self) -> Fork:
        """A new one."""
        return Fork(self, mmap.mmap(self._file, self.model.nbuffer, flags=mmap.MAP_PRIVATE))

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


class Fork:
    """A model for the core alone: Python cannot look into it, but write whole fields or parts of them."""

    def __init__(self, image: Image, block: mmap.mmap) -> None:
        self._model, self._block, self._structure = image.model, block, image.structure()
        self.address = self._structure.ctypes.data
        first = int(self._structure["buffer"])
        self._shift = ctypes.addressof(ctypes.c_char.from_buffer(block)) - first
        for name, (kind, *_) in self._structure.dtype.fields.items():
            if kind == np.intp and first <= self._structure[name] < first + self._model.nbuffer:
                self._structure[name] += self._shift

    def write(self, name: str, values: np.ndarray, index: Any = slice(None)) -> None:
        """Set positions `index` of the field, taken flat, to `values`."""
        if name == "stat":
            for number, value in zip(np.arange(len(STATISTICS))[index], values, strict=True):
                self._structure["stat"][STATISTICS[number]] = value
            return
        theirs = getattr(self._model, name)
        memory = (ctypes.c_char * theirs.nbytes).from_address(theirs.ctypes.data + self._shift)
        np.frombuffer(memory, dtype=theirs.dtype)[index] = np.ravel(values)
