"""The stand-in's arms and their scene in MuJoCo, by franky-sim: what moves, and what is measured of it.

The arms stand in the policy's world (m, turned about the vertical), as in the simulator, on a table with a cube where
the task has them. `Scene.step` is 1 ms of robot time.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pinocchio
from franky_sim.constants import FRANKA_HAND_FORCE_LIMIT
from franky_sim.franka_robot_state import FrankaRobotState
from franky_sim.mujoco_simulator import FrankaMujocoRobot, MujocoSimulator
from scipy.spatial.transform import Rotation

from ..robot.limits import TORQUE
from ..safety.kinematics import forward
from .settings import CUBE, OPEN

READY = (0.0, np.pi / 16, 0.0, -np.pi / 2 - np.pi / 3, 0.0, np.pi - 0.2, np.pi / 4)  # robosuite's start, rad
TOOL = 0.2104  # m, joint 7 to EE


@dataclass(frozen=True)
class Place:
    """Where one arm stands in the world."""

    base: tuple[float, float, float]  # m
    yaw: float = 0.0  # rad
    q: Sequence[float] = READY


class ArmPhysics(FrankaMujocoRobot):
    """One arm. `whole`: also keep what franky-sim derives for position and velocity motions, at thrice the cost."""

    whole = True
    seconds = 0.0  # of the robot's clock
    _pose: np.ndarray | None = None

    def joints(self) -> tuple[np.ndarray, np.ndarray]:
        """q (7,) rad and dq (7,) rad/s."""
        return self._data.qpos[self._qpos_addrs], self._data.qvel[self._dof_addrs]

    def pose(self) -> np.ndarray:
        """O_T_EE (16,), column after column."""
        return self.kinematics(self.joints()[0]).homogeneous.ravel(order="F")

    def torque(self) -> np.ndarray:
        """What the motors give (7,) Nm, gravity included."""
        return self._applied_torques

    def joint_torque(self, wrench: np.ndarray) -> np.ndarray:
        """What a wrench (6,) at the EE, in the base's frame, does to the joints (7,) Nm."""
        return forward(self.joints()[0], TOOL)[2].T @ wrench if wrench.any() else np.zeros(7)

    def push(self, wrench: np.ndarray) -> None:
        """Apply an external wrench during the next step."""
        if wrench.any():
            self._data.qfrc_applied[self._dof_addrs] += self.joint_torque(wrench)

    # franky-sim's own controllers, without what only position and velocity motions need.

    def torque_control(self, torques: Sequence[float], has_new_command: bool = True) -> None:
        """Torques (7,) Nm over gravity, within what the motors give."""
        if self.whole:
            super().torque_control(torques, has_new_command)
            return
        q = self.joints()[0]
        gravity = pinocchio.computeGeneralizedGravity(self._BaseRobot__model, self._BaseRobot__data, q)
        commanded = np.minimum(np.maximum(torques, -TORQUE), TORQUE)
        self._applied_torques = np.minimum(np.maximum(commanded + gravity, -TORQUE), TORQUE)
        self._data.qfrc_applied[self._dof_addrs] = self._applied_torques

    def joint_position_control(self, target_q: Sequence[float], has_new_command: bool = True) -> None:
        """Hold a joint position (7,) rad."""
        if self.whole:
            super().joint_position_control(target_q, has_new_command)
            return
        q, dq = self.joints()
        self.torque_control(self.kp * (target_q - q) - self.kv * dq)

    def _pre_step(self) -> None:
        """The fingers' controller, each finger by itself."""
        data, most = self._data, min(self._hand_goal_force, FRANKA_HAND_FORCE_LIMIT)
        for place, dof in zip(self._finger_qpos_addrs, self._finger_dof_addrs, strict=True):
            speed = float(data.qvel[dof])
            force = 1000.0 * (self._hand_goal_width / 2 - float(data.qpos[place])) - 50.0 * speed
            if abs(speed) > self._hand_goal_velocity and force * speed > 0:
                force = -50.0 * speed
            data.qfrc_applied[dof] = max(-most, min(most, force))

    def constants(self) -> dict[str, Any]:
        """Fields of the state that change with the tool alone."""
        if self._constants is None:
            tool, end = self._BaseRobot__initial_tcp_placement, np.reshape(self._BaseRobot__NE_T_EE, (4, 4), order="F")
            about = self.robot_parameters
            self._constants = {
                "F_T_NE": self.to_franka_pose(tool), "F_T_EE": (tool.homogeneous @ end).ravel(order="F"),
                "NE_T_EE": end.ravel(order="F"), "EE_T_K": self.EE_T_K, "m_ee": about.ee_mass, "I_ee": about.ee_inertia,
                "F_x_Cee": about.ee_com, "m_load": self.m_load, "I_load": self.I_load, "F_x_Cload": self.F_x_Cload,
            }  # fmt: skip
        return self._constants

    _constants: dict[str, Any] | None = None

    def set_load(self, *arguments: Any) -> None:
        super().set_load(*arguments)
        self._constants = None

    def set_NE_T_EE(self, ne_t_ee: tuple[float, ...]) -> None:
        super().set_NE_T_EE(ne_t_ee)
        self._constants = None

    @property
    def state(self) -> FrankaRobotState:
        """franky-sim's own state; where only torques are commanded, what its motions begin with."""
        if self.whole and self._derived:
            return super().state
        q, dq = (tuple(part) for part in self.joints())
        return FrankaRobotState(q=q, q_d=q, dq=dq, O_T_EE=tuple(self.pose()))

    _derived = False  # whether the last step kept what `whole` asks for

    def _post_step(self) -> None:
        self.seconds += 0.001
        self._derived = self.whole
        if self.whole:
            super()._post_step()
        else:
            self._BaseRobot__prev_t = self._BaseRobot__t
            self._BaseRobot__t += 0.001


class Scene(MujocoSimulator):
    """Arms in the world; with `table` and `cube` as the task Lift has them."""

    def __init__(self, places: Sequence[Place], table: float | None = None, cube: bool = False) -> None:
        super().__init__()
        self.ground(-1.0 if table is None else 0.0)
        if table is not None:
            _box(self.worldbody, "table", (0.0, 0.0, table - 0.025), (0.4, 0.4, 0.025), (0.8, 0.7, 0.55, 1.0))
        if cube:
            body = _box(self.worldbody, "cube", (0.0, 0.0, (table or 0.0) + CUBE), (CUBE,) * 3, (1, 0, 0, 1), 0.1)
            ET.SubElement(body, "freejoint", name="cube")
        self.arms = [self._add(place) for place in places]
        self._drop_pictures()

    def ground(self, height: float) -> None:
        """Where the floor is: franky-sim has it at the arms' feet."""
        for geom in self.worldbody.findall("geom"):
            if geom.get("name") == "ground":
                geom.set("pos", f"0 0 {height}")

    def _drop_pictures(self) -> None:
        """Nobody looks at these arms: without the meshes for the eye they are there in a third of the time."""
        for body in self.worldbody.iter("body"):
            for geom in [geom for geom in body.findall("geom") if geom.get("class") == "visual"]:
                body.remove(geom)
        used = {geom.get("mesh") for geom in self.worldbody.iter("geom")}
        for asset in self.scene.findall("asset"):
            for mesh in [mesh for mesh in asset.findall("mesh") if mesh.get("name") not in used]:
                asset.remove(mesh)

    def _add(self, place: Place) -> ArmPhysics:
        """As franky-sim adds a robot, but of our kind, and turned."""
        self.add_robot(initial_q=tuple(place.q), initial_hand_width=OPEN, position=tuple(place.base))
        x, y, z, w = Rotation.from_euler("z", place.yaw).as_quat()
        list(self.worldbody)[-1].set("quat", f"{w} {x} {y} {z}")
        arm = ArmPhysics(initial_q=tuple(place.q), initial_hand_width=OPEN)
        self._robots[-1] = arm
        return arm

    def body(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) m and quaternion (4,) xyzw of a body in the world."""
        found = self.data.body(name)
        return found.xpos.copy(), np.roll(found.xquat, -1)

    def put_cube(self, position: Sequence[float], quaternion: Sequence[float]) -> None:
        """Place the cube: m, xyzw."""
        joint = self.data.joint("cube")
        joint.qpos[:] = [*position, *np.roll(quaternion, 1)]
        joint.qvel[:] = 0.0


def _box(parent: ET.Element, name: str, place: Sequence[float], half: Sequence[float], colour: Sequence[float],
         mass: float = 0.0) -> ET.Element:  # fmt: skip
    """A body with one box; without a mass it stands still."""

    def text(numbers: Sequence[float]) -> str:
        return " ".join(map(str, numbers))

    body = ET.SubElement(parent, "body", name=name, pos=text(place))
    weight = {"mass": str(mass)} if mass else {}
    ET.SubElement(body, "geom", name=name, type="box", size=text(half), rgba=text(colour), friction="1 0.005 0.0001",
                  solref="0.001 1" if mass else "0.02 1", **weight)  # fmt: skip
    return body
