"""Policy action -> limits -> pose target: the one function that the simulator node and the robot's driver call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .contract import ActionSpec
from .errors import UserError


@dataclass(frozen=True)
class PoseTarget:
    """Where one arm's controlled frame should go: position (3,) m, orientation (3, 3), both in the world frame."""

    position: np.ndarray
    orientation: np.ndarray
    gripper: float  # -1 open ... +1 closed


def apply_limits(action: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Clip a raw action (..., Da) to the limits profile it is run under; refuses what is not finite.

    Profile `sim`: the ranges of training, [-1, 1] for every number, exactly as robosuite's controller clips its input.
    """
    if not np.isfinite(action).all():
        raise UserError("the policy produced NaN or infinity; the action is refused")
    if spec.limits != "sim":
        raise UserError(f"limits profile '{spec.limits}' is not available in this version; use 'sim'")
    return np.clip(action, -1.0, 1.0)


def pose_target(action: np.ndarray, position: np.ndarray, orientation: np.ndarray, spec: ActionSpec) -> PoseTarget:
    """OSC_POSE delta of one arm -> absolute target (robosuite's OSC with control_delta).

    Args:
        action: (7,) raw: position delta 3, axis-angle delta 3 (world frame), gripper 1.
        position, orientation: (3,) m and (3, 3) that the delta refers to: measured, or last commanded, as
            `spec.delta_reference` says; the caller holds both.
    """
    a = apply_limits(np.asarray(action, dtype=np.float64), spec)
    turn = Rotation.from_rotvec(spec.rotation_scale * a[3:6]).as_matrix()
    return PoseTarget(position + spec.position_scale * a[:3], turn @ orientation, float(a[6]))
