"""What is recorded can be read by others, survives `kill -9`, and says what was lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader

from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256
from d2ppo_ros.recording import writer as writing
from d2ppo_ros.recording.message_types import typestore
from d2ppo_ros.recording.reader import Trial
from d2ppo_ros.recording.recover import recover
from d2ppo_ros.recording.writer import SIDECAR, Topic, TrialWriter
from d2ppo_ros.records import Command, RobotState
from trials_support import TOPICS, build, command, header, image, state

QOS = Qos(
    QosHistory.KEEP_LAST, 5, QosReliability.RELIABLE, QosDurability.VOLATILE, QosTime(0, 0), QosTime(0, 0),
    QosLiveliness.AUTOMATIC, QosTime(0, 0), False,
)  # fmt: skip
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 17, 3), dtype=np.uint8)


def record(folder: Path, count: int = 20) -> dict:
    """`count` states and commands, every fourth with a picture; message i was received at i ms."""
    trial = TrialWriter(folder, [Topic(t.name, t.type, (QOS,)) for t in TOPICS], {"trial": "t", "seed": 3})
    for i in range(count):
        trial.write("/robot/state", i * 1_000_000, state(i, i, {"position": np.array([i, 0.5]), "goal": np.ones(2)}))
        trial.write("/command/applied", i * 1_000_000 + 1, command(i, i, np.array([0.25, -i / 7])))
        if i % 4 == 0:
            trial.write("/camera/eye/image", i * 1_000_000 + 2, image(i, PICTURE))
    return trial.close({"success": True})


def test_an_independent_reader_opens_it(tmp_path: Path) -> None:
    """mcap's own reader, and its ROS 2 decoder; rosbag2's metadata counts the same."""
    about = record(tmp_path / "t")
    with open(tmp_path / "t" / "t.mcap", "rb") as file:
        decoded = list(make_reader(file, decoder_factories=[DecoderFactory()]).iter_decoded_messages())
    commands = [d.decoded_message for d in decoded if d.channel.topic == "/command/applied"]
    assert [tuple(c.action) for c in commands] == [(0.25, -i / 7) for i in range(20)]
    pictures = [d.decoded_message for d in decoded if d.channel.topic == "/camera/eye/image"]
    assert [bytes(p.data) for p in pictures] == [PICTURE.tobytes()] * 5
    assert {d.schema.name for d in decoded} == {
        "d2ppo_interfaces/msg/StateVector", "d2ppo_interfaces/msg/Command", "sensor_msgs/msg/Image"
    }  # fmt: skip
    with Reader(tmp_path / "t") as bag:
        assert {c.topic: c.msgcount for c in bag.connections if c.msgcount} == {
            "/robot/state": 20, "/command/applied": 20, "/camera/eye/image": 5
        }  # fmt: skip
        assert bag.connections[0].ext.offered_qos_profiles == [QOS]
    assert about["state"] == "complete"
    assert about["lossy"] is False
    assert about["sha256"] == sha256(tmp_path / "t" / "t.mcap")
    assert about["topics"]["/robot/state"] | {"type": ""} == {
        "type": "", "seen": 20, "written": 20, "dropped": 0, "lost": 0
    }  # fmt: skip
    assert json.loads((tmp_path / "t" / SIDECAR).read_text()) == about


def test_it_is_read_without_the_definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "t")
    monkeypatch.setattr("d2ppo_ros.recording.message_types._definitions", lambda _: 1 / 0)
    trial = Trial(tmp_path / "t")
    states = trial.records(RobotState, "robot/state")
    assert [s.values["position"][0] for s in states] == list(range(20))
    assert states[7].values["goal"].tolist() == [1, 1]
    assert trial.records(Command, "command/applied")[2].action.tolist() == [0.25, -2 / 7]
    camera, stamp, _, picture = list(trial.pictures())[1]
    assert (camera, stamp) == ("eye", 4)
    np.testing.assert_array_equal(picture, PICTURE)
    assert trial.names("camera/*/image") == ["/camera/eye/image"]
    assert list(trial.messages("no/such")) == []


def test_types_have_the_hashes_of_ros() -> None:
    """What rosidl wrote beside the installed definition."""
    store = typestore()
    for name in ("ActionChunk", "Command", "StateVector"):
        made = Path(sys.prefix) / "share/d2ppo_interfaces/msg" / f"{name}.json"
        if not made.exists():
            pytest.skip("d2ppo_interfaces is not built")
        hashes = {h["type_name"]: h["hash_string"] for h in json.loads(made.read_text())["type_hashes"]}
        assert store.hash_rihs01(f"d2ppo_interfaces/msg/{name}") == hashes[f"d2ppo_interfaces/msg/{name}"]


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_recording import *
trial = TrialWriter(Path(sys.argv[1]), TOPICS, {{"trial": "t", "seed": 3}})
for i in range(10**6):
    trial.write("/robot/state", time.time_ns(), state(i, i, {{"position": np.array([i, 0.5])}}))
    print(i, time.monotonic(), flush=True)
    time.sleep(0.002)
"""


def test_kill_9_loses_less_than_a_second(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent))
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "t")], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    process.stdout.readline()
    time.sleep(1.3)
    process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    sent = [(int(line.split()[0]), float(line.split()[1])) for line in process.communicate()[0].splitlines()[:-1]]
    with pytest.raises(UserError, match="d2ppo trials recover"):
        Trial(tmp_path / "t")
    assert json.loads((tmp_path / "t" / SIDECAR).read_text())["state"] == "recording"
    about = recover(tmp_path / "t")
    assert about["state"] == "recovered"
    assert about["lossy"] is True
    assert about["metadata"] == {"trial": "t", "seed": 3}
    states = Trial(tmp_path / "t").records(RobotState, "robot/state")
    assert [s.step for s in states] == list(range(len(states)))
    due = [i for i, at in sent if at < killed - 1.0]
    assert due
    assert len(states) > due[-1]
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["metadata.yaml", "t.mcap", SIDECAR]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1))
def test_a_torn_file_gives_a_prefix(whole: tuple[Path, bytes, list[int]], where: float) -> None:
    """Cut anywhere: no crash, and what comes back is what the file began with. A second recovery changes nothing."""
    folder, data, received = whole
    for leftover in folder.iterdir():
        leftover.unlink()
    (folder / "t.mcap").write_bytes(data[: int(where * (len(data) - 1))])
    about = recover(folder)
    got = [m.received for m in Trial(folder).messages()]
    assert got == received[: len(got)]
    assert sum(count["written"] for count in about["topics"].values()) == len(got)
    end = data.rindex(b"serialized_metadata")  # behind all messages
    assert len(got) == len(received) or where * len(data) < end
    before = (folder / "t.mcap").read_bytes()
    assert recover(folder) == about
    assert (folder / "t.mcap").read_bytes() == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[int]]:
    """A folder to work in, a whole recording in three chunks, and when its messages were received."""
    folder = tmp_path_factory.mktemp("torn") / "t"
    monkey = pytest.MonkeyPatch()
    monkey.setattr(writing, "FLUSH", 0.0)  # a chunk for each batch
    record(folder, 12)
    monkey.undo()
    return folder, (folder / "t.mcap").read_bytes(), [m.received for m in Trial(folder).messages()]


def test_an_interrupted_recovery_is_taken_up(whole: tuple[Path, bytes, list[int]], tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "t.mcap.broken").write_bytes(whole[1][:-1000])
    (tmp_path / "t" / "t.mcap").write_bytes(b"half")
    recover(tmp_path / "t")
    assert len(list(Trial(tmp_path / "t").messages())) > 5
    assert not list((tmp_path / "t").glob("*.broken"))


def test_what_the_queue_cannot_hold_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is stuck, and then goes on: write never waits, and the trial is marked."""
    stuck = writing.threading.Event()
    store = TrialWriter._store

    def slow(self: TrialWriter, batch: object) -> None:
        stuck.wait(5)
        store(self, batch)

    monkeypatch.setattr(TrialWriter, "_store", slow)
    trial = TrialWriter(tmp_path / "t", TOPICS, {}, queue=2000)
    message = state(0, 0, {"position": np.zeros(2)})
    began = time.monotonic()
    taken = [trial.write("/robot/state", i, message) for i in range(100)]
    assert time.monotonic() - began < 1
    stuck.set()
    about = trial.close({})
    assert 0 < sum(taken) < 100
    assert about["lossy"] is True
    count = about["topics"]["/robot/state"]
    assert (count["seen"], count["written"], count["dropped"]) == (100, sum(taken), 100 - sum(taken))
    assert len(list(Trial(tmp_path / "t").messages())) == sum(taken)


def test_messages_lost_on_the_way_mark_the_trial(tmp_path: Path) -> None:
    trial = TrialWriter(tmp_path / "t", TOPICS, {})
    trial.lose("/robot/state", 3)
    about = trial.close({})
    assert about["lossy"] is True
    assert about["topics"]["/robot/state"]["lost"] == 3


def test_a_full_disk_ends_the_record_not_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = TrialWriter(tmp_path / "t", TOPICS, {})
    message = state(0, 0, {"position": np.zeros(2)})
    trial.write("/robot/state", 1, message)
    time.sleep(0.7)  # it is on the disk

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trial._bag.storage, "close_chunk", full)
    trial.write("/robot/state", 2, message)
    deadline = time.monotonic() + 3
    while not trial.error and time.monotonic() < deadline:
        time.sleep(0.01)
    assert trial.write("/robot/state", 3, message) is False
    with pytest.raises(UserError, match=r"No space left on device.*d2ppo trials recover"):
        trial.close({})
    assert json.loads((tmp_path / "t" / SIDECAR).read_text())["state"] == "failed"
    recover(tmp_path / "t")
    assert [m.received for m in Trial(tmp_path / "t").messages()] == [1]


def test_an_empty_trial_is_a_trial(tmp_path: Path) -> None:
    TrialWriter(tmp_path / "t", TOPICS, {}).close({})
    assert list(Trial(tmp_path / "t").messages()) == []


def test_wrong_folders_are_answered_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        Trial(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no recorded trial"):
        Trial(tmp_path)
    (tmp_path / "x.mcap").write_bytes(b"this is text")
    with pytest.raises(UserError, match="is no MCAP file"):
        recover(tmp_path)
    with pytest.raises(UserError, match="exists; choose another name"):
        TrialWriter(tmp_path, TOPICS, {})
    with pytest.raises(UserError, match="there is no message type std_msgs/msg/Strnig"):
        TrialWriter(tmp_path / "t", [Topic("/x", "std_msgs/msg/Strnig")], {})
    with pytest.raises(UserError, match="definitions of nobody_msgs are not on this machine"):
        TrialWriter(tmp_path / "t", [Topic("/x", "nobody_msgs/msg/X")], {})
    assert not (tmp_path / "t").exists()


def test_a_message_that_lies_about_its_sizes_is_named(tmp_path: Path) -> None:
    trial = TrialWriter(tmp_path / "t", TOPICS, {})
    trial.write("/robot/state", 1, build(
        "d2ppo_interfaces/msg/StateVector", header=header(0), trial="t", step=0, names=["a", "b"],
        sizes=np.array([1], dtype=np.uint32), values=np.zeros(1),
    ))  # fmt: skip
    trial.close({})
    with pytest.raises(UserError, match="a message on /robot/state is not valid: a state names"):
        Trial(tmp_path / "t").records(RobotState, "robot/state")
