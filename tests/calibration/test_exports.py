"""Every file that is written is read back by something else; changes between calibrations are told."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from d2ppo_calibration import synthetic
from d2ppo_calibration.board import BoardSpec
from d2ppo_calibration.calibration import Calibration, read_calibration, write_calibration
from d2ppo_calibration.checks import Check, table
from d2ppo_calibration.commands import CALIBRATE
from d2ppo_calibration.compare import compare
from d2ppo_calibration.export import export, read_camera_info
from d2ppo_calibration.poses import placed, pose
from d2ppo_calibration.work import known_camera
from d2ppo_core.errors import UserError
from d2ppo_ros.objects.scene import read_cameras


def calibration(setup: str = "eye_to_hand", **changes: object) -> Calibration:
    truth = synthetic.truth_of(setup, synthetic.webcam())
    checks = (Check(name="reprojection", value=0.1, unit="px", required=0.5, good=0.3),)
    values = {
        "camera": "front", "setup": setup, "made": "2026-01-01T00:00:00+00:00", "base_frame": "fr3_link0",
        "flange_frame": "fr3_link8", "parent_frame": "fr3_link8" if setup == "eye_in_hand" else "fr3_link0",
        "camera_frame": "front_optical_frame", "intrinsics": truth.sees, "pose": placed(truth.camera),
        "board_pose": placed(truth.board), "board": BoardSpec(), "dataset": "0" * 64, "views": ("view-000.png",),
        "rejected": (), "errors": (0.1,), "checks": checks,
    }  # fmt: skip
    return Calibration(**{**values, **changes})


def rotation_of(quaternion: list[float]) -> np.ndarray:
    """(3, 3) from x y z w, written out."""
    x, y, z, w = quaternion
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


@pytest.mark.parametrize("setup", ["eye_in_hand", "eye_to_hand"])
def test_other_programs_read_the_same_place(setup, tmp_path: Path):
    made = calibration(setup)
    truth, parent = synthetic.truth_of(setup, made.intrinsics).camera, made.parent_frame
    names = {path.name: path for path in export(made, tmp_path)}

    held = yaml.safe_load(names["front.calib"].read_text())
    parameters, transform = held["parameters"], held["transform"]
    assert parameters["calibration_type"] == {"eye_in_hand": "eye_in_hand", "eye_to_hand": "eye_on_base"}[setup]
    assert (parameters["robot_base_frame"], parameters["robot_effector_frame"]) == ("fr3_link0", "fr3_link8")
    assert parameters["tracking_base_frame"] == "front_optical_frame"
    assert np.allclose([transform["translation"][axis] for axis in "xyz"], truth[:3, 3])
    assert np.allclose(rotation_of([transform["rotation"][axis] for axis in "xyzw"]), truth[:3, :3])

    words = shlex.split(names["front_static_transform.sh"].read_text())
    assert words[:5] == ["exec", "ros2", "run", "tf2_ros", "static_transform_publisher"]
    parser = argparse.ArgumentParser()
    for option in ("x", "y", "z", "qx", "qy", "qz", "qw"):
        parser.add_argument(f"--{option}", type=float)
    parser.add_argument("--frame-id")
    parser.add_argument("--child-frame-id")
    said = parser.parse_args(words[5:])
    assert (said.frame_id, said.child_frame_id) == (parent, "front_optical_frame")
    assert np.allclose([said.x, said.y, said.z], truth[:3, 3], atol=1e-8)
    assert np.allclose(rotation_of([said.qx, said.qy, said.qz, said.qw]), truth[:3, :3], atol=1e-7)

    joint = ElementTree.parse(names["front_joint.urdf.xml"]).getroot().find("joint")
    roll, pitch, yaw = (float(v) for v in joint.find("origin").get("rpy").split())
    about = [np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]]),
             np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]]),
             np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])]  # fmt: skip
    assert np.allclose(about[2] @ about[1] @ about[0], truth[:3, :3], atol=1e-7)
    assert joint.find("parent").get("link") == parent and joint.find("child").get("link") == "front_optical_frame"
    assert np.allclose([float(v) for v in joint.find("origin").get("xyz").split()], truth[:3, 3], atol=1e-8)


@pytest.mark.ros
def test_ros_messages_have_these_very_fields(tmp_path: Path):
    """easy_handeye2 fills its message from the file, field by field."""
    messages = pytest.importorskip("geometry_msgs.msg")
    export(calibration(), tmp_path)
    transform, held = messages.Transform(), yaml.safe_load((tmp_path / "front.calib").read_text())["transform"]
    assert set(held) == set(transform.get_fields_and_field_types())
    for part, values in held.items():
        message = getattr(transform, part)
        assert set(values) == set(message.get_fields_and_field_types())
        for name, value in values.items():
            setattr(message, name, value)  # refuses other types
    assert transform.translation.x == pytest.approx(synthetic.BASE_CAMERA[0, 3])


def test_the_object_node_reads_its_camera(tmp_path: Path):
    made = calibration()
    export(made, tmp_path)
    (camera,) = read_cameras(tmp_path / "front_cameras.yaml")
    there = camera.pose
    assert np.allclose(there.position, synthetic.BASE_CAMERA[:3, 3])
    assert np.allclose(there.rotation.as_matrix(), synthetic.BASE_CAMERA[:3, :3])
    assert np.allclose(camera.intrinsics.k, made.intrinsics.k) and np.allclose(camera.intrinsics.d, made.intrinsics.d)


def test_camera_info_round_trips_and_has_what_ros_expects(tmp_path: Path):
    made = calibration("eye_in_hand")
    export(made, tmp_path)
    values = yaml.safe_load((tmp_path / "front_camera_info.yaml").read_text())
    assert (values["image_width"], values["image_height"]) == (640, 480)
    assert np.allclose(np.reshape(values["projection_matrix"]["data"], (3, 4))[:, :3], made.intrinsics.k)
    assert read_camera_info(tmp_path / "front_camera_info.yaml") == made.intrinsics
    assert known_camera(tmp_path / "front_camera_info.yaml") == made.intrinsics
    for text, says in (("a: 1", "image_width|distortion_model"), ("[1", "not YAML"),
                       ("{distortion_model: equidistant}", "equidistant")):  # fmt: skip
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=says):
            read_camera_info(tmp_path / "bad.yaml")


def test_a_calibration_that_was_edited_is_refused(tmp_path: Path):
    path = tmp_path / "c.json"
    written = write_calibration(path, calibration())
    assert read_calibration(path) == written and len(written.digest) == 64
    values = json.loads(path.read_text())
    values["pose"]["position"][0] += 0.001
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="changed after it was written"):
        read_calibration(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="is not valid"):
        read_calibration(path)
    with pytest.raises(UserError, match="no such file"):
        read_calibration(tmp_path / "none.json")


def test_what_is_not_accepted_is_not_exported_unless_asked(tmp_path: Path):
    bad = Check(name="board at rest, spread", value=9.0, unit="mm", required=5, good=2)
    write_calibration(tmp_path / "c.json", calibration(checks=(bad,)))
    with pytest.raises(UserError, match="not accepted"):
        CALIBRATE.run(["export", str(tmp_path / "c.json"), "--run-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert CALIBRATE.run(["export", str(tmp_path / "c.json"), "--run-dir", str(tmp_path / "out"), "--anyway"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 5


@pytest.mark.parametrize(("value", "better", "grade"), [
    (0.2, "less", "good"), (0.4, "less", "acceptable"), (0.6, "less", "BAD"), (float("nan"), "less", "BAD"),
    (0.2, "more", "BAD"), (0.4, "more", "BAD"), (0.6, "more", "good"), (float("inf"), "more", "BAD"),
])  # fmt: skip
def test_grades(value, better, grade):
    required, good = (0.5, 0.3) if better == "less" else (0.5, 0.55)
    check = Check.model_construct(name="n", value=value, unit="mm", required=required, good=good, better=better)
    assert check.grade == grade and grade in table([check])


def test_diff_tells_what_moved(tmp_path: Path, capsys):
    old = calibration()
    assert all(check.value == pytest.approx(0, abs=1e-9) for check in compare(old, old))
    shifted = old.pose.matrix @ pose((0.004, 0.0, 0.0), np.radians([0.0, 0.2, 0.0]))
    found = {check.name: check for check in compare(old, calibration(pose=placed(shifted)))}
    assert found["camera moved"].value == pytest.approx(4.0) and found["camera moved"].grade == "BAD"
    assert found["camera turned"].value == pytest.approx(0.2) and found["camera turned"].grade == "acceptable"
    assert found["point 0.6 m ahead"].value == pytest.approx(4 + 600 * np.radians(0.2), abs=0.01)

    wider = synthetic.webcam(focal=610 * 1.02)
    found = {check.name: check for check in compare(old, calibration(intrinsics=wider))}
    assert found["focal length"].value == pytest.approx(2.0, abs=0.02)
    assert found["points in the picture, most"].grade == "BAD"

    for name, made in (("old", old), ("new", calibration(pose=placed(shifted)))):
        write_calibration(tmp_path / f"{name}.json", made)
    assert CALIBRATE.run(["diff", str(tmp_path / "old.json"), str(tmp_path / "old.json")]) == 0
    assert CALIBRATE.run(["diff", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 1
    assert "camera moved" in capsys.readouterr().out
    small = synthetic.webcam(size=(320, 240))
    for other, says in ((calibration(camera="rear"), "two cameras"), (calibration("eye_in_hand"), "one setup"),
                        (calibration(intrinsics=small), "at one size")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            compare(old, other)
