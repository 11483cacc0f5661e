"""The node itself, over the wire: painted images and robot states in, poses, the object vector and diagnostics out."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros
rclpy = pytest.importorskip("rclpy")
pytest.importorskip("d2ppo_interfaces")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402

from d2ppo_core.errors import UserError  # noqa: E402
from d2ppo_ros import codec, decoding, topics  # noqa: E402
from d2ppo_ros.nodes.object_pose import ObjectPoseNode  # noqa: E402
from d2ppo_ros.objects.poses import Pose  # noqa: E402
from d2ppo_ros.records import SECOND, RobotState  # noqa: E402
from tag_scene import intrinsics, looking_at, paint, tagged_cube  # noqa: E402

CUBE = tagged_cube(edge=0.04)
POSE = Pose.of((0.02, -0.01, 0.02), (0.0, 0.0, 0.3, 0.954))
STATE = {"robot0_eef_pos": np.array([0.1, 0.0, 0.3]), "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0])}


@pytest.fixture
def ros(tmp_path):
    """(node, tester, serve, eye): the node with its files, a node that talks to it, a wait, and the camera."""
    eye = looking_at("front", (0.45, 0.1, 0.4), (0.0, 0.0, 0.0), intrinsics())
    (tmp_path / "cube.json").write_text(CUBE.model_dump_json())
    (tmp_path / "cameras.json").write_text(json.dumps({"cameras": [eye.model_dump(exclude={"intrinsics"})]}))
    files = {"object_file": tmp_path / "cube.json", "cameras_file": tmp_path / "cameras.json"}
    options = [word for name, path in files.items() for word in ("-p", f"{name}:={path}")]
    rclpy.init(args=["test", "--ros-args", *options])
    node, tester, executor = ObjectPoseNode(), rclpy.create_node("tester"), SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(tester)

    def serve(done, seconds: float = 8.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "nothing came"
            executor.spin_once(timeout_sec=0.05)

    yield node, tester, serve, eye
    executor.shutdown()
    node.destroy_node()
    tester.destroy_node()
    rclpy.try_shutdown()


def test_images_become_a_pose_and_the_object_vector(ros):
    node, tester, serve, eye = ros
    poses, objects, reports = [], [], []
    tester.create_subscription(PoseStamped, "object/cube/pose", poses.append, topics.NEWEST)
    tester.create_subscription(codec.MESSAGES[RobotState], topics.OBJECT, objects.append, topics.EVERY)
    tester.create_subscription(DiagnosticArray, "/diagnostics", reports.append, topics.EVERY)
    images = tester.create_publisher(Image, topics.RAW.format("front"), topics.NEWEST)
    infos = tester.create_publisher(CameraInfo, topics.CAMERA_INFO.format("front"), topics.NEWEST)
    states = tester.create_publisher(codec.MESSAGES[RobotState], topics.STATE, topics.EVERY)
    serve(lambda: all(p.get_subscription_count() for p in (images, infos, states)))
    infos.publish(CameraInfo(
        header=codec.header(0, "front"), width=640, height=480, distortion_model="plumb_bob",
        d=codec.doubles(np.zeros(5)), k=eye.intrinsics.k.ravel(),
    ))  # fmt: skip
    serve(lambda: "front" in node.tracker.intrinsics)
    now = node.get_clock().now().nanoseconds
    for number in range(3):
        states.publish(codec.state_msg(RobotState(now + number * SECOND // 100, "trial", 40 + number, STATE)))
    serve(lambda: node.grips.newest is not None and node.grips.newest.step == 42)
    picture = np.repeat(paint(eye, [(CUBE, POSE)])[..., None], 3, axis=2)
    stamp = now + SECOND // 100
    images.publish(codec.image_msg(stamp, "front", picture))
    serve(lambda: poses and objects)
    assert decoding.stamp_of(poses[0]) == stamp and poses[0].header.frame_id == "world"
    assert Pose.of(*decoding.pose_of(poses[0].pose)).apart(POSE)[0] < 0.002
    state = decoding.state_of(objects[0])
    assert (state.stamp, state.trial, state.step, list(state.values)) == (stamp, "trial", 42, ["object"])
    vector = state.values["object"]
    np.testing.assert_allclose(vector[:3], POSE.position, atol=0.002)
    np.testing.assert_allclose(vector[7:], STATE["robot0_eef_pos"] - vector[:3], atol=1e-12)
    serve(lambda: any("tags" in {v.key for v in report.status[0].values} for report in reports))
    found = {value.key: value.value for value in reports[-1].status[0].values}
    assert "front/0" in found["tags"] and float(found["reprojection error"].split()[0]) < 0.5


def test_without_files_it_says_which_are_missing():
    rclpy.init(args=["test"])
    try:
        with pytest.raises(UserError, match="object_file and cameras_file"):
            ObjectPoseNode()
    finally:
        rclpy.try_shutdown()
