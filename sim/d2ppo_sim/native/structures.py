"""MuJoCo's C structures as numpy lays them out, from the description that MuJoCo carries (`mujoco.introspect`)."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np

_NUMBERS = {"mjtNum": "f8", "int": "i4", "mjtByte": "u1", "mjtSize": "i8", "size_t": "u8", "uintptr_t": "u8",
            "uint64_t": "u8", "float": "f4", "char": "S1"}


@cache
def mujoco_structure(name: str) -> np.dtype:
    """One of MuJoCo's structures, e.g. "mjData", pointers as integers."""
    from mujoco.introspect.structs import STRUCTS

    return _structure(STRUCTS[name].fields)


def _structure(fields: Any) -> np.dtype:
    return np.dtype([(field.name, _format(field.type)) for field in fields], align=True)


def _format(kind: Any) -> Any:
    from mujoco.introspect import ast_nodes

    if isinstance(kind, ast_nodes.PointerType):
        return "intp"
    if isinstance(kind, ast_nodes.ArrayType):
        return np.dtype((_format(kind.inner_type), (prod(kind.extents),)))
    if isinstance(kind, ast_nodes.AnonymousStructDecl):
        return _structure(kind.fields)
    return _NUMBERS[kind.name] if kind.name in _NUMBERS else mujoco_structure(kind.name)
