"""Recorded messages -> `d2ppo_ros.records`. They are rosbags' objects: the same fields as ROS's, arrays as numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError

from ..records import (
    SECOND,
    ArmState,
    Chunk,
    ChunkRequest,
    Command,
    Episode,
    Kind,
    RobotState,
    SafetyReport,
    State,
    Target,
)

COLOURS = {"rgb8": "rgb", "bgr8": "bgr"}  # encodings of images -> the contract's colour order


def ns(time: Any) -> int:
    """Of a Time or Duration."""
    return time.sec * SECOND + time.nanosec


def stamp(message: Any) -> int:
    """ns of a message's header."""
    return ns(message.header.stamp)


def _rows(values: Any, size: int) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1, size)  # [n * size] -> [n, size]


def chunk(m: Any) -> Chunk:
    return Chunk(
        stamp(m), m.trial, m.index, ns(m.step), ns(m.inference), m.checkpoint, m.executed, _rows(m.actions, m.size),
        m.delta_reference, m.seen,
    )  # fmt: skip


def request(m: Any) -> ChunkRequest:
    prefix = _rows(m.prefix, m.size) if m.size else None
    return ChunkRequest(stamp(m), m.trial, m.seed, m.index, ns(m.start), m.frozen, prefix)


def command(m: Any) -> Command:
    return Command(
        stamp(m), m.trial, m.sequence, Kind(m.kind), m.chunk, m.step, ns(m.observation), m.reason,
        np.array(m.action, dtype=np.float64), tuple(_target(t) for t in m.targets),
    )  # fmt: skip


def _target(m: Any) -> Target:
    return Target(_xyz(m.pose.position), _xyzw(m.pose.orientation), _six(m.velocity), _six(m.acceleration), m.gripper)


def _xyz(v: Any) -> np.ndarray:
    return np.array([v.x, v.y, v.z])


def _xyzw(q: Any) -> np.ndarray:
    return np.array([q.x, q.y, q.z, q.w])


def _six(m: Any) -> np.ndarray:
    return np.concatenate([_xyz(m.linear), _xyz(m.angular)])


def state(m: Any) -> RobotState:
    values = np.split(np.asarray(m.values, dtype=np.float64), np.cumsum(m.sizes)[:-1])  # [sum of sizes] -> each [size]
    return RobotState(stamp(m), m.trial, m.step, dict(zip(m.names, values, strict=True)))


def arm(m: Any) -> ArmState:
    return ArmState(
        stamp(m), np.array(m.q), np.array(m.dq), _xyz(m.pose.position),
        Rotation.from_quat(_xyzw(m.pose.orientation)).as_matrix(),
        np.concatenate([_xyz(m.wrench.force), _xyz(m.wrench.torque)]), m.ok, m.fault,
    )  # fmt: skip


def episode(m: Any) -> Episode:
    return Episode(stamp(m), m.trial, m.seed, m.step, m.success, m.terminated, m.truncated, m.reward)


def safety(m: Any) -> SafetyReport:
    return SafetyReport(
        stamp(m), State(m.state), m.profile, m.check, m.reason, m.value, m.limit, ns(m.since), m.passed, m.changed,
        m.refused,
    )  # fmt: skip


def picture(m: Any) -> np.ndarray:
    """(H, W, 3) uint8, in the order of colours that it was sent in."""
    if m.encoding not in COLOURS:
        raise UserError(f"a recorded image has the encoding '{m.encoding}'; only {' and '.join(COLOURS)} can be read")
    rows = np.asarray(m.data, dtype=np.uint8).reshape(m.height, m.step)  # [H * step] -> [H, step]
    return rows[:, : m.width * 3].reshape(m.height, m.width, 3)  # padding cut off; [H, W * 3] -> [H, W, 3]


DECODERS = {
    "ActionChunk": chunk, "ChunkRequest": request, "Command": command, "StateVector": state, "ArmState": arm,
    "EpisodeState": episode, "SafetyState": safety,
}  # fmt: skip
