"""robomimic files recorded with robosuite 1.5: which of them mean what 1.4.1's do, and their observations in its terms.

Poses, fingers and actions mean the same in both. What differs in the "object" observation, from 1.5.0 to 1.5.2:

* Lift: cube minus grip site, where 1.4.1 has grip site minus cube.
* Can, Square: the pose in the hand's frame comes first, not last. It is computed from the object's pose of the frame
  before (zeros in the first one), so it is computed anew from the poses that the file holds.
* Transport: the two flags of touching stand before the relative positions, not after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..contract import ActionSpec
from ..errors import UserError

NOTE = (
    "its observations are brought to robosuite 1.4.1's terms; its controller differs in two details that stay: the "
    "gripper moves at another rate, and without rotation the goal is the present orientation, not the last goal"
)
STRAY = 0.05  # m: between a relative position and the same one computed from poses; objects move less in a frame
_TRANSPORT = [*range(27), *range(29, 41), 27, 28]  # where 1.4.1's entries stand in 1.5
_CONTROLLER = {  # of an arm; what is not said has these values in robosuite 1.5
    "type": "OSC_POSE", "input_type": "delta", "input_max": 1, "input_min": -1, "kp": 150, "damping_ratio": 1,
    "impedance_mode": "fixed", "uncouple_pos_ori": True, "position_limits": None, "orientation_limits": None,
    "interpolation": None, "goal_update_mode": "achieved", "gripper": {"type": "GRIP"},
}  # fmt: skip


def controller_differences(env_kwargs: Mapping[str, Any], action: ActionSpec) -> list[str]:
    """What keeps this environment's actions from being 1.4.1's, in words; empty if nothing does."""
    robots = _listed(env_kwargs.get("robots", "Panda"))
    wrong = [f"robot {robot} instead of Panda" for robot in robots if robot != "Panda"]
    controllers = _listed(env_kwargs.get("controller_configs") or {})
    for controller in controllers:
        wrong += [difference for difference in _differences(controller, action) if difference not in wrong]
    return wrong


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _differences(controller: Mapping[str, Any], action: ActionSpec) -> list[str]:
    """Of one robot's composite controller, of which only the part "right" moves a Panda."""
    part = _arm(controller)
    if controller.get("type") != "BASIC" or part is None:
        return [f"controller {controller.get('type')} instead of BASIC with an arm 'right'"]
    scale = [action.position_scale] * 3 + [action.rotation_scale] * 3
    expected = {**_CONTROLLER, "output_max": scale, "output_min": [-value for value in scale]}
    wrong = [f"{name} {part[name]} instead of {value}" for name, value in expected.items()
             if part.get(name, value) != value]
    frame = part.get("input_ref_frame", "base")
    if frame not in ("world", "base"):
        wrong.append(f"actions in the frame '{frame}' instead of 'world'")
    elif frame == "base" and action.arms > 1:  # that of a single arm is not turned
        wrong.append("actions in the frames of two bases, which are turned, instead of 'world'")
    return wrong


def _arm(controller: Mapping[str, Any]) -> Mapping[str, Any] | None:
    parts = controller.get("body_parts") or {}
    return parts.get("arms", parts).get("right")


def describe_controller(env_kwargs: Mapping[str, Any]) -> str:
    """In the words of the file's provenance."""
    part = _arm(_listed(env_kwargs["controller_configs"])[0]) or {}
    return " ".join([
        f"{part.get('type')} kp {part.get('kp', 150)} damping {part.get('damping_ratio', 1)}",
        f"frame {part.get('input_ref_frame', 'base')} (robosuite 1.5)",
    ])


def object_as_in_141(environment: str, seen: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """The "object" observation (T, n) in 1.4.1's order and signs; `seen` holds the file's, and robot 0's pose."""
    entries, grip, hand = seen["object"], seen["robot0_eef_pos"], seen["robot0_eef_quat"]
    if environment == "Lift":
        _require_near(entries[:, 7:], entries[:, :3] - grip, where)
        return np.concatenate([entries[:, :7], -entries[:, 7:]], axis=1)
    if environment == "TwoArmTransport":
        _require_near(entries[:, 29:32], entries[:, :3] - grip, where)
        return entries[:, _TRANSPORT]
    position, quaternion = entries[:, 7:10], entries[:, 10:]
    to_hand = Rotation.from_quat(hand).inv()
    relative = to_hand.apply(position - grip)
    _require_near(entries[:, :3], relative, where)
    turned = (to_hand * Rotation.from_quat(quaternion)).as_quat(canonical=True)  # w >= 0, as in robosuite
    return np.concatenate([position, quaternion, relative, turned], axis=1)


def _require_near(recorded: np.ndarray, expected: np.ndarray, where: str) -> None:
    """(T, 3) each. Relative positions show whether the entries stand where they are looked for."""
    if np.median(np.linalg.norm(recorded - expected, axis=1)) > STRAY:
        raise UserError(
            f"{where} does not have robosuite 1.5's order: its relative positions do not fit its positions; extract "
            "the observations again with robomimic, or use the v1.4.1 file of the same task"
        )
