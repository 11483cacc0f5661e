"""The robot's state as the FR3's protocol has it (server version 10), written into one array instead of field by field.

franky-sim builds and packs a dataclass of fifty fields a thousand times a second, which costs more than its physics.
Here constants are written once and only what moves is written again. Layout: 320 float32, two modes, two sets of 41
error flags, the robot's mode, the success rate; a test compares it with franky-sim's own bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

FLOATS = (
    ("O_T_EE", 16), ("O_T_EE_d", 16), ("F_T_EE", 16), ("EE_T_K", 16), ("F_T_NE", 16), ("NE_T_EE", 16), ("m_ee", 1),
    ("I_ee", 9), ("F_x_Cee", 3), ("m_load", 1), ("I_load", 9), ("F_x_Cload", 3), ("elbow", 2), ("elbow_d", 2),
    ("tau_J", 7), ("tau_J_d", 7), ("dtau_J", 7), ("q", 7), ("q_d", 7), ("dq", 7), ("dq_d", 7), ("ddq_d", 7),
    ("joint_contact", 7), ("cartesian_contact", 6), ("joint_collision", 7), ("cartesian_collision", 6),
    ("tau_ext_hat_filtered", 7), ("O_F_ext_hat_K", 6), ("K_F_ext_hat_K", 6), ("O_dP_EE_d", 6), ("O_ddP_O", 3),
    ("elbow_c", 2), ("delbow_c", 2), ("ddelbow_c", 2), ("O_T_EE_c", 16), ("O_dP_EE_c", 6), ("O_ddP_EE_c", 6),
    ("theta", 7), ("dtheta", 7), ("accelerometer_top", 18), ("accelerometer_bottom", 18),
)  # fmt: skip
_TAIL = struct.Struct("<BB41s41sBf")

# The order of the flags, as in libfranka's list of errors.
ERRORS = (
    "joint_position_limits_violation", "cartesian_position_limits_violation", "self_collision_avoidance_violation",
    "joint_velocity_violation", "cartesian_velocity_violation", "force_control_safety_violation", "joint_reflex",
    "cartesian_reflex", "max_goal_pose_deviation_violation", "max_path_pose_deviation_violation",
    "cartesian_velocity_profile_safety_violation", "joint_position_motion_generator_start_pose_invalid",
    "joint_motion_generator_position_limits_violation", "joint_motion_generator_velocity_limits_violation",
    "joint_motion_generator_velocity_discontinuity", "joint_motion_generator_acceleration_discontinuity",
    "cartesian_position_motion_generator_start_pose_invalid", "cartesian_motion_generator_elbow_limit_violation",
    "cartesian_motion_generator_velocity_limits_violation", "cartesian_motion_generator_velocity_discontinuity",
    "cartesian_motion_generator_acceleration_discontinuity", "cartesian_motion_generator_elbow_sign_inconsistent",
    "cartesian_motion_generator_start_elbow_invalid", "force_controller_desired_force_tolerance_violation",
    "start_elbow_sign_inconsistent", "communication_constraints_violation", "power_limit_violation",
    "cartesian_motion_generator_joint_position_limits_violation",
    "cartesian_motion_generator_joint_velocity_limits_violation",
    "cartesian_motion_generator_joint_velocity_discontinuity",
    "cartesian_motion_generator_joint_acceleration_discontinuity",
    "cartesian_position_motion_generator_invalid_frame", "controller_torque_discontinuity",
    "joint_p2p_insufficient_torque_for_planning", "tau_j_range_violation", "instability_detected",
    "joint_move_in_wrong_direction", "cartesian_spline_motion_generator_violation",
    "joint_via_motion_generator_planning_joint_limit_violation", "base_acceleration_initialization_timeout",
    "base_acceleration_invalid_reading",
)  # fmt: skip


def flags(names: Sequence[str]) -> bytes:
    """41 bytes, 1 for each error named."""
    return bytes(name in names for name in ERRORS)


class StateWriter:
    """One robot's state message, but for its id."""

    def __init__(self) -> None:
        self._floats = np.zeros(sum(size for _, size in FLOATS), dtype="<f4")
        ends = np.cumsum([size for _, size in FLOATS])
        self._parts = {
            name: self._floats[end - size : end] for (name, size), end in zip(FLOATS, ends, strict=True)
        }

    def set(self, **values: Any) -> None:
        """Write some fields; poses are 16 numbers, column after column."""
        for name, value in values.items():
            self._parts[name][:] = value

    def set_from(self, state: Any) -> None:
        """Write every field of a franky-sim state."""
        for name, size in FLOATS:
            self._parts[name][:] = np.ravel(getattr(state, name))[:size]

    def bytes(
        self, generator: int, controller: int, errors: bytes, reflex: bytes, mode: int, success: float
    ) -> bytes:
        """The message: modes as the protocol numbers them, flags as `flags` gives them."""
        return self._floats.tobytes() + _TAIL.pack(generator, controller, errors, reflex, mode, success)
