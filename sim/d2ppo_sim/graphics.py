"""Which OpenGL MuJoCo renders with, decided before MuJoCo is imported; and a quiet import of robosuite.

Rendering is optional. Where neither EGL nor OSMesa is there, everything but `render` works.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sys
import types
from typing import Any

from d2ppo_core.errors import UserError

NO_GRAPHICS = (
    "pictures need an off-screen OpenGL, and neither EGL nor OSMesa works here{why}; "
    "install one with `apt-get install libegl1 libgl1-mesa-dri libosmesa6`"
)
_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
_log = logging.getLogger(__name__)


def choose_backend() -> str:
    """Set `MUJOCO_GL` to egl, osmesa or disable, unless the user has set it. Call before importing mujoco."""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not chosen:
        chosen = next((name for name, library in _LIBRARIES.items() if _loads(library)), "disable")
        os.environ["MUJOCO_GL"] = chosen
    return chosen


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def import_robosuite() -> Any:
    """Import robosuite with stock macros and without its warnings.

    robosuite reads `robosuite.macros_private`, where a user may have changed the time step, and warns where there is
    none. We put our own in its place: physics must not depend on the machine. `MUJOCO_GPU_RENDERING` would force EGL,
    even where only OSMesa, or nothing, is installed.
    """
    choose_backend()
    if "robosuite" not in sys.modules:
        private = types.ModuleType("robosuite.macros_private")
        private.MUJOCO_GPU_RENDERING = False  # type: ignore[attr-defined]
        sys.modules["robosuite.macros_private"] = private
    try:
        import mujoco
        import robosuite
    except ImportError as error:
        raise UserError(f"this task needs robosuite 1.4.1 and mujoco 3.3.7 ({error}); run `make setup`") from error
    # MuJoCo's own handler writes MUJOCO_LOG.TXT into the working directory.
    mujoco.set_mju_user_warning(lambda message: _log.info("mujoco: %s", message))
    return robosuite


class Camera:
    """Renders one MuJoCo model off-screen. The OpenGL context is made at the first picture."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._renderer: Any = None
        self._size: tuple[int, int] | None = None

    def picture(self, data: Any, camera: str, height: int, width: int) -> Any:
        """(height, width, 3) uint8 RGB, upright. Only visual geoms are shown, as robosuite does."""
        import mujoco

        if self._size != (height, width):
            self._open(height, width)
        options = mujoco.MjvOption()
        options.geomgroup[0], options.geomgroup[1] = 0, 1  # robosuite: group 0 collides, group 1 is seen
        self._renderer.update_scene(data, camera=camera, scene_option=options)
        return self._renderer.render()

    def _open(self, height: int, width: int) -> None:
        import mujoco

        self.close()
        if os.environ.get("MUJOCO_GL") == "disable":
            raise UserError(NO_GRAPHICS.format(why=""))
        screen = self._model.vis.global_
        screen.offwidth, screen.offheight = max(width, screen.offwidth), max(height, screen.offheight)
        try:
            self._renderer = mujoco.Renderer(self._model, height=height, width=width)
        except Exception as error:  # each backend has its own: ImportError, AttributeError, EGLError, …
            raise UserError(NO_GRAPHICS.format(why=f" ({' '.join(str(error).split())})")) from error
        atexit.register(self.close)  # before MuJoCo's own exit handler takes the display away
        self._size = (height, width)

    def close(self) -> None:
        """Free the OpenGL context."""
        atexit.unregister(self.close)
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = self._size = None
