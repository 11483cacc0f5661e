"""A task's model in MuJoCo, seen from where the real camera stands. The one module here that needs `mujoco`.

The model is a file: MJCF (.xml), compiled (.mjb), or a task's bundle as `d2ppo bundle` writes it (.safetensors).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.opengl import choose_backend

from .align import optical
from .poses import inverse, pose


class Scene:
    """One model and its state."""

    def __init__(self, path: str | Path) -> None:
        self._mujoco = _mujoco()
        self.path, self.model = Path(path), _load(self._mujoco, Path(path))
        self.data = self._mujoco.MjData(self.model)
        self._mujoco.mj_forward(self.model, self.data)

    def set_joints(self, prefix: str, angles: Sequence[float]) -> None:
        """Put joints PREFIX1, PREFIX2, ... at angles (rad)."""
        for number, angle in enumerate(angles, 1):
            joint = self._id("joint", f"{prefix}{number}")
            self.data.qpos[self.model.jnt_qposadr[joint]] = angle
        self._mujoco.mj_forward(self.model, self.data)

    def place(self, joint: str, base: str, position: Sequence[float]) -> None:
        """Put the object that hangs on a free joint at a position (m) in the robot's base, turned as it is."""
        number = self._id("joint", joint)
        if self.model.jnt_type[number] != self._mujoco.mjtJoint.mjJNT_FREE:
            raise UserError(f"joint '{joint}' of {self.path} is not free; --place moves objects, --joints the arm")
        start = self.model.jnt_qposadr[number]
        self.data.qpos[start : start + 3] = (self.body(base) @ [*position, 1.0])[:3]
        self._mujoco.mj_forward(self.model, self.data)

    def body(self, name: str) -> np.ndarray:
        """(4, 4): a body in the world."""
        number = self._id("body", name)
        return pose(self.data.xpos[number], self.data.xmat[number].reshape(3, 3))

    def camera(self, name: str) -> tuple[np.ndarray, float] | None:
        """Optical frame (4, 4) in the world and vertical field of view (degrees) of the model's own camera, if any."""
        number = self._mujoco.mj_name2id(self.model, self._mujoco.mjtObj.mjOBJ_CAMERA, name)
        if number < 0:
            return None
        world = pose(self.data.cam_xpos[number], self.data.cam_xmat[number].reshape(3, 3))
        return optical(world), float(self.model.cam_fovy[number])

    def picture(self, world_camera: np.ndarray, fovy: float, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB: the scene from an optical frame (4, 4) in the world, upright."""
        mujoco, model, data = self._mujoco, self.model, self.data
        if not model.ncam:
            raise UserError(f"{self.path} has no camera that could be moved; add any <camera/> to its world")
        turned = optical(world_camera)  # its own inverse
        data.cam_xpos[0], data.cam_xmat[0], model.cam_fovy[0] = turned[:3, 3], turned[:3, :3].ravel(), fovy
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        try:
            with mujoco.Renderer(model, height, width) as renderer:
                renderer.update_scene(data, camera=0, scene_option=_visuals(mujoco, model))
                picture = renderer.render().copy()
        except (RuntimeError, AttributeError, ImportError, mujoco.FatalError) as error:
            raise UserError(f"the scene cannot be drawn ({error}); install libegl1 or libosmesa6") from error
        finally:
            mujoco.mj_forward(model, data)
        return picture

    def _id(self, kind: str, name: str) -> int:
        mujoco = self._mujoco
        kinds = {
            "body": (mujoco.mjtObj.mjOBJ_BODY, self.model.nbody),
            "joint": (mujoco.mjtObj.mjOBJ_JOINT, self.model.njnt),
        }
        number, count = kinds[kind]
        found = mujoco.mj_name2id(self.model, number, name)
        if found < 0:
            names = [mujoco.mj_id2name(self.model, number, i) for i in range(count)]
            raise UserError(f"{self.path} has no {kind} '{name}'; it has {', '.join(n for n in names if n)}")
        return found


def base_flange_of(scene: Scene, base: str, link: str, offset: float) -> np.ndarray:
    """(4, 4): the flange in the simulated robot's base; it is `offset` (m) along the z axis of the last link."""
    return inverse(scene.body(base)) @ scene.body(link) @ pose((0.0, 0.0, offset), np.zeros(3))


def _visuals(mujoco: Any, model: Any) -> Any:
    """What robosuite shows: geometry of group 1, and that of collisions, group 0, only where there is no other."""
    option = mujoco.MjvOption()
    option.geomgroup[0] = int(not (model.geom_group == 1).any())
    return option


def _mujoco() -> Any:
    choose_backend()
    try:
        import mujoco
    except ImportError as error:
        raise UserError("drawing a scene needs mujoco; install d2ppo's 'sim' extra, or leave --scene out") from error
    return mujoco


def _load(mujoco: Any, path: Path) -> Any:
    with explain_os_errors("reading", path):
        content = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load

            binary = zlib.decompress(load(content)["model"].tobytes())
            return mujoco.MjModel.from_binary_path("scene.mjb", {"scene.mjb": binary})
        if path.suffix == ".mjb":
            return mujoco.MjModel.from_binary_path("scene.mjb", {"scene.mjb": content})
        return mujoco.MjModel.from_xml_path(str(path))
    except Exception as error:  # mujoco, safetensors and zlib each raise their own kinds
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is no scene for this mujoco ({reason}); make it anew, e.g. by `d2ppo bundle`"
        ) from error
