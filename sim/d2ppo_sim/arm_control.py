"""robosuite's operational-space control of one arm, without its per-substep Python overhead.

In the first substep of a control step robosuite's own `robot.control` runs: it sets the goal. In the other 24 the goal
stays, and only torques and gripper have to be computed anew; `ArmControl.hold` does that with robosuite's own compiled
functions, on the same numbers in the same order, so that the result is the same to the last bit (a test compares).
It leaves out look-ups by name, a second evaluation of each Jacobian, and the checks of every call.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class ArmControl:
    """One arm and its gripper. Holds for the life of the simulation: robosuite's soft reset keeps model and data."""

    def __init__(self, robot: Any) -> None:
        import mujoco
        from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

        self._nullspace, self._opspace, self._orientation_error = nullspace_torques, opspace_matrices, orientation_error
        self._site_jacobian, self._full_mass = mujoco.mj_jacSite, mujoco.mj_fullM
        self._robot = robot
        self._model, self._data = robot.sim.model._model, robot.sim.data._data
        self._site = robot.eef_site_id
        self._qpos, self._dofs = np.array(robot._ref_joint_pos_indexes), np.array(robot._ref_joint_vel_indexes)
        self._motors = np.array(robot._ref_joint_actuator_indexes)
        self._fingers = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._low, self._high = robot.torque_limits  # N m
        span = self._model.actuator_ctrlrange[self._fingers]
        self._bias, self._weight = 0.5 * (span[:, 1] + span[:, 0]), 0.5 * (span[:, 1] - span[:, 0])
        nv = self._model.nv
        self._jacp, self._jacr = np.zeros((3, nv)), np.zeros((3, nv))
        self._mass = np.zeros((nv, nv))
        # Views into MuJoCo's own memory: they show the present state.
        self._position = self._data.site_xpos[self._site]  # (3,) m, world
        self._orientation = self._data.site_xmat[self._site].reshape(3, 3)
        self._require_the_controller_we_know()

    def _require_the_controller_we_know(self) -> None:
        controller = self._robot.controller
        plain = controller.interpolator_pos is None and controller.interpolator_ori is None and controller.uncoupling
        if controller.name != "OSC_POSE" or controller.impedance_mode != "fixed" or not plain:
            raise RuntimeError("ArmControl reproduces OSC_POSE with fixed impedance, uncoupled, not interpolated")

    def hold(self, gripper_action: np.ndarray) -> None:
        """Write the torques towards the goal that robosuite set, and one substep of the gripper, into `data.ctrl`.

        Args:
            gripper_action: (1,) raw; its sign counts.
        """
        data, controller = self._data, self._robot.controller
        full, jacobian_p, jacobian_r, twist_p, twist_r = self._jacobians()
        force = (controller.goal_pos - self._position) * controller.kp[:3] + -twist_p * controller.kd[:3]
        error = self._orientation_error(controller.goal_ori, self._orientation)
        torque = error * controller.kp[3:] + -twist_r * controller.kd[3:]
        mass = self._mass_matrix()
        _, lambda_p, lambda_r, nullspace = self._opspace(mass, full, jacobian_p, jacobian_r)
        wrench = np.concatenate([np.dot(lambda_p, force), np.dot(lambda_r, torque)])
        torques = np.dot(full.T, wrench) + data.qfrc_bias[self._dofs]
        joints, speeds = data.qpos[self._qpos], data.qvel[self._dofs]
        posture = self._nullspace(mass, nullspace, controller.initial_joint, joints, speeds)
        gripper = self._robot.gripper.format_action(gripper_action)
        data.ctrl[self._fingers] = self._bias + self._weight * gripper
        data.ctrl[self._motors] = np.clip(torques + posture, self._low, self._high)

    def _jacobians(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of the grip site: full (6, 7), its halves (3, 7), and its linear and angular velocity (3,) m/s, rad/s."""
        self._site_jacobian(self._model, self._data, self._jacp, self._jacr, self._site)
        velocity = self._data.qvel
        position, rotation = self._jacp[:, self._dofs], self._jacr[:, self._dofs]
        return (
            np.concatenate([position, rotation]), position, rotation,
            np.dot(self._jacp, velocity), np.dot(self._jacr, velocity),
        )

    def _mass_matrix(self) -> np.ndarray:
        """(7, 7) of the arm's joints."""
        self._full_mass(self._model, self._mass, self._data.qM)
        return self._mass[self._dofs, :][:, self._dofs]
