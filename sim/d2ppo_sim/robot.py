"""The simulator as one robot with cameras: what a node, or a stand-in, needs that a `VectorEnv` does not show.

Two ways to move it. `step` is one control step under a raw action, number by number what `VectorEnv.step` does.
`servo` is a part of a control step towards absolute goals, as a driver follows them at its own rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.action import PoseTarget
from d2ppo_core.conf.schema import TaskConfig
from d2ppo_core.contract import ActionSpec, ObservationSpec
from d2ppo_core.envs import EnvRequest, Step
from d2ppo_core.errors import UserError
from d2ppo_core.opengl import choose_backend
from d2ppo_core.tasks import action_spec, observation_spec

from .native.compiler import load_core
from .native.library import find_task_model
from .native.simulation import NO_LIMIT
from .native.vector import NativeVectorEnv

BLOCKED = 1e5  # N m s/rad: damping of a joint that nothing moves any more
CONTROL_STEP = 25  # physics steps of 2 ms


@dataclass(frozen=True)
class ArmReading:
    """One arm as its controller would report it."""

    q: np.ndarray  # (7,) rad
    dq: np.ndarray  # (7,) rad/s
    position: np.ndarray  # (3,) m: grip site in the world
    rotation: np.ndarray  # (3, 3)
    wrench: np.ndarray  # (6,) N, Nm: what touches the arm and its gripper from outside, at the grip site


class SimulatedRobot:
    """One environment of a task.

    Args:
        parts: into how many `servo` steps a control step of 1/20 s is divided.
        limits: the profile that it states in its contract, and that raw actions are held to.
    """

    def __init__(
        self, task: TaskConfig, parts: int = 1, terminate_at_success: bool = True, limits: str = "sim"
    ) -> None:
        if CONTROL_STEP % parts:
            raise UserError(f"a control step of {CONTROL_STEP} physics steps has not {parts} equal parts; use 1 or 5")
        choose_backend()  # before MuJoCo is imported
        import mujoco

        wanted, model = observation_spec(task), find_task_model(task.environment)
        control = model.facts.control.model_copy(update={"substeps": model.facts.control.substeps // parts})
        model = dataclasses.replace(model, facts=model.facts.model_copy(update={"control": control}))
        limit = task.max_episode_steps if parts == 1 else NO_LIMIT
        request = EnvRequest(task.environment, 1, limit, terminate_at_success=terminate_at_success, workers=1,
                             cameras=wanted.cameras, limits=limits if parts == 1 else "sim")
        self.env = NativeVectorEnv(model, request, load_core())
        self.env.painting = False  # pictures are asked for when they are wanted
        self.observation: ObservationSpec = self.env.observation
        self.action: ActionSpec = action_spec(task).model_copy(update={"limits": limits})
        self._facts, self._damping = model.facts, self.env.model.dof_damping.copy()
        self._robot_geoms, self._still = self._geoms_of_arms(), mujoco.MjData(self.env.model)
        self.stuck_gripper = False
        self.values: dict[str, np.ndarray] = {}
        self.over = True

    def _geoms_of_arms(self) -> list[np.ndarray]:
        """Of each arm: whether a geom (ngeom,) belongs to it, by the base of its kinematic chain."""
        model = self.env.model
        roots = [model.body_rootid[model.site_bodyid[arm.site]] for arm in self._facts.arms]
        return [model.body_rootid[model.geom_bodyid] == root for root in roots]

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` names, as `VectorEnv.reset` does."""
        self._keep(self.env.reset([0], [seed]))
        self.over = False

    def step(self, action: np.ndarray) -> Step:
        """One control step, or part of one, under a raw action (Da,)."""
        action = np.array(action, dtype=np.float64)
        if self.stuck_gripper:
            action[6::7] = 0.0  # robosuite's fingers move by the sign of the command
        step = self.env.step([0], action[None, None])  # [Da] -> [1, 1, Da]
        self._keep(step.observation)
        self.over = bool(step.terminated[0] or step.truncated[0])
        return step

    def servo(self, goals: Sequence[PoseTarget]) -> Step:
        """A part of a control step towards absolute goals, one for each arm: the OSC action that names them now."""
        scale, parts = self.action, []
        for goal, arm in zip(goals, self.arms(), strict=True):
            turn = Rotation.from_matrix(goal.orientation @ arm.rotation.T).as_rotvec()
            move = (goal.position - arm.position) / scale.position_scale
            parts.append(np.concatenate([move, turn / scale.rotation_scale, [goal.gripper]]))
        return self.step(np.clip(np.concatenate(parts), -1.0, 1.0))

    def _keep(self, observation: dict[str, np.ndarray]) -> None:
        """By key (1, To, size) -> (size,) of the newest control step."""
        self.values = {key.name: observation[key.name][0, -1] for key in self.observation.lowdim}

    def arms(self) -> list[ArmReading]:
        """Every arm as it is now."""
        import mujoco

        data, still = self.env.data[0], self._still
        still.qpos[:] = data.qpos
        mujoco.mj_kinematics(self.env.model, still)  # after a physics step sites stand where they were before it
        return [
            ArmReading(
                data.qpos[list(arm.qpos)], data.qvel[list(arm.dof)], still.site_xpos[arm.site].copy(),
                still.site_xmat[arm.site].reshape(3, 3).copy(), self._wrench(geoms, still.site_xpos[arm.site]),
            )
            for arm, geoms in zip(self._facts.arms, self._robot_geoms, strict=True)
        ]  # fmt: skip

    def _wrench(self, own: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Contact forces (3,) on an arm by what is not part of it, and their torque (3,) about `point`; world frame."""
        import mujoco

        model, data = self.env.model, self.env.data[0]
        total, local = np.zeros(6), np.zeros(6)
        for number in range(data.ncon):
            contact = data.contact[number]
            first, second = own[contact.geom1], own[contact.geom2]
            if first == second:
                continue
            mujoco.mj_contactForce(model, data, number, local)
            force = contact.frame.reshape(3, 3).T @ local[:3] * (1.0 if second else -1.0)  # it acts on geom2
            total += np.concatenate([force, np.cross(contact.pos - point, force)])
        return total

    def pictures(self, view: np.ndarray) -> dict[str, np.ndarray]:
        """What the cameras see of a `view`: by key (H, W, 3) uint8. Any thread may ask."""
        return {key: image[0] for key, image in self.env.paint(0, view[None]).items()}

    def view(self) -> np.ndarray:
        """Where everything stands at the newest control step, for `pictures`."""
        return self.env.views[0, -1].copy()

    def block(self, blocked: bool) -> None:
        """Something holds the arms: they move no more, whatever is commanded."""
        damping = self.env.model.dof_damping
        damping[:] = self._damping
        if blocked:
            for arm in self._facts.arms:
                damping[list(arm.dof)] = BLOCKED

    def close(self) -> None:
        """Free the OpenGL context."""
        self.env.close()
