"""Records -> ROS messages: the only module that knows both, and that writes numbers into messages.

ROS 2 messages take a numpy scalar or an int for a float and send another number, without an error. So every scalar goes
through `float` or `int` here, every array through `array.array`; the tests run with ROS_PYTHON_CHECK_FIELDS=1.
The other direction, with its checks, is `decoding.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from d2ppo_interfaces import msg as d2
from geometry_msgs.msg import Accel, Point, Pose, PoseStamped, Quaternion, Twist, Vector3, Wrench
from sensor_msgs.msg import CameraInfo, Image, JointState, RegionOfInterest
from std_msgs.msg import Header, String

from d2ppo_core.rotations import rotation_of

from . import decoding
from .records import (
    SECOND,
    ArmState,
    Chunk,
    ChunkRequest,
    Command,
    Episode,
    FrameInfo,
    PolicyReport,
    RobotState,
    SafetyReport,
    Target,
)

WORLD = "world"


# --- times and numbers ------------------------------------------------------------------------------------------------


def time_msg(nanoseconds: int) -> Time:
    return Time(sec=int(nanoseconds // SECOND), nanosec=int(nanoseconds % SECOND))


def duration_msg(length: int) -> Duration:
    return Duration(sec=int(length // SECOND), nanosec=int(length % SECOND))


def header(stamp: int, frame: str = WORLD) -> Header:
    return Header(stamp=time_msg(stamp), frame_id=frame)


def doubles(values: Iterable[float]) -> array:
    """Any numbers as what a float64[] field takes."""
    return array("d", np.asarray(values, dtype=np.float64).ravel().tobytes())


def vector(values: Any) -> Vector3:
    x, y, z = (float(value) for value in values)
    return Vector3(x=x, y=y, z=z)


def pose_msg(position: Any, quaternion: Any) -> Pose:
    """Position (3,) m and quaternion (4,) xyzw."""
    x, y, z = (float(value) for value in position)
    qx, qy, qz, qw = (float(value) for value in quaternion)
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


# --- chunks and commands ----------------------------------------------------------------------------------------------


def chunk_msg(chunk: Chunk) -> d2.ActionChunk:
    horizon, size = chunk.actions.shape
    return d2.ActionChunk(
        header=header(chunk.stamp), trial=chunk.trial, index=int(chunk.index), step=duration_msg(chunk.step),
        inference=duration_msg(chunk.inference), checkpoint=chunk.checkpoint, seen=chunk.seen,
        delta_reference=chunk.delta_reference, horizon=int(horizon), executed=int(chunk.executed), size=int(size),
        actions=doubles(chunk.actions),
    )


def request_msg(request: ChunkRequest) -> d2.ChunkRequest:
    prefix = np.zeros((0, 0)) if request.prefix is None else request.prefix
    return d2.ChunkRequest(
        header=header(request.stamp), trial=request.trial, seed=int(request.seed), index=int(request.index),
        start=time_msg(request.start), frozen=int(request.frozen), size=int(prefix.shape[1]), prefix=doubles(prefix),
    )


def command_msg(command: Command) -> d2.Command:
    return d2.Command(
        header=header(command.stamp), trial=command.trial, sequence=int(command.sequence), kind=int(command.kind),
        chunk=int(command.chunk), step=int(command.step), observation=time_msg(command.observation),
        reason=command.reason, action=doubles(command.action), targets=[_target_msg(t) for t in command.targets],
    )


def _target_msg(target: Target) -> d2.Target:
    velocity, acceleration = target.velocity, target.acceleration
    return d2.Target(
        pose=pose_msg(target.position, target.quaternion), gripper=float(target.gripper),
        velocity=Twist(linear=vector(velocity[:3]), angular=vector(velocity[3:])),
        acceleration=Accel(linear=vector(acceleration[:3]), angular=vector(acceleration[3:])),
    )


# --- the robot --------------------------------------------------------------------------------------------------------


def state_msg(state: RobotState) -> d2.StateVector:
    values = [np.asarray(value, dtype=np.float64).ravel() for value in state.values.values()]
    return d2.StateVector(
        header=header(state.stamp), trial=state.trial, step=int(state.step), names=list(state.values),
        sizes=array("I", [value.size for value in values]), values=doubles(np.concatenate(values) if values else []),
    )


def arm_msg(arm: ArmState) -> d2.ArmState:
    return d2.ArmState(
        header=header(arm.stamp), q=np.asarray(arm.q, dtype=np.float64), dq=np.asarray(arm.dq, dtype=np.float64),
        pose=pose_msg(arm.position, rotation_of(arm.rotation).as_quat()),
        wrench=Wrench(force=vector(arm.wrench[:3]), torque=vector(arm.wrench[3:])), ok=bool(arm.ok), fault=arm.fault,
    )


def joints_msg(stamp: int, arm: int, q: Any, dq: Any, fingers: Any) -> JointState:
    """Standard joint states of one arm and its two fingers, for everybody else's tools."""
    names = [f"panda{arm}_joint{i + 1}" for i in range(len(q))] + [f"panda{arm}_finger_joint{i + 1}" for i in (0, 1)]
    position = [*map(float, q), *(abs(float(finger)) for finger in fingers)]
    return JointState(
        header=header(stamp), name=names, position=doubles(position), velocity=doubles([*map(float, dq), 0.0, 0.0])
    )


def pose_stamped(stamp: int, position: Any, quaternion: Any, frame: str = WORLD) -> PoseStamped:
    return PoseStamped(header=header(stamp, frame), pose=pose_msg(position, quaternion))


def episode_msg(episode: Episode) -> d2.EpisodeState:
    return d2.EpisodeState(
        header=header(episode.stamp), trial=episode.trial, seed=int(episode.seed), step=int(episode.step),
        success=bool(episode.success), terminated=bool(episode.terminated), truncated=bool(episode.truncated),
        reward=float(episode.reward),
    )


# --- cameras ----------------------------------------------------------------------------------------------------------


def image_msg(stamp: int, camera: str, picture: np.ndarray, colour: str = "rgb") -> Image:
    """Picture (H, W, 3) uint8, first row on top."""
    height, width, _ = picture.shape
    encoding = next(name for name, order in decoding.ENCODINGS.items() if order == colour)
    return Image(
        header=header(stamp, camera), height=int(height), width=int(width), encoding=encoding, is_bigendian=0,
        step=int(width * 3), data=array("B", np.ascontiguousarray(picture, dtype=np.uint8).tobytes()),
    )


def frame_msg(frame: FrameInfo) -> d2.FrameInfo:
    return d2.FrameInfo(
        header=header(frame.stamp, frame.camera), number=int(frame.number), dropped=int(frame.dropped),
        repeated=int(frame.repeated),
    )


def pinhole_msg(stamp: int, camera: str, height: int, width: int, field_of_view: float) -> CameraInfo:
    """CameraInfo of a distortion-free pinhole with a vertical field of view in degrees."""
    focal = height / 2 / np.tan(np.radians(field_of_view) / 2)
    k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0]
    p = [focal, 0.0, width / 2, 0.0, 0.0, focal, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(
        header=header(stamp, camera), height=int(height), width=int(width), distortion_model="plumb_bob",
        d=doubles(np.zeros(5)), k=np.array(k), r=np.eye(3).ravel(), p=np.array(p),
    )


def lens_msg(
    stamp: int, camera: str, size: tuple[int, int], matrix: Any, distortion: Any, model: str = "plumb_bob",
    part: tuple[int, int, int, int] | None = None,
) -> CameraInfo:
    """CameraInfo of a lens: size (width, height) and matrix (9,) in pixels; `part` is x, y, width, height of a crop."""
    k = np.asarray(matrix, dtype=np.float64).reshape(9)
    p = np.concatenate([k[:3], [0.0], k[3:6], [0.0], k[6:], [0.0]])
    x, y, width, height = (int(value) for value in part or (0, 0, 0, 0))  # all 0: the whole picture
    return CameraInfo(
        header=header(stamp, camera), width=int(size[0]), height=int(size[1]), distortion_model=model,
        d=doubles(distortion), k=k, r=np.eye(3).ravel(), p=p,
        roi=RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height, do_rectify=False),
    )  # fmt: skip


# --- reports ----------------------------------------------------------------------------------------------------------


def safety_msg(report: SafetyReport) -> d2.SafetyState:
    return d2.SafetyState(
        header=header(report.stamp), state=int(report.state), profile=report.profile, check=report.check,
        reason=report.reason, value=float(report.value), limit=float(report.limit), since=time_msg(report.since),
        passed=int(report.passed), changed=int(report.changed), refused=int(report.refused),
    )


def policy_msg(report: PolicyReport) -> d2.PolicyStatus:
    last, median, high = (float(seconds) for seconds in report.inference)
    return d2.PolicyStatus(
        header=header(report.stamp), state=report.state, task=report.task, checkpoint=report.checkpoint,
        chunks=int(report.chunks), inference_last=last, inference_median=median, inference_p99=high,
        late=int(report.late), error=report.error,
    )


def text_msg(text: str) -> String:
    return String(data=text)


ENCODERS: dict[type, Callable[[Any], Any]] = {
    Chunk: chunk_msg, ChunkRequest: request_msg, Command: command_msg, RobotState: state_msg, ArmState: arm_msg,
    Episode: episode_msg, FrameInfo: frame_msg, SafetyReport: safety_msg, PolicyReport: policy_msg,
}  # fmt: skip
MESSAGES = {record: getattr(d2, name) for record, name in decoding.MESSAGES.items()}
