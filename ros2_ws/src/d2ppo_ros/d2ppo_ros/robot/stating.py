"""The robot's side of the contract: which of the task's keys these arms measure, and what their actions mean."""

from __future__ import annotations

from d2ppo_core.contract import ActionSpec, LowDim, ObservationSpec
from d2ppo_core.errors import UserError

from ..contracts import RobotContract
from .settings import ArmSettings

# What `frames.py` makes: part of the key's name -> size, frame, how the body's name ends, how the convention begins.
_MEASURED = {
    "eef_pos": (3, "world", "grip_site", ""),
    "eef_quat": (4, "world", "right_hand", "xyzw, sign as the chain of link rotations gives it"),
    "gripper_qpos": (2, "joint", "", "finger joints"),
}


def contract_of(settings: ArmSettings, observation: ObservationSpec, action: ActionSpec) -> RobotContract:
    """What these arms state; refuses a task that asks of them what they do not measure or do."""
    arms = len(settings.hosts)
    if action.arms != arms or action.meaning != "osc_pose_delta":
        raise UserError(
            f"arm: task '{settings.task}' is for {action.arms} arms with actions '{action.meaning}', and hosts names "
            f"{arms}; choose the task of the policy, and as many hosts as it has arms"
        )
    keys = [key for key in observation.lowdim if settings.objects or key.name.startswith("robot")]
    for key in keys:
        if key.name.startswith("robot"):
            _require_measured(key, arms, settings)
    name = f"{settings.robot_model} at {', '.join(settings.hosts)}"
    return RobotContract(name=name, lowdim=tuple(keys), action=action.model_copy(update={"limits": settings.limits}))


def _require_measured(key: LowDim, arms: int, settings: ArmSettings) -> None:
    """That this key is what `frames.py` makes of the robot's state."""
    number, _, part = key.name.removeprefix("robot").partition("_")
    size, frame, body, convention = _MEASURED.get(part, (0, "", "", ""))
    known = number.isdigit() and int(number) < arms and size == key.size and frame == key.frame
    if not (known and key.body.endswith(body) and key.convention.startswith(convention)):
        raise UserError(
            f"arm: task '{settings.task}' asks for {key.name} ({key.size} numbers, {key.frame}, {key.body}, "
            f"{key.convention}), which this driver does not measure; it has {', '.join(_MEASURED)} of {arms} arms"
        )
    if part == "gripper_qpos" and not settings.gripper:
        raise UserError(f"arm: task '{settings.task}' asks for {key.name}; mount Franka's hand, and set gripper: true")
