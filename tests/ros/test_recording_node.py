"""The recorder's node among others, in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2ppo_core.errors import UserError
from d2ppo_ros.parameters import build
from d2ppo_ros.recording.reader import Trial
from d2ppo_ros.recording.recorder import Recorder, RecorderSettings, wanted
from d2ppo_ros.recording.recover import recover
from d2ppo_ros.recording.writer import Topic
from d2ppo_ros.records import Episode, RobotState


def test_what_is_recorded_follows_from_the_settings(tmp_path: Path) -> None:
    settings = build(RecorderSettings, {"arms": 2, "cameras": ["eye"], "extra": ["/tf  tf2_msgs/msg/TFMessage"]}, "x")
    found = wanted(settings)
    assert {"robot/arm0", "robot/arm1", "camera/eye/image", "policy/chunk", "/tf"} <= found.keys()
    assert "camera/eye/raw" not in found
    assert found["/tf"] == "tf2_msgs/msg/TFMessage"
    assert not any("{" in name for name in wanted(build(RecorderSettings, {"raw": True}, "x")))
    with pytest.raises(UserError, match="extra holds 'chatter'"):
        wanted(build(RecorderSettings, {"extra": ["chatter"]}, "x"))


def test_one_trial_at_a_time_and_only_good_names(tmp_path: Path) -> None:
    recorder, topics = Recorder(RecorderSettings(folder=str(tmp_path))), [Topic("/episode", "std_msgs/msg/String")]
    recorder.take("/episode", 1, b"forgotten")
    for name, metadata, said in (("../x", "", "cannot name a trial"), ("x", "{", "no JSON"), ("x", "[]", "are list")):
        with pytest.raises(UserError, match=said):
            recorder.start(name, metadata, topics)
    with pytest.raises(UserError, match="nothing is being recorded"):
        recorder.stop("x")
    recorder.start("a", '{"seed": 3}', topics)
    with pytest.raises(UserError, match="still being recorded"):
        recorder.start("b", "", topics)
    about = recorder.stop("stopped")
    assert about["metadata"]["seed"] == 3
    assert about["metadata"]["trial"] == "a"
    assert about["metadata"]["versions"]["d2ppo"]
    with pytest.raises(UserError, match="exists"):
        recorder.start("a", "", topics)


# --- the node ---------------------------------------------------------------------------------------------------------


class Robot:
    """Publishes states and episodes at 100 Hz from a thread; the other ends of the recorder's services."""

    def __init__(self, rclpy: Any) -> None:
        from d2ppo_interfaces.srv import StartRecording
        from rclpy.executors import SingleThreadedExecutor
        from std_srvs.srv import Trigger

        from d2ppo_ros import codec, topics
        from d2ppo_ros.runtime import speaker

        self.node = rclpy.create_node("robot")
        self._say = speaker(self.node, RobotState, topics.STATE, topics.EVERY)
        self._say_episode = speaker(self.node, Episode, topics.EPISODE, topics.EVERY)
        self._text = self.node.create_publisher(type(codec.text_msg("")), topics.CONTRACT, topics.LATCHED)
        self._text.publish(codec.text_msg("latched"))
        self._start = self.node.create_client(StartRecording, topics.RECORD)
        self._end = self.node.create_client(Trigger, topics.RECORD_END)
        self._requests = StartRecording.Request, Trigger.Request
        self.sent, self._stop = 0, threading.Event()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _publish(self) -> None:
        while not self._stop.wait(0.01):
            self._say(RobotState(self.sent, "t", self.sent, {"position": np.array([self.sent, 0.25])}))
            self._say_episode(Episode(self.sent, "t", 3, self.sent, success=True))
            self.sent += 1

    def _call(self, client: Any, request: Any) -> Any:
        assert client.wait_for_service(timeout_sec=20)
        future = client.call_async(request)
        self._executor.spin_until_future_complete(future, timeout_sec=20)
        assert future.done()
        return future.result()

    def start(self, trial: str) -> Any:
        return self._call(self._start, self._requests[0](trial=trial, metadata=json.dumps({"seed": 3})))

    def end(self) -> Any:
        return self._call(self._end, self._requests[1]())

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()


@pytest.fixture(scope="module")
def robot() -> Iterator[Robot]:
    rclpy = pytest.importorskip("rclpy")
    rclpy.init()
    made = Robot(rclpy)
    yield made
    made.close()
    rclpy.shutdown()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[subprocess.Popen]:
    parameters = ["-p", f"folder:={tmp_path}", "-p", "patience:=0.5", "-p", "linger:=0.3", "-p", "cameras:=['eye']"]
    process = subprocess.Popen([sys.executable, "-m", "d2ppo_ros.nodes.recorder", "--ros-args", *parameters])
    yield process
    process.terminate()  # not killed: a dead node's services are believed in for 20 s
    process.wait(10)


@pytest.mark.ros
def test_every_message_between_start_and_stop_is_recorded(robot: Robot, node: subprocess.Popen, tmp_path: Path) -> None:
    answer = robot.start("t")
    first = robot.sent
    assert answer.success, answer.message
    assert answer.path == str(tmp_path / "t")
    assert "policy/chunk" in answer.message
    assert "camera/eye/image" in answer.message
    assert "object/state" not in answer.message
    assert "robot/state" not in answer.message
    refused = robot.start("u")
    assert not refused.success
    assert "still being recorded" in refused.message
    time.sleep(0.5)
    last = robot.sent
    ended = robot.end()
    assert ended.success, ended.message
    trial = Trial(tmp_path / "t")
    states = [recorded.value for recorded in trial.messages("robot/state")]
    steps = [state.step for state in states]
    assert steps == list(range(steps[0], steps[0] + len(steps))), "none is missing"
    assert steps[0] <= first
    assert steps[-1] >= last
    assert [m.message.data for m in trial.messages("robot/contract")] == ["latched"], "what was said before is recorded"
    assert trial.about["lossy"] is False
    assert trial.about["outcome"] == {"ended": "stopped"}
    count = trial.about["topics"]["/robot/state"]
    assert (count["seen"], count["written"]) == (len(states), len(states))
    assert robot.start("v").success, "and again"
    assert robot.end().success


@pytest.mark.ros
def test_a_signal_ends_the_trial_and_kill_9_leaves_what_can_be_recovered(
    robot: Robot, node: subprocess.Popen, tmp_path: Path
) -> None:
    assert robot.start("t").success
    time.sleep(0.3)
    node.send_signal(signal.SIGTERM)
    assert node.wait(timeout=10) == 0
    assert Trial(tmp_path / "t").about["outcome"] == {"ended": "the recorder was shut down"}
    other = subprocess.Popen(node.args)
    try:
        assert robot.start("u").success
        begun = robot.sent
        time.sleep(1.5)
        other.kill()
        other.wait()
        due = robot.sent - 100
        assert recover(tmp_path / "u")["state"] == "recovered"
        steps = [recorded.value.step for recorded in Trial(tmp_path / "u").messages("robot/state")]
        assert steps[0] <= begun
        assert steps[-1] >= due
    finally:
        other.kill()
        other.wait()
