"""Off-screen pictures of a model, and a quiet import of robosuite.

Rendering is optional. Where neither EGL nor OSMesa is there, everything but `render` works.
"""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

from d2ppo_core import contract
from d2ppo_core.errors import UserError
from d2ppo_core.opengl import choose_backend

NO_GRAPHICS = (
    "pictures need an off-screen OpenGL, and neither EGL nor OSMesa works here{why}; "
    "install one with `apt-get install libegl1 libgl1-mesa-dri libosmesa6`"
)
_log = logging.getLogger(__name__)


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
    """Renders one MuJoCo model off-screen. The OpenGL context is made at the first picture, and shared."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._painter: Any = None

    def picture(self, data: Any, camera: str, height: int, width: int) -> Any:
        """(height, width, 3) uint8 RGB, upright, at robosuite's own settings, for people to look at."""
        from .painter import STOCK, oriented

        return oriented(self._open().paint(data, camera_id(self._model, camera), height, width, STOCK))

    def image(self, data: Any, view: Any, camera: contract.Camera) -> Any:
        """(H, W, 3) uint8 as the contract states it, of where things stood at `view` (from `painter.view_of`)."""
        from .painter import look_of, oriented, put_view, view_of

        now = view_of(data)
        put_view(data, view)
        try:
            pixels = self._open().paint(
                data, camera_id(self._model, camera.name), camera.height, camera.width, look_of(camera)
            )
        finally:
            put_view(data, now)
        return oriented(pixels, camera)

    def checked(self, camera: contract.Camera, environment: str) -> contract.Camera:
        """The camera if the model has it, with the same field of view; else a `UserError` that shows both sides."""
        live = float(self._model.cam_fovy[camera_id(self._model, camera.name)])
        if live != camera.field_of_view:
            raise UserError(
                f"camera '{camera.name}' of {environment} has a vertical field of view of {live:g} degrees, the "
                f"contract says {camera.field_of_view:g}; use the simulator's number in the task's file"
            )
        return camera

    def _open(self) -> Any:
        from .painter import PAINTERS

        if self._painter is None:
            self._painter = PAINTERS.take(self._model)
        return self._painter

    def close(self) -> None:
        """Free the OpenGL context, unless another camera of the same model still uses it."""
        from .painter import PAINTERS

        if self._painter is not None:
            PAINTERS.give_back(self._model)
            self._painter = None


def camera_id(model: Any, camera: str) -> int:
    """The number of a camera; a `UserError` names those there are."""
    import mujoco

    kind = mujoco.mjtObj.mjOBJ_CAMERA
    number = mujoco.mj_name2id(model, kind, camera)
    if number < 0:
        names = [mujoco.mj_id2name(model, kind, n) for n in range(model.ncam)]
        raise UserError(f"there is no camera '{camera}'; the model has {', '.join(map(str, names)) or 'none'}")
    return number
