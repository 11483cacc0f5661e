"""Which off-screen OpenGL MuJoCo draws with. Without one everything but pictures works."""

from __future__ import annotations

import ctypes
import os

_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}


def choose_backend() -> str:
    """Set `MUJOCO_GL` to egl, osmesa or disable, unless the user has set it. Call before importing mujoco."""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not chosen:
        chosen = next((name for name, library in _LIBRARIES.items() if _loads(library)), "disable")
        os.environ["MUJOCO_GL"] = chosen
    os.environ.setdefault("LP_NUM_THREADS", "1")  # small pictures gain nothing from llvmpipe's threads
    return chosen


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
