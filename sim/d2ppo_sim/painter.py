"""Pictures of a MuJoCo model: one OpenGL context for each model of a process, and the one place that knows orientation.

OpenGL hands out rows from the bottom up. `oriented` turns them into what a contract states, and nothing else flips.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2ppo_core import contract
from d2ppo_core.errors import UserError

from .graphics import NO_GRAPHICS

SEEN = ("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
View = tuple[np.ndarray, ...]
"""Copies of `SEEN`: where everything stood at one control step, so that it can be painted later."""


@dataclass(frozen=True)
class Look:
    """What changes pixels besides the scene and the camera; the default is robosuite's."""

    reflections: bool = True
    multisampling: int = 4  # samples a pixel; 0: none


STOCK = Look()


def look_of(camera: contract.Camera) -> Look:
    """What the contract states."""
    return Look(camera.reflections, camera.multisampling)


def oriented(pixels: np.ndarray, camera: contract.Camera | None = None) -> np.ndarray:
    """OpenGL's (H, W, 3) uint8, rows from the bottom up -> the order of rows and colours that the contract states.

    Without a camera: rows from the top down, RGB. Columns run from left to right in all of them.
    """
    if camera is None or camera.origin == "top_left":
        pixels = pixels[::-1]
    if camera is not None and camera.colour == "bgr":
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels)


def view_of(data: Any) -> View:
    """Where everything stands now, as `mjv_updateScene` will read it."""
    return tuple(getattr(data, name).copy() for name in SEEN)


def put_view(data: Any, view: View) -> None:
    """Write it into MuJoCo's data; each part may be flat."""
    for name, values in zip(SEEN, view, strict=True):
        getattr(data, name).reshape(-1)[:] = np.ravel(values)


class Painter:
    """An off-screen OpenGL context with the meshes and textures of one model."""

    def __init__(self, model: Any) -> None:
        import mujoco

        self._model = model
        self._contexts: dict[int, tuple[Any, int, int]] = {}  # by samples a pixel: MuJoCo's context, height, width
        try:
            self._gl = mujoco.GLContext(64, 64)  # its own buffer is not used: pictures go to one of MuJoCo's
            self._gl.make_current()
            self._most = _most_samples()
        except Exception as error:  # each backend has its own: ImportError, AttributeError, EGLError, …
            raise UserError(NO_GRAPHICS.format(why=f" ({' '.join(str(error).split())})")) from error
        self._scene = mujoco.MjvScene(model, maxgeom=2 * (model.ngeom + model.nsite) + 100)
        self._camera, self._options = mujoco.MjvCamera(), mujoco.MjvOption()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._options.geomgroup[0], self._options.geomgroup[1] = 0, 1  # robosuite: group 0 collides, group 1 is seen

    def paint(self, data: Any, camera: int, height: int, width: int, look: Look) -> np.ndarray:
        """(height, width, 3) uint8 RGB as OpenGL has it: the bottom row first."""
        self.arrange(data, camera, height, width, look)
        return self.render(height, width, look)

    def arrange(self, data: Any, camera: int, height: int, width: int, look: Look) -> None:
        """Take all that `render` needs out of model and data; neither is looked at after that."""
        import mujoco

        self._gl.make_current()
        self._context(height, width, look.multisampling)
        self._camera.fixedcamid = camera
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = look.reflections
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        if not look.reflections and not self._model.light_castshadow.any():
            self._leave_out_unseen(height, width)

    def render(self, height: int, width: int, look: Look) -> np.ndarray:
        """(height, width, 3) uint8 of what `arrange` has arranged. Releases the interpreter's lock."""
        import mujoco

        context, _, _ = self._contexts[look.multisampling]
        pixels, frame = np.empty((height, width, 3), dtype=np.uint8), mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)  # another look's may be bound
        mujoco.mjr_render(frame, self._scene, context)
        mujoco.mjr_readPixels(pixels, None, frame, context)
        return pixels

    def _context(self, height: int, width: int, samples: int) -> Any:
        """MuJoCo's buffer, meshes and textures, with at least this size and exactly this many samples a pixel."""
        import mujoco

        context, high, wide = self._contexts.get(samples, (None, 0, 0))
        if height <= high and width <= wide:
            return context
        if samples > self._most:
            raise UserError(
                f"multisampling {samples} is asked for, but OpenGL offers at most {self._most} here; state less in the "
                "task's camera, and record the demonstrations anew"
            )
        if context is not None:
            context.free()
        height, width = max(height, high), max(width, wide)
        screen, quality = self._model.vis.global_, self._model.vis.quality
        before = screen.offheight, screen.offwidth, quality.offsamples
        screen.offheight, screen.offwidth, quality.offsamples = height, width, samples  # read once, by the next line
        try:
            context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:
            raise UserError(NO_GRAPHICS.format(why=f" ({' '.join(str(error).split())})")) from error
        finally:
            screen.offheight, screen.offwidth, quality.offsamples = before
        self._contexts[samples] = context, height, width
        return context

    def _leave_out_unseen(self, height: int, width: int) -> None:
        """Drop geoms whose bounding sphere lies outside the camera's pyramid: the same pixels in half the time.

        Without mirrors and shadows such a geom cannot show. The camera looks along `forward`; a sphere of radius r at
        depth z is out where its distance from a side plane exceeds r.
        """
        import mujoco

        eyes = self._scene.camera
        forward, up = np.array(eyes[0].forward), np.array(eyes[0].up)
        axes = np.stack([forward, np.cross(forward, up), up])
        eye = (np.array(eyes[0].pos) + np.array(eyes[1].pos)) / 2
        slope_y = np.tan(np.radians(self._model.cam_fovy[self._camera.fixedcamid]) / 2)
        slope_x = slope_y * width / height
        geoms = self._scene.geoms[: self._scene.ngeom]
        ids = np.array([g.objid if g.objtype == mujoco.mjtObj.mjOBJ_GEOM else -1 for g in geoms])
        radius = np.where(ids >= 0, self._model.geom_rbound[ids], 0.0)  # 0: a plane, or not a geom: always kept
        z, x, y = axes @ (np.array([g.pos for g in geoms]) - eye).T
        out = (z < -radius) | _beyond(np.abs(x), z, slope_x, radius) | _beyond(np.abs(y), z, slope_y, radius)
        for index in np.flatnonzero(out & (radius > 0)):
            geoms[index].type = mujoco.mjtGeom.mjGEOM_NONE

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        if self._gl is not None:
            self._gl.make_current()
            for context, _, _ in self._contexts.values():
                context.free()
            self._gl.free()
            self._gl = None


def _beyond(side: np.ndarray, depth: np.ndarray, slope: float, radius: np.ndarray) -> np.ndarray:
    """Whether spheres lie wholly outside the plane side = slope * depth (a hair's breadth is left for rounding)."""
    return (side - slope * depth) / np.hypot(1.0, slope) > 1.001 * radius + 1e-6


def _most_samples() -> int:
    from OpenGL import GL

    return int(GL.glGetIntegerv(GL.GL_MAX_SAMPLES))


class _Shared:
    """One painter for each model of this process, freed when its last user goes, or before MuJoCo's own exit."""

    def __init__(self) -> None:
        self._painters: dict[int, tuple[Any, Painter, int]] = {}  # by the model's address: model, painter, users

    def take(self, model: Any) -> Painter:
        if os.environ.get("MUJOCO_GL") == "disable":
            raise UserError(NO_GRAPHICS.format(why=""))
        kept, painter, users = self._painters.get(model._address) or (model, Painter(model), 0)
        if not self._painters:
            atexit.register(self._close_all)  # after MuJoCo has registered its own, so that it runs before it
        self._painters[model._address] = kept, painter, users + 1
        return painter

    def give_back(self, model: Any) -> None:
        kept, painter, users = self._painters.pop(model._address, (None, None, 0))
        if users > 1:
            self._painters[model._address] = kept, painter, users - 1
        elif painter is not None:
            painter.close()
        if not self._painters:
            atexit.unregister(self._close_all)

    def _close_all(self) -> None:
        for _, painter, _ in self._painters.values():
            painter.close()
        self._painters = {}


PAINTERS = _Shared()
