"""Messages -> records, with checks: the half of the codec that needs no ROS, and so reads recorded messages, too.

A message is anything with the fields of its type: ROS's own objects, or those that a record is read back as. Sizes that
do not fit raise a `UserError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError

from .records import (
    SECOND,
    ArmState,
    Chunk,
    ChunkRequest,
    Command,
    Episode,
    FrameInfo,
    Kind,
    PolicyReport,
    RobotState,
    SafetyReport,
    State,
    Target,
)

ENCODINGS = {"rgb8": "rgb", "bgr8": "bgr"}  # of images -> the contract's colour order


def nanoseconds(time: Any) -> int:
    return time.sec * SECOND + time.nanosec


def stamp_of(message: Any) -> int:
    """ns of a message's header."""
    return nanoseconds(message.header.stamp)


def pose_of(pose: Any) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and quaternion (4,) xyzw."""
    p, q = pose.position, pose.orientation
    return np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])


def _six(message: Any, linear: str = "linear", angular: str = "angular") -> np.ndarray:
    """(6,) of a Twist, Accel or Wrench."""
    return np.array([getattr(getattr(message, part), axis) for part in (linear, angular) for axis in "xyz"])


def matrix(values: Any, columns: int, where: str) -> np.ndarray:
    """(n, columns) of a flat field; refuses what does not divide."""
    flat = np.array(values, dtype=np.float64)
    if columns < 1 or flat.size % columns:
        raise UserError(f"{where} holds {flat.size} numbers, which are no rows of {columns}; the sender is broken")
    return flat.reshape(-1, columns)  # [n * columns] -> [n, columns]


def chunk_of(message: Any) -> Chunk:
    actions = matrix(message.actions, message.size, "the action chunk")
    if len(actions) != message.horizon or not 1 <= message.executed <= message.horizon:
        raise UserError(
            f"the action chunk holds {len(actions)} steps, says {message.horizon} and executes {message.executed}; "
            "the sender is broken"
        )
    if message.delta_reference not in ("measured", "commanded"):
        raise UserError(f"the action chunk's delta_reference is '{message.delta_reference}'; the sender is broken")
    return Chunk(
        stamp_of(message), message.trial, message.index, nanoseconds(message.step), nanoseconds(message.inference),
        message.checkpoint, message.executed, actions, message.delta_reference, message.seen,
    )


def request_of(message: Any) -> ChunkRequest:
    prefix = matrix(message.prefix, message.size, "the request's prefix") if message.size else None
    if message.frozen > (0 if prefix is None else len(prefix)):
        raise UserError(f"the request freezes {message.frozen} steps of a prefix that is shorter; the sender is broken")
    return ChunkRequest(
        stamp_of(message), message.trial, message.seed, message.index, nanoseconds(message.start), message.frozen,
        prefix,
    )


def command_of(message: Any) -> Command:
    if message.kind not in list(Kind):
        raise UserError(f"a command has the kind {message.kind}, which does not exist; the sender is broken")
    return Command(
        stamp_of(message), message.trial, message.sequence, Kind(message.kind), message.chunk, message.step,
        nanoseconds(message.observation), message.reason, np.array(message.action, dtype=np.float64),
        tuple(_target_of(target) for target in message.targets),
    )


def _target_of(message: Any) -> Target:
    return Target(*pose_of(message.pose), _six(message.velocity), _six(message.acceleration), message.gripper)


def state_of(message: Any) -> RobotState:
    values = np.array(message.values, dtype=np.float64)
    if len(message.names) != len(message.sizes) or sum(message.sizes) != len(values):
        raise UserError(
            f"a state names {len(message.names)} keys of together {sum(message.sizes)} numbers and holds "
            f"{len(values)}; the sender is broken"
        )
    parts = np.split(values, np.cumsum(message.sizes)[:-1]) if len(message.sizes) else []
    return RobotState(stamp_of(message), message.trial, message.step, dict(zip(message.names, parts, strict=True)))


def arm_of(message: Any) -> ArmState:
    position, quaternion = pose_of(message.pose)
    if not 0.5 < np.linalg.norm(quaternion) < 1.5:
        raise UserError(f"an arm's orientation {quaternion} is no unit quaternion; the sender is broken")
    return ArmState(
        stamp_of(message), np.array(message.q), np.array(message.dq), position,
        Rotation.from_quat(quaternion).as_matrix(), _six(message.wrench, "force", "torque"), message.ok, message.fault,
    )


def episode_of(message: Any) -> Episode:
    return Episode(
        stamp_of(message), message.trial, message.seed, message.step, message.success, message.terminated,
        message.truncated, message.reward,
    )


def picture_of(message: Any) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8 without a copy where rows are not padded, and its colour order."""
    if message.encoding not in ENCODINGS:
        raise UserError(
            f"an image of {message.header.frame_id or 'a camera'} has the encoding '{message.encoding}'; publish "
            f"{' or '.join(ENCODINGS)}"
        )
    height, width, step = message.height, message.width, message.step
    if not (height and width) or step < width * 3 or len(message.data) != height * step:
        raise UserError(
            f"an image of {height} x {width} with rows of {step} bytes holds {len(message.data)} bytes; the sender is "
            "broken"
        )
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(height, step)  # [H * step] -> [H, step]
    return rows[:, : width * 3].reshape(height, width, 3), ENCODINGS[message.encoding]  # [H, W * 3] -> [H, W, 3]


def frame_of(message: Any) -> FrameInfo:
    return FrameInfo(
        stamp_of(message), message.header.frame_id, message.number, message.dropped, message.repeated
    )


def safety_of(message: Any) -> SafetyReport:
    if message.state not in list(State):
        raise UserError(f"a safety report has the state {message.state}, which does not exist; the sender is broken")
    return SafetyReport(
        stamp_of(message), State(message.state), message.profile, message.check, message.reason, message.value,
        message.limit, nanoseconds(message.since), message.passed, message.changed, message.refused,
    )


def policy_of(message: Any) -> PolicyReport:
    return PolicyReport(
        stamp_of(message), message.state, message.task, message.checkpoint, message.chunks,
        (message.inference_last, message.inference_median, message.inference_p99), message.late, message.error,
    )


DECODERS: dict[type, Callable[[Any], Any]] = {
    Chunk: chunk_of, ChunkRequest: request_of, Command: command_of, RobotState: state_of, ArmState: arm_of,
    Episode: episode_of, FrameInfo: frame_of, SafetyReport: safety_of, PolicyReport: policy_of,
}  # fmt: skip
MESSAGES: dict[type, str] = {
    Chunk: "ActionChunk", ChunkRequest: "ChunkRequest", Command: "Command", RobotState: "StateVector",
    ArmState: "ArmState", Episode: "EpisodeState", FrameInfo: "FrameInfo", SafetyReport: "SafetyState",
    PolicyReport: "PolicyStatus",
}  # fmt: skip
