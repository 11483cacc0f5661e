"""The driver's node and the camera's node behind it, over the wire: from a stand-in's picture to the policy's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("pyrealsense2", reason="there is no wheel of pyrealsense2 for this machine (Linux, x86_64 or ARM)")
rclpy = pytest.importorskip("rclpy")
pytest.importorskip("d2ppo_interfaces")

import yaml  # noqa: E402
from d2ppo_interfaces.srv import StartRecording  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from d2ppo_core.files import write_json  # noqa: E402
from d2ppo_core.lens import Intrinsics, content_digest, crop_for  # noqa: E402
from d2ppo_core.observation import fit_image  # noqa: E402
from d2ppo_core.tasks import action_spec, load_task  # noqa: E402
from d2ppo_ros import codec, decoding, topics  # noqa: E402
from d2ppo_ros.contracts import RobotContract  # noqa: E402
from d2ppo_ros.nodes import camera as camera_node  # noqa: E402
from d2ppo_ros.nodes import realsense as realsense_node  # noqa: E402
from d2ppo_ros.nodes.recorder import RecorderNode  # noqa: E402
from d2ppo_ros.nodes.safety import SafetyNode  # noqa: E402
from d2ppo_ros.records import FrameInfo  # noqa: E402
from d2ppo_ros.safety.checks import Reaction  # noqa: E402

NAME, WIDTH, HEIGHT = "robot0_eye_in_hand", 160, 120
SEES = Intrinsics(width=WIDTH, height=HEIGHT, matrix=(75.0, 0, 78.0, 0, 76.0, 61.0, 0, 0, 1), distortion=(0.01,) * 5)


def noise(seed: int) -> np.ndarray:
    """(h, w, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def calibration(folder: Path) -> Path:
    """A file as calibration writes it: what the camera's node reads of it."""
    values = {"camera": "wrist", "made": "2026-01-01T00:00:00+00:00", "intrinsics": SEES.model_dump(mode="json")}
    write_json(folder / "wrist.json", values | {"digest": content_digest(values)})
    return folder / "wrist.json"


@pytest.fixture
def ros(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """Driver, camera and recorder in this process, and what a tester hears of them by topic."""
    given = {
        "realsense": {"cameras": [NAME], "device": "software", "width": WIDTH, "height": HEIGHT, "readback": 0.1,
                      "rebuild": 20.0},  # a busy machine's pauses must not open it anew, with everything set as wanted
        "camera": {"task": "lift_image", "camera": NAME, "calibration": str(calibration(tmp_path))},
        "recorder": {"folder": str(tmp_path / "trials"), "cameras": [NAME], "patience": 0.1, "linger": 0.0},
        "safety": {"cameras": [NAME]},
    }
    for node, changes in getattr(request, "param", {}).items():
        given[node] |= changes
    params = {node: {"ros__parameters": values} for node, values in given.items()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    rclpy.init(args=["test", "--ros-args", "--params-file", str(tmp_path / "params.yaml")])
    executor, tester = SingleThreadedExecutor(), rclpy.create_node("tester")
    nodes = [realsense_node.RealsenseNode(), camera_node.CameraNode(), RecorderNode(), SafetyNode()]
    heard = SimpleNamespace(node=dict(zip(given, nodes, strict=True)), folder=tmp_path, said={})
    for node in (*nodes, tester):
        executor.add_node(node)
    for kind, name, profile in (
        (Image, topics.IMAGE, topics.NEWEST), (CameraInfo, topics.CAMERA_INFO, topics.NEWEST),
        (String, topics.SETUP, topics.LATCHED), (codec.MESSAGES[FrameInfo], topics.FRAME, topics.NEWEST),
        (DiagnosticArray, "/diagnostics", topics.EVERY),
    ):  # fmt: skip
        said = heard.said[name] = []
        tester.create_subscription(kind, name.format(NAME), said.append, profile)
    heard.pictures = tester.create_publisher(Image, topics.STANDIN_PICTURE.format(NAME), topics.NEWEST)

    def serve(done, seconds: float = 8.0) -> bool:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.02)
        return done()

    heard.serve, heard.executor = serve, executor
    driver = heard.node["realsense"].threads[NAME]
    assert serve(lambda: heard.node["camera"].active and heard.pictures.get_subscription_count() and driver.link.open)
    assert serve(lambda: heard.node["camera"].count_publishers(topics.SOURCE.format(NAME)))
    yield heard
    for node in nodes:
        node.close()
    executor.shutdown()
    for node in (*nodes, tester):
        node.destroy_node()
    rclpy.try_shutdown()


def send(ros: SimpleNamespace, seed: int) -> tuple[int, Image]:
    """A picture of the stand-in's and what comes of it."""
    stamp = time.time_ns()
    images = ros.said[topics.IMAGE]
    for _ in range(3):  # the wire is not up at once
        ros.pictures.publish(codec.image_msg(stamp, "any", noise(seed)))
        if ros.serve(lambda: images and abs(decoding.stamp_of(images[-1]) - stamp) < 1000, 2.0):
            return stamp, images[-1]
    raise AssertionError("no picture came")


def test_the_policys_picture_is_the_calibrated_part_of_the_cameras(ros: SimpleNamespace) -> None:
    _, image = send(ros, 1)
    camera = ros.node["camera"].camera
    crop = crop_for(SEES, camera)
    assert (crop.width, crop.height) < (WIDTH, HEIGHT)
    expected = fit_image(np.ascontiguousarray(crop.of(noise(1))), camera)
    np.testing.assert_array_equal(decoding.picture_of(image)[0], expected)
    assert ros.serve(lambda: ros.said[topics.CAMERA_INFO] and ros.said[topics.FRAME])
    info = ros.said[topics.CAMERA_INFO][-1]
    assert tuple(info.k) == SEES.matrix and tuple(info.d) == SEES.distortion and (info.width, info.height) == SEES.size
    assert (info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height) == tuple(vars(crop).values())


def test_what_formed_the_pictures_is_latched_recorded_and_a_change_is_said(ros: SimpleNamespace) -> None:
    send(ros, 2)
    setups = ros.said[topics.SETUP]
    assert ros.serve(lambda: setups and json.loads(setups[-1].data)["driver"])
    about = json.loads(setups[-1].data)
    assert about["driver"]["options"]["exposure"] == 120.0 and about["driver"]["lens"]["width"] == WIDTH
    assert about["calibration"]["digest"] == json.loads((ros.folder / "wrist.json").read_text())["digest"]
    assert about["crop"]["height"] < HEIGHT
    recorder = ros.node["recorder"]
    assert ros.serve(lambda: recorder._setups.get(NAME) == about)
    answer = recorder._start(StartRecording.Request(trial="one"), StartRecording.Response())
    assert answer.success, answer.message
    recorder._stop(Trigger.Request(), Trigger.Response())
    assert json.loads((ros.folder / "trials/one/trial.json").read_text())["metadata"]["cameras"] == {NAME: about}
    driver = ros.node["realsense"].threads[NAME]
    driver._camera.sensor.set_option(driver._camera._option("exposure"), 156)
    assert ros.serve(lambda: json.loads(setups[-1].data)["driver"]["changed"] == {"exposure": [120.0, 156.0]})
    assert ros.serve(lambda: recorder._setups[NAME]["driver"]["changed"])


def test_safety_holds_while_somebody_else_sets_the_camera(ros: SimpleNamespace) -> None:
    """Whether the robot states its contract before the camera does, or after."""
    camera, safety = ros.node["realsense"].threads[NAME]._camera, ros.node["safety"]
    for value, text in ((156, "exposure was changed from 120 to 156"), (120, "")):
        camera.sensor.set_option(camera._option("exposure"), value)
        assert ros.serve(lambda v=value: bool(safety._changed.get(NAME)) is (v == 156))
        if safety._monitor is None:
            contract = RobotContract(name="test", lowdim=(), action=action_spec(load_task("lift")))
            safety._on_contract(String(data=contract.model_dump_json()))
        send(ros, value)
        assert ros.serve(lambda: safety._monitor.cameras[NAME]._last)
        findings = [f for f in safety._monitor.cameras[NAME].findings() if f.check == "setup"]
        assert [text in f.text and f.reaction is Reaction.HOLD for f in findings] == ([True] if text else [])


@pytest.mark.parametrize("ros", [{"realsense": {"rebuild": 1.0}}], indirect=True)
def test_silence_is_silence_and_is_reported(ros: SimpleNamespace) -> None:
    for seed in range(5):
        send(ros, seed)
    count, reports = len(ros.said[topics.IMAGE]), ros.said["/diagnostics"]
    driver = ros.node["realsense"].threads[NAME]

    def reported() -> bool:
        found = [status for array in reports for status in array.status if status.name == f"realsense {NAME}"]
        return bool(found and found[-1].message.startswith("stale") and found[-1].level == b"\x03")

    assert ros.serve(reported)
    assert ros.serve(lambda: driver.link.rebuilds >= 1)
    assert len(ros.said[topics.IMAGE]) == count
    stamp, image = send(ros, 9)
    assert abs(decoding.stamp_of(image) - stamp) < 1000 and driver.link.phase == "live"


@pytest.mark.parametrize("ros", [{"camera": {"calibration": ""}}], indirect=True)
def test_without_a_calibration_the_drivers_lens_is_passed_on(ros: SimpleNamespace) -> None:
    send(ros, 1)
    assert ros.serve(lambda: ros.node["camera"]._source_info is not None)
    _, image = send(ros, 2)
    expected = fit_image(noise(2), ros.node["camera"].camera)
    np.testing.assert_array_equal(decoding.picture_of(image)[0], expected)
    focal = HEIGHT / 2 / np.tan(np.radians(60.0) / 2)  # of the software camera
    assert ros.serve(lambda: abs(ros.said[topics.CAMERA_INFO][-1].k[0] - focal) < 1e-3)
    assert json.loads(ros.said[topics.SETUP][-1].data)["calibration"] is None


def test_a_camera_that_is_not_there_ends_the_driver_with_a_sentence() -> None:
    command = [sys.executable, "-m", "d2ppo_ros.nodes.realsense", "--ros-args"]
    done = subprocess.run([*command, "-p", "cameras:=['front']", "-p", "serials:=['000']"], capture_output=True,
                          text=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "d2ppo: camera front (serial number 000) is not plugged in" in done.stderr
