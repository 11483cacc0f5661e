"""From a stand-in's joints to the policy's picture: drawn, taken by a software RealSense, fitted; nothing changes."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.ros, pytest.mark.sim]
pytest.importorskip("pyrealsense2", reason="there is no wheel of pyrealsense2 for this machine (Linux, x86_64 or ARM)")
rclpy = pytest.importorskip("rclpy")
pytest.importorskip("d2ppo_interfaces")
pytest.importorskip("d2ppo_sim.robosuite_env")  # not robosuite itself: the OpenGL backend is not chosen yet

import yaml  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from d2ppo_core.errors import UserError  # noqa: E402
from d2ppo_ros import decoding, topics  # noqa: E402
from d2ppo_ros.nodes.camera import CameraNode  # noqa: E402
from d2ppo_ros.nodes.realsense import RealsenseNode  # noqa: E402
from d2ppo_ros.nodes.standin_cameras import StandinCamerasNode  # noqa: E402
from d2ppo_ros.realsense.stage import Stage  # noqa: E402

NAME = "robot0_eye_in_hand"
Q = [0.1, 0.3, -0.05, -2.5, 0.1, 2.9, 0.7]
CUBE = {"position": [0.02, -0.01, 0.83], "quaternion": [0.0, 0.0, 0.3826834, 0.9238795]}


class Answering(socketserver.StreamRequestHandler):
    """What a stand-in's control answers: where arm and cube are."""

    def handle(self) -> None:
        for line in self.rfile:
            said = {"state": {"q": self.server.q, "width": 0.05}, "cube": CUBE}.get(json.loads(line)["do"])
            answer = {"ok": True, **said} if said else {"ok": False, "why": "there is no such request"}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


@pytest.fixture
def stage():
    """Address and server of a stand-in."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads, server.q = True, Q
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", server
        server.shutdown()


def test_the_policy_sees_the_stand_in_as_the_simulator_would_show_it(stage, tmp_path: Path) -> None:
    address, server = stage
    given = {
        "standin_cameras": {"task": "lift_image", "control": address},
        "realsense": {"cameras": [NAME], "device": "software", "width": 96, "height": 96, "fields_of_view": [75.0]},
        "camera": {"task": "lift_image", "camera": NAME},
    }
    params = {node: {"ros__parameters": values} for node, values in given.items()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    rclpy.init(args=["test", "--ros-args", "--params-file", str(tmp_path / "params.yaml")])
    tester, executor, heard = rclpy.create_node("tester"), SingleThreadedExecutor(), []
    nodes = [StandinCamerasNode(), RealsenseNode(), CameraNode()]
    drawer = nodes[0]
    tester.create_subscription(Image, topics.IMAGE.format(NAME), heard.append, topics.NEWEST)
    for node in (*nodes, tester):
        executor.add_node(node)

    def serve(done, seconds: float = 30.0) -> bool:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.02)
        return done()

    try:
        assert serve(lambda: len(heard) >= 5)
        assert drawer.placement.arms == [(Q, 0.05)] and drawer.placement.objects["cube"] == tuple(CUBE.values())
        camera = drawer.cameras[0]
        np.testing.assert_array_equal(decoding.picture_of(heard[-1])[0], drawer.scene.picture(camera, 96, 96))
        assert 0 < time.time_ns() - decoding.stamp_of(heard[-1]) < 10e9
        server.q = [0.0, *Q[1:]]  # it moves
        before = heard[-1].data
        assert serve(lambda: heard[-1].data != before)
        np.testing.assert_array_equal(decoding.picture_of(heard[-1])[0], drawer.scene.picture(camera, 96, 96))
    finally:
        for node in reversed(nodes):
            getattr(node, "close", lambda: None)()
        executor.shutdown()
        for node in (*nodes, tester):
            node.destroy_node()
        rclpy.try_shutdown()


def test_a_stand_in_that_is_away_or_answers_nonsense_is_an_error_and_comes_back(stage) -> None:
    address, server = stage
    asking = Stage(address, 1, ("cube",))
    assert asking.look().arms[0][0] == Q
    server.q = "nonsense"
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1"):
        asking.look()
    server.q = Q
    assert asking.look().objects["cube"][0] == CUBE["position"]
    with pytest.raises(ConnectionError, match="no such request"):
        Stage(address, 1, ("can",)).look()
    asking.close()
    with pytest.raises(ConnectionError):
        Stage("127.0.0.1:9", 1, ()).look()
    with pytest.raises(UserError, match="HOST:PORT"):
        Stage("nowhere", 1, ())
