"""Policy action -> limits -> pose target: the one function that the simulator node and the robot's driver call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .contract import ActionSpec, PolicySpec
from .errors import UserError

ROBOT_SPEED = 0.25  # m/s, the reduced speed of ISO 10218 for people nearby: 12.5 mm in a step at 20 Hz
ROBOT_TURN = 1.0  # rad/s: 0.05 rad in a step at 20 Hz
_INSIDE = 1 - 1e-12  # a shortened delta ends just inside its limit, whatever the rounding


@dataclass(frozen=True)
class PoseTarget:
    """Where one arm's controlled frame should go: position (3,) m, orientation (3, 3), both in the world frame."""

    position: np.ndarray
    orientation: np.ndarray
    gripper: float  # -1 open ... +1 closed


def apply_limits(action: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Clip a raw action (..., Da) to the limits profile it is run under; refuses what is not finite.

    Profile `sim`: the ranges of training, [-1, 1] for every number, exactly as robosuite's controller clips its input.
    Profile `robot`: in addition each arm's translation and rotation of a step are shortened, keeping their direction,
    to what ROBOT_SPEED and ROBOT_TURN allow. Stateless; what is inside the limits is returned as it is.
    """
    if not np.isfinite(action).all():
        raise UserError("the policy produced NaN or infinity; the action is refused")
    clipped = np.clip(action, -1.0, 1.0)
    if spec.limits == "sim" or spec.meaning == "planar_delta":
        return clipped
    arms = clipped.astype(np.float64).reshape(*clipped.shape[:-1], -1, 7)  # (..., Da) -> (..., arms, 7)
    _shorten(arms[..., :3], ROBOT_SPEED / spec.control_hz / spec.position_scale)
    _shorten(arms[..., 3:6], ROBOT_TURN / spec.control_hz / spec.rotation_scale)
    return arms.reshape(clipped.shape)


def _shorten(vectors: np.ndarray, longest: float) -> None:
    """Scale those of the vectors (..., 3) down, in place, that are longer than `longest`."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors *= np.where(length > longest, _INSIDE * longest / np.maximum(length, longest), 1.0)


def under_limits(spec: PolicySpec, limits: str) -> PolicySpec:
    """The contract with another limits profile; an empty one keeps the contract's own."""
    if limits not in ("", "sim", "robot"):
        raise UserError(f"limits={limits} is no limits profile; choose sim or robot, or leave it out")
    action = spec.action.model_copy(update={"limits": limits or spec.action.limits})
    return spec.model_copy(update={"action": action})


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
