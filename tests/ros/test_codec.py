"""Every record survives the wire bit for bit, with ROS's own field checks on; what does not fit is refused."""

from __future__ import annotations

from array import array
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.ros
pytest.importorskip("d2ppo_interfaces")

from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402

from d2ppo_core.errors import UserError  # noqa: E402
from d2ppo_ros import codec, decoding  # noqa: E402
from d2ppo_ros.records import (  # noqa: E402
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

times = st.integers(0, 2**31 * 10**9 - 1)
counts = st.integers(0, 2**63)
small = st.integers(0, 2**31)
doubles = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(-1e3, 1e3)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def arrays(*shape: int, of: st.SearchStrategy = doubles) -> st.SearchStrategy:
    return st.lists(of, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda values: np.array(values, dtype=np.float64).reshape(shape)
    )


quaternions = arrays(4, of=finite).filter(lambda q: np.linalg.norm(q) > 0.1).map(lambda q: q / np.linalg.norm(q))
chunks = st.builds(
    lambda actions, **rest: Chunk(actions=actions, executed=1 + len(actions) // 2, **rest),
    stamp=times, trial=words, index=counts, step=times, inference=times, checkpoint=words,
    seen=words,
    actions=st.tuples(st.integers(2, 5), st.integers(1, 14)).flatmap(lambda size: arrays(*size)),
    delta_reference=st.sampled_from(("measured", "commanded")),
)  # fmt: skip
requests = st.builds(
    ChunkRequest, stamp=times, trial=words, seed=st.integers(-(2**63), 2**63 - 1), index=counts, start=times,
    frozen=st.integers(0, 2), prefix=arrays(2, 7),
)  # fmt: skip
targets = st.builds(
    Target, position=arrays(3), quaternion=arrays(4), velocity=arrays(6), acceleration=arrays(6), gripper=doubles
)
commands = st.builds(
    Command, stamp=times, trial=words, sequence=counts, kind=st.sampled_from(Kind), chunk=counts, step=small,
    observation=times, reason=words, action=arrays(7), targets=st.lists(targets, max_size=2).map(tuple),
)  # fmt: skip
robot_states = st.builds(
    RobotState, stamp=times, trial=words, step=counts,
    values=st.dictionaries(words, st.integers(1, 5).flatmap(arrays), max_size=4),
)  # fmt: skip
reports = st.builds(
    SafetyReport, stamp=times, state=st.sampled_from(State), profile=words, check=words, reason=words, value=doubles,
    limit=doubles, since=times, passed=counts, changed=counts, refused=counts,
)  # fmt: skip
episodes = st.builds(
    Episode, stamp=times, trial=words, seed=st.integers(-(2**63), 2**63 - 1), step=counts, success=st.booleans(),
    terminated=st.booleans(), truncated=st.booleans(), reward=doubles,
)  # fmt: skip
frames = st.builds(FrameInfo, stamp=times, camera=words, number=counts, dropped=counts, repeated=counts)
statuses = st.builds(
    PolicyReport, stamp=times, state=words, task=words, checkpoint=words, chunks=counts,
    inference=st.tuples(doubles, doubles, doubles), late=counts, error=words,
)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, float)):
        return np.asarray(a).tobytes() == np.asarray(b).tobytes() or np.array_equal(a, b, equal_nan=True)
    return a == b


@settings(max_examples=120, deadline=None)
@given(st.one_of(chunks, requests, commands, robot_states, reports, episodes, frames, statuses))
def test_every_record_survives_the_wire(record: Any) -> None:
    kind = type(record)
    wire = serialize_message(codec.ENCODERS[kind](record))
    assert same(decoding.DECODERS[kind](deserialize_message(wire, codec.MESSAGES[kind])), record)


@settings(max_examples=30, deadline=None)
@given(arrays(7), arrays(7), arrays(3), quaternions, arrays(6))
def test_an_arm_survives_up_to_the_rounding_of_its_quaternion(q, dq, position, quaternion, wrench) -> None:
    from scipy.spatial.transform import Rotation

    arm = ArmState(5, q, dq, position, Rotation.from_quat(quaternion).as_matrix(), wrench, False, "reflex")
    back = decoding.arm_of(deserialize_message(serialize_message(codec.arm_msg(arm)), codec.MESSAGES[ArmState]))
    for name in ("stamp", "q", "dq", "position", "wrench", "ok", "fault"):
        assert same(getattr(back, name), getattr(arm, name)), name
    assert np.allclose(back.rotation, arm.rotation, atol=1e-12)


@pytest.mark.parametrize("value", [np.float32(0.35), 1, True, np.float64(0.35), np.int64(2)])
def test_no_kind_of_number_is_corrupted(value: Any) -> None:
    """As they are, np.float32 and int go out as other numbers (5e-315 for 0.35)."""
    command = Command(np.int64(5), "t", np.int64(1), Kind.POSE, targets=(
        Target(np.full(3, value), np.full(4, value), np.full(6, value), np.full(6, value), value),))
    back = decoding.command_of(
        deserialize_message(serialize_message(codec.command_msg(command)), codec.MESSAGES[Command])
    ).targets[0]
    assert back.gripper == float(value)
    assert (back.velocity == np.float64(value)).all()
    assert (back.position == np.float64(value)).all()


def test_the_checks_of_ros_are_on() -> None:
    message = codec.MESSAGES[FrameInfo]()
    with pytest.raises(AssertionError):
        message.number = 1.5


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_images(colour: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    message = codec.image_msg(12, "wrist", picture[:, ::-1], colour)
    back, order = decoding.picture_of(deserialize_message(serialize_message(message), type(message)))
    assert order == colour
    assert np.array_equal(back, picture[:, ::-1])
    padded = np.zeros((5, 24), dtype=np.uint8)  # rows may be longer than the picture
    padded[:, :21] = picture.reshape(5, 21)
    message.step, message.data = 24, array("B", padded.tobytes())
    assert np.array_equal(decoding.picture_of(message)[0], picture)


def broken() -> list[tuple[type, Any]]:
    good = codec.chunk_msg(Chunk(1, "t", 0, 1, 1, "c", 2, np.zeros((4, 7))))
    short = codec.chunk_msg(Chunk(1, "t", 0, 1, 1, "c", 2, np.zeros((4, 7))))
    short.actions = array("d", [0.0] * 27)
    good.executed = 5
    kind = codec.command_msg(Command(1, "t", 1, Kind.KEEP))
    kind.kind = 77
    names = codec.state_msg(RobotState(1, "t", 1, {"a": np.zeros(3)}))
    names.names = ["a", "b"]
    frozen = codec.request_msg(ChunkRequest(1, "t", 1, 1, 0, 1, np.zeros((1, 7))))
    frozen.frozen = 2
    state = codec.safety_msg(SafetyReport(1, State.READY, "sim"))
    state.state = 9
    arm = codec.MESSAGES[ArmState]()
    arm.pose.orientation.w = 0.0
    return [(Chunk, good), (Chunk, short), (Command, kind), (RobotState, names), (ChunkRequest, frozen),
            (SafetyReport, state), (ArmState, arm)]


@pytest.mark.parametrize(("record", "message"), broken(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_does_not_fit_is_refused(record: type, message: Any) -> None:
    with pytest.raises(UserError):
        decoding.DECODERS[record](message)


@pytest.mark.parametrize("change", [{"encoding": "mono8"}, {"step": 20}, {"height": 6}, {"height": 0}])
def test_broken_images_are_refused(change: dict[str, Any]) -> None:
    message = codec.image_msg(1, "wrist", np.zeros((5, 7, 3), dtype=np.uint8))
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(UserError):
        decoding.picture_of(message)
