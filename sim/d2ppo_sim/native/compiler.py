"""Compiling the core on first use, and keeping it: one shared library for each source, MuJoCo and compiler flags.

Where there is no C++ compiler, numba compiles the same core from numba_*.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import atomic_path

from . import layout

FOLDER = Path(__file__).parent
SOURCES = ("core.hpp", "control.hpp", "reading.hpp", "core.cpp")
# No -ffast-math, no contraction to fused multiply-add: results must equal robosuite's. No -march=native: the cache may
# be shared by several machines.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread")
NUMBA_SOURCES = (
    "layout.py", "structures.py", "numba_memory.py", "numba_control.py", "numba_reading.py", "numba_core.py"
)


def cache_folder() -> Path:
    """Where compiled cores and task models are kept: $XDG_CACHE_HOME/d2ppo, usually ~/.cache/d2ppo."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "d2ppo"


def library_path() -> Path:
    """Where the core compiled from these very sources, for this MuJoCo, lies or will lie."""
    return cache_folder() / f"core-{_digest(SOURCES, ' '.join(FLAGS))}.so"


def _digest(sources: tuple[str, ...], settings: str) -> str:
    """Names everything that a compiled core depends on."""
    import mujoco

    digest = hashlib.sha256(f"{mujoco.__version__} {platform.machine()} {settings}".encode())
    for name in sources:
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:20]


@lru_cache(maxsize=1)
def load_core() -> Any:
    """The compiled core, or numba's with the same functions; both release the interpreter's lock while they run."""
    import mujoco  # loads libmujoco, which the core names without a path  # noqa: F401

    path = library_path()
    if not path.exists():
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return load_numba_core(compiler)
        compile_core(path, compiler)
    return layout.declare(ctypes.CDLL(str(path)))


def load_numba_core(missing: str) -> Any:
    """The core by numba, because the C++ compiler `missing` is not there."""
    try:
        import numba
    except ImportError as error:
        raise UserError(
            f"simulator=native needs a C++ compiler or numba, and there is neither `{missing}` here nor numba "
            f"({error}); install g++ (`apt-get install g++`), or use simulator=robosuite, which is several times slower"
        ) from error
    folder = cache_folder() / f"numba-{_digest(NUMBA_SOURCES, numba.__version__)}"
    with explain_os_errors("writing", folder):
        folder.mkdir(parents=True, exist_ok=True)
    if parent_process() is None:  # workers need not say it again
        print(
            f"no C++ compiler ({missing}) here: the simulator core runs by numba, which compiles it once in about half "
            "a minute; install g++ for a quicker start",
            file=sys.stderr, flush=True,
        )
    from .numba_core import NumbaCore

    return NumbaCore(folder)


def mujoco_library() -> Path:
    """The wheel's libmujoco."""
    import mujoco

    (library,) = Path(mujoco.__file__).parent.glob("libmujoco.so*")
    return library


def compile_core(path: Path, compiler: str) -> None:
    """Compile to `path`. Several processes may do so at once: each moves a whole file into place."""
    library = mujoco_library()
    home = library.parent
    print(f"compiling the simulator core with {compiler} (once, some seconds) ...", file=sys.stderr, flush=True)
    with explain_os_errors("writing", path), atomic_path(path) as partial:
        done = subprocess.run(
            [compiler, *FLAGS, str(FOLDER / "core.cpp"), "-o", str(partial), f"-I{home / 'include'}",
             f"-L{home}", f"-l:{library.name}"],
            capture_output=True, text=True, check=False,
        )
        if done.returncode:
            raise UserError(
                f"{compiler} could not compile the simulator core: {done.stderr.strip()[-800:]}; "
                "install a g++ that knows C++17, or use simulator=robosuite"
            )


def eigen_address() -> int:
    """Address of LAPACK's ssyevd in SciPy: the function behind robosuite's conversion of matrices to quaternions."""
    from scipy.linalg import cython_lapack

    capsule = cython_lapack.__pyx_capi__["ssyevd"]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.argtypes, api.PyCapsule_GetName.restype = (ctypes.py_object,), ctypes.c_char_p
    api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    return api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
