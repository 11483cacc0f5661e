"""A task's scene with everything put where somebody else says, and what its cameras see then. No physics.

For stand-ins: an arm that moves elsewhere, in another simulator or in reality, is shown among the task's own table,
objects, lights and cameras, so that a policy sees what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError
from d2ppo_core.opengl import choose_backend

from .graphics import camera_id
from .native.library import find_task_model
from .painter import Painter, look_of, oriented


class StagedScene:
    """One task's model, e.g. "Lift". One thread makes it, asks it and closes it: that of the OpenGL context."""

    def __init__(self, environment: str) -> None:
        choose_backend()  # before MuJoCo is imported
        import mujoco

        task = find_task_model(environment)
        self.facts, self.model = task.facts, task.compiled()
        self.data = mujoco.MjData(self.model)
        mujoco.mj_resetData(self.model, self.data)
        for number, arm in enumerate(self.facts.arms):
            self.put_arm(number, arm.start, sum(abs(finger) for finger in arm.finger_start))
        for placement in self.facts.placements:
            middle = [float(np.mean(placement.x)), float(np.mean(placement.y)), placement.z]
            self.put_object(placement.name, middle, (0.0, 0.0, 0.0, 1.0))
        self._painter: Painter | None = None

    @property
    def objects(self) -> tuple[str, ...]:
        """What can be put somewhere."""
        return tuple(placement.name for placement in self.facts.placements)

    def put_arm(self, number: int, q: Sequence[float], width: float) -> None:
        """Arm `number` at joint angles q (7,) rad, its fingers `width` m apart."""
        if not 0 <= number < len(self.facts.arms):
            raise UserError(f"{self.facts.environment} has {len(self.facts.arms)} arms, and no arm {number}")
        arm = self.facts.arms[number]
        if len(q) != len(arm.qpos):
            raise UserError(f"arm {number} has {len(arm.qpos)} joints, and {len(q)} angles were given")
        self.data.qpos[list(arm.qpos)] = q
        self.data.qpos[list(arm.finger_qpos)] = width / 2 * np.sign(arm.finger_start)

    def put_object(self, name: str, position: Sequence[float], quaternion: Sequence[float]) -> None:
        """An object at a position (3,) m in the world, turned by a quaternion (4,) xyzw."""
        found = [placement for placement in self.facts.placements if placement.name == name]
        if not found:
            raise UserError(f"{self.facts.environment} has no object '{name}'; it has {', '.join(self.objects)}")
        start = found[0].qpos
        self.data.qpos[start : start + 3] = position
        self.data.qpos[start + 3 : start + 7] = np.roll(quaternion, 1)  # xyzw -> wxyz

    def picture(self, camera: Camera, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB, the first row on top: what the task's camera of this name sees.

        It has the contract's vertical field of view, at any size, and the contract's way of drawing.
        """
        import mujoco

        model, data = self.model, self.data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        number = camera_id(model, camera.name)
        model.cam_fovy[number] = camera.field_of_view
        self._painter = self._painter or Painter(model)
        return oriented(self._painter.paint(data, number, height, width, look_of(camera)))

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None
