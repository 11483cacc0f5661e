"""What travels between the nodes, as plain values: the logic knows these, only `codec.py` knows ROS messages.

Times are int nanoseconds on one clock (the node's ROS clock; simulated time in lockstep). SI units, world frame,
quaternions xyzw. Letters as in `d2ppo_core.contract`: H predicted steps, Ta executed, Da action size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

SECOND = 1_000_000_000  # ns


@dataclass(frozen=True)
class Chunk:
    """One prediction: raw actions for H steps, from the observation at `stamp`. Step i is for `stamp + i * step`."""

    stamp: int  # time of the observation
    trial: str
    index: int  # which chunk of its trial; names its noise
    step: int  # ns between actions
    inference: int  # ns that the policy took
    checkpoint: str  # sha256 of the policy's file
    executed: int  # Ta
    actions: np.ndarray  # (H, Da) float64, raw
    delta_reference: str = "measured"  # as in the contract
    seen: str = ""  # digest of the tensors that reached the network (`Observation.digest`)


@dataclass(frozen=True)
class ChunkRequest:
    """What the executor asks of the policy. It carries all that names a chunk: the policy remembers no trial."""

    stamp: int  # look at the observation of this time: the first on the grid that is not older
    trial: str
    seed: int  # of the episode; with `index` it names the noise
    index: int
    start: int  # time of the trial's first observation: what is older does not belong to its history
    frozen: int = 0  # real-time chunking: how many steps of `prefix` are executed before the answer can arrive
    prefix: np.ndarray | None = None  # (n, Da) raw actions that the running chunk holds for stamp, stamp + step, ...


class Kind(IntEnum):
    """What a command asks of the robot."""

    HOLD = 0  # stop and stay where you are
    KEEP = 1  # nothing new: keep going to the last target (the sender is alive)
    DELTA = 2  # a raw action; the robot turns it into a target with `d2ppo_core.action.pose_target`
    POSE = 3  # an absolute target with velocity and acceleration
    STOP = 4  # stop, and take no more commands until armed again


@dataclass(frozen=True)
class Target:
    """Where one arm's controlled frame shall be at a command's time, how fast it moves there, and its gripper."""

    position: np.ndarray  # (3,) m
    quaternion: np.ndarray  # (4,) xyzw
    velocity: np.ndarray  # (6,) m/s, rad/s
    acceleration: np.ndarray  # (6,) m/s^2, rad/s^2
    gripper: float  # -1 open ... +1 closed


@dataclass(frozen=True)
class Command:
    """One command, as requested by the executor, as let through by safety, or as applied by the robot."""

    stamp: int  # when it applies; in lockstep the time of the state that it answers
    trial: str
    sequence: int  # the executor's count, from 1; 0: the safety node's own, which answers none
    kind: Kind
    chunk: int = 0  # index of the chunk it comes from
    step: int = 0  # which step of that chunk
    observation: int = 0  # time of what the policy saw when it decided this; 0: no policy behind it
    reason: str = ""  # of a HOLD or STOP
    action: np.ndarray = field(default_factory=lambda: np.zeros(0))  # DELTA: (Da,) raw
    targets: tuple[Target, ...] = ()  # POSE: one for each arm


@dataclass(frozen=True)
class RobotState:
    """What the robot (or simulator) measured at one time: every low-dimensional key of the contract that it offers."""

    stamp: int
    trial: str
    step: int  # control steps since the trial began (lockstep), else counts states
    values: dict[str, np.ndarray]  # by key (size,) float64


@dataclass(frozen=True)
class ArmState:
    """One arm's joints and what its controller reports."""

    stamp: int
    q: np.ndarray  # (7,) rad
    dq: np.ndarray  # (7,) rad/s
    position: np.ndarray  # (3,) m, the controlled frame in the world
    rotation: np.ndarray  # (3, 3) of the controlled frame
    wrench: np.ndarray = field(default_factory=lambda: np.zeros(6))  # (6,) N, Nm, external
    ok: bool = True  # no errors, in control
    fault: str = ""  # why it is not ok; with ok: why its own watchdog stopped it, until safety is READY


@dataclass(frozen=True)
class FrameInfo:
    """One camera frame's identity."""

    stamp: int  # capture
    camera: str
    number: int
    dropped: int = 0  # frames that were lost so far
    repeated: int = 0  # frames that came twice and were not passed on


class State(IntEnum):
    """Of the safety node."""

    DISARMED = 0  # something needed is missing; nothing moves
    READY = 1  # all checks pass; nothing moves
    ARMED = 2  # commands pass
    HOLD = 3  # the robot is held; goes on by itself when the cause is gone
    STOPPED = 4  # latched: only a person re-arms


@dataclass(frozen=True)
class SafetyReport:
    """What the safety node says of itself."""

    stamp: int
    state: State
    profile: str  # "sim" or "robot"
    check: str = ""  # name of the check behind a HOLD or STOPPED
    reason: str = ""  # in words, latched while STOPPED
    value: float = 0.0
    limit: float = 0.0
    since: int = 0
    passed: int = 0  # commands let through unchanged since arming
    changed: int = 0  # commands clipped since arming
    refused: int = 0  # commands not let through since arming


@dataclass(frozen=True)
class Episode:
    """How a trial stands, as the simulator (or a person) sees it."""

    stamp: int
    trial: str
    seed: int
    step: int
    success: bool = False
    terminated: bool = False
    truncated: bool = False
    reward: float = 0.0


@dataclass(frozen=True)
class PolicyReport:
    """What the policy node says of itself."""

    stamp: int
    state: str  # lifecycle state
    task: str
    checkpoint: str
    chunks: int
    inference: tuple[float, float, float]  # s: last, median, 99 % of the recent ones
    late: int = 0  # requests that were given up
    error: str = ""


Metadata = dict[str, Any]
"""What describes a trial: plain JSON."""
