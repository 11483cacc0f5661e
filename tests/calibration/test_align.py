"""The crop has the policy's field of view; the simulator's camera stands where the calibrated one does."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_calibration import synthetic
from d2ppo_calibration.align import comparison, mujoco_camera, policy_view, view_checks
from d2ppo_calibration.board import BoardSpec
from d2ppo_calibration.calibration import Calibration, calibrate, write_calibration
from d2ppo_calibration.camera import intrinsics, project
from d2ppo_calibration.checks import Check
from d2ppo_calibration.commands import CALIBRATE
from d2ppo_calibration.dataset import read_dataset
from d2ppo_calibration.files import read_picture, write_picture
from d2ppo_calibration.poses import from_vector, inverse, placed, pose
from d2ppo_calibration.validate import validate
from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json
from d2ppo_core.lens import crop_field_of_view, crop_for, read_calibrated
from support import d2ppo

WIDE = intrinsics((640, 480), np.array([[300.0, 0, 325.0], [0, 301.0, 236.0], [0, 0, 1]]), np.zeros(5))
POLICY = Camera(name="robot0_eye_in_hand", height=96, width=96, field_of_view=60.0)
six = st.tuples(*[st.floats(-1.5, 1.5) for _ in range(6)]).map(np.array)
# A ball on a table; the robot's base is turned and off the origin, its last link bent by a joint.
SCENE = """
<mujoco><visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
<worldbody>
<camera name="any" pos="0 0 3"/>
<body pos="0 0 -3"><freejoint name="ball_joint"/><geom type="sphere" size="0.01" rgba="1 0 0 1"/></body>
<body name="robot0_base" pos="-0.2 0.1 0.05" euler="0 0 30"><geom size="0.01" rgba="0 0 1 1"/>
  <body name="robot0_link7" pos="0.3 0 0.5"><joint name="robot0_joint1" axis="0 1 0"/><geom size="0.005"/></body>
</body></worldbody></mujoco>"""


def calibrated(camera: np.ndarray, setup: str = "eye_to_hand") -> Calibration:
    return Calibration(
        camera="front", setup=setup, made="2026-01-01T00:00:00+00:00", parent_frame="base", camera_frame="front",
        intrinsics=WIDE, pose=placed(camera), board=BoardSpec(), dataset="0" * 64, views=(), rejected=(), errors=(),
        checks=(Check(name="reprojection", value=0.1, unit="px", required=0.5, good=0.3),),
    )  # fmt: skip


@settings(max_examples=60)
@given(fov=st.floats(20, 70), width=st.integers(60, 100), height=st.integers(60, 100))
def test_the_crop_ends_where_the_policys_view_does(fov, width, height):
    camera = Camera(name="c", height=height, width=width, field_of_view=fov)
    crop = crop_for(WIDE, camera)
    up = np.tan(np.radians(fov) / 2)
    assume(up * width / height < 1.03)  # the picture reaches no farther to the right
    ends = project(WIDE, np.eye(4), np.array([[-up * width / height, -up, 1.0], [up * width / height, up, 1.0]]))
    low, high = np.array([crop.x, crop.y]) - 0.5, np.array([crop.x + crop.width, crop.y + crop.height]) - 0.5
    assert np.abs(low - ends[0]).max() <= 1.5 and np.abs(high - ends[1]).max() <= 1.5
    assert abs(crop_field_of_view(WIDE, crop) - fov) < 0.3


def test_a_camera_that_sees_too_little_gives_all_it_has():
    narrow = synthetic.webcam()
    crop = crop_for(narrow, POLICY)
    assert 470 <= crop.height <= 480 and crop.x >= 0 and crop.y >= 0
    checks = {check.name: check.grade for check in view_checks(narrow, crop, POLICY)}
    assert checks["field of view, off by"] == "BAD" and checks["axis from the middle"] == "good"


def test_the_lens_bends_as_much_as_is_said():
    bent = intrinsics((640, 480), WIDE.k, np.array([-0.2, 0.0, 0.0, 0.0, 0.0]))
    crop = crop_for(bent, POLICY)
    (said,) = (check.value for check in view_checks(bent, crop, POLICY) if check.name.startswith("bent"))
    corner = np.tan(np.radians(30)) * np.array([[1.0, 1.0, np.sqrt(3)]])
    away = np.linalg.norm(project(bent, np.eye(4), corner) - project(WIDE, np.eye(4), corner))
    assert said == pytest.approx(away * 96 / crop.height, rel=0.03)


@given(place=six)
def test_mujocos_camera_looks_along_its_negative_z(place):
    body_camera = from_vector(place)
    numbers = mujoco_camera(body_camera, "c", 45.0)
    w, x, y, z = numbers["quat"]
    axes = Rotation.from_quat([x, y, z, w]).as_matrix()
    assert np.allclose(-axes[:, 2], body_camera[:3, 2], atol=1e-6)  # into the picture
    assert np.allclose(axes[:, 0], body_camera[:3, 0], atol=1e-6)  # right
    assert np.allclose(-axes[:, 1], body_camera[:3, 1], atol=1e-6)  # down
    element = ElementTree.fromstring(numbers["mjcf"])
    assert np.allclose([float(v) for v in element.get("pos").split()], body_camera[:3, 3], atol=1e-8)
    assert [float(v) for v in element.get("quat").split()] == pytest.approx(numbers["quat"], abs=1e-8)


def test_the_policys_view_is_the_contracts_crop_and_resize():
    picture = np.zeros((480, 640, 3), dtype=np.uint8)
    crop = crop_for(WIDE, POLICY)
    picture[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width] = (10, 20, 30)  # BGR
    seen = policy_view(picture, crop, POLICY)
    assert seen.shape == (96, 96, 3) and (seen == (30, 20, 10)).all()
    assert comparison(seen, seen).shape == (384, 4 * 384, 3)
    with pytest.raises(UserError, match="of one size"):
        comparison(seen, seen[:50])


@pytest.mark.sim
@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
@pytest.mark.parametrize("setup", ["eye_to_hand", "eye_in_hand"])
def test_the_simulated_ball_is_where_the_calibrated_camera_sees_it(setup, tmp_path: Path):
    ball, bent = np.array([0.45, -0.1, 0.2, 1.0]), 0.3
    base = pose((-0.2, 0.1, 0.05), Rotation.from_euler("z", 30, degrees=True))
    flange = base @ pose((0.3, 0, 0.5), np.array([0, bent, 0])) @ pose((0, 0, 0.107), np.zeros(3))
    parent = base if setup == "eye_to_hand" else flange
    forward = np.array([0.2, 0.05, -0.97]) / np.linalg.norm([0.2, 0.05, -0.97])
    right = np.cross(forward, [0.1, 1.0, 0.0])
    right /= np.linalg.norm(right)
    world_camera = np.eye(4)
    world_camera[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    world_camera[:3, 3] = ball[:3] - 0.5 * forward + 0.05 * right
    write_calibration(tmp_path / "c.json", calibrated(inverse(parent) @ world_camera, setup))
    (tmp_path / "scene.xml").write_text(SCENE)

    (real,) = project(WIDE, inverse(world_camera), ball[None, :3])
    picture = np.full((480, 640, 3), 60, dtype=np.uint8)
    y, x = np.mgrid[:480, :640]
    picture[np.hypot(x - real[0], y - real[1]) < 6] = (0, 0, 255)
    write_picture(tmp_path / "real.png", picture)
    files = [str(tmp_path / name) for name in ("c.json", "real.png")]
    there = [f"{v:.9f}" for v in (inverse(base) @ ball)[:3]]
    command = ["align", *files, "--task", "lift_image", "--scene", str(tmp_path / "scene.xml"),
               "--joints", str(bent), "--place", "ball_joint", *there,
               "--run-dir", str(tmp_path / "out"), "--json"]  # fmt: skip
    report = json.loads(d2ppo("calibrate", *command).stdout)  # by itself: it decides which OpenGL mujoco loads
    assert report == json.loads((tmp_path / "out" / "alignment.json").read_text())
    both = read_picture(tmp_path / "out" / "overlay.png").astype(int)
    middles = []
    for panel in (both[:, :384], both[:, 384:768]):
        rows, columns = np.nonzero(panel[:, :, 2] - panel[:, :, 0] > 100)
        middles.append((columns.mean(), rows.mean()))
    assert np.abs(np.subtract(*middles)).max() < 4  # a pixel of the policy's picture is 4 here
    assert abs(report["field_of_view"] - 75) < 0.3


def test_what_does_not_fit_is_answered_in_a_sentence(tmp_path: Path):
    write_calibration(tmp_path / "c.json", calibrated(np.eye(4)))
    write_picture(tmp_path / "p.png", np.zeros((480, 640, 3), dtype=np.uint8))
    write_picture(tmp_path / "small.png", np.zeros((48, 64, 3), dtype=np.uint8))
    (tmp_path / "scene.xml").write_text("<mujoco><worldbody/></mujoco>")
    (tmp_path / "arm.xml").write_text(SCENE)
    (tmp_path / "bad.xml").write_text("<mujoco>")

    def align(*more: str, picture: str = "p.png") -> None:
        files = (str(tmp_path / name) for name in ("c.json", picture))
        CALIBRATE.run(["align", *files, "--run-dir", str(tmp_path / "out"), *more])

    lift = ("--task", "lift_image")
    for more, says in (
        (("--task", "lift"), "looks at no camera"), ((*lift, "--camera", "moon"), "no camera 'moon'"),
        ((*lift, "--scene", str(tmp_path / "scene.xml")), "no body 'robot0_base'"),
        ((*lift, "--scene", str(tmp_path / "scene.xml"), "--joints", "0"), "no joint 'robot0_joint1'"),
        ((*lift, "--scene", str(tmp_path / "arm.xml"), "--place", "robot0_joint1", "0", "0", "0"), "is not free"),
        ((*lift, "--scene", str(tmp_path / "arm.xml"), "--place", "ball_joint", "0", "0", "x"), "must be numbers"),
        ((*lift, "--scene", str(tmp_path / "bad.xml")), "no scene for this mujoco"),
        ((*lift, "--scene", str(tmp_path / "none.xml")), "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says) as caught:
            align(*more)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="take a picture of that size"):
        align(*lift, picture="small.png")


def test_a_watching_camera_is_checked_by_touching_a_board_on_the_table(copied: Path, in_hand, tmp_path: Path):
    """The same pictures, as if the camera stood still and the board were put down anew for each."""
    values = read_dataset(copied).model_dump(mode="json")
    hand = read_dataset(copied)
    still = synthetic.BASE_CAMERA
    touched = []
    for row, corner in ((1, 3), (7, 30)):
        camera_board = inverse(hand.base_flange(hand.views[row]) @ in_hand.truth.camera) @ in_hand.truth.board
        point = (still @ camera_board @ [*BoardSpec().corners[corner], 1.0])[:3]
        touched.append({"image": hand.views[row].image, "corner": corner, "point": point.tolist()})
    views = [view | {"base_effector": None} for view in values["views"]]
    write_json(copied / "dataset.json", values | {"setup": "camera_only", "views": views})
    write_json(tmp_path / "touches.json", {"touches": touched})
    made = calibrated(still).model_copy(update={"intrinsics": in_hand.truth.sees})
    checks = validate(made, copied, tmp_path / "touches.json")
    assert [check.name for check in checks] == ["lens: corners", "touched corners, most"]
    assert checks[1].value < 2


def test_validation_judges_another_recording_and_touched_points(in_hand, copied: Path, tmp_path: Path):
    made = calibrate(in_hand.folder, in_hand.truth.sees)
    corners = BoardSpec().corners
    touched = [{"image": f"view-{view:03d}.png", "corner": corner,
                "point": (in_hand.truth.board @ [*corners[corner], 1.0])[:3].tolist()}
               for view, corner in ((0, 0), (5, 39), (9, 20))]  # fmt: skip
    write_json(tmp_path / "touches.json", {"touches": touched})
    checks = validate(made, copied, tmp_path / "touches.json", tmp_path / "out")
    assert {check.grade for check in checks} == {"good"} and len(checks) == 5
    assert len(list((tmp_path / "out").iterdir())) == len(read_dataset(copied).views)

    wrong = made.model_copy(update={"pose": placed(made.pose.matrix @ pose((0.012, 0, 0), np.radians([0, 1.5, 0])))})
    bad = {check.name for check in validate(wrong, copied, tmp_path / "touches.json") if check.grade == "BAD"}
    assert bad >= {"board at rest, spread", "touched corners, most"}
    touched[0]["corner"] = 40
    write_json(tmp_path / "touches.json", {"touches": touched})
    with pytest.raises(UserError, match="a corner from 0 to 39"):
        validate(made, copied, tmp_path / "touches.json")
    touched[0]["corner"] = 0
    write_json(tmp_path / "touches.json", {"touches": touched})
    values = read_dataset(copied).model_dump(mode="json") | {"setup": "camera_only"}
    bare = [view | {"base_effector": None} for view in values["views"]]
    write_json(copied / "dataset.json", values | {"views": bare})
    with pytest.raises(UserError, match="where the robot says it is"):
        validate(made, copied, tmp_path / "touches.json")
    write_json(copied / "dataset.json", values | {"setup": "eye_in_hand"})
    with pytest.raises(UserError, match="use one of them"):
        validate(made.model_copy(update={"setup": "eye_to_hand"}), copied)


def test_the_core_reads_what_calibration_wrote(tmp_path: Path):
    """The camera's node crops by this file, and names its digest in every trial."""
    written = write_calibration(tmp_path / "front.json", calibrated(pose((1, 2, 3), np.array([0.1, 0.2, 0.3]))))
    read = read_calibrated(tmp_path / "front.json")
    assert (read.sees, read.digest, read.camera) == (WIDE, written.digest, "front")
    text = (tmp_path / "front.json").read_text()
    for changed, says in (
        (text.replace('"front"', '"wrist"', 1), "was changed"), (text[:40], "is no calibration"), ("[]", "is no calib"),
        (text.replace('"intrinsics"', '"lens"'), "is no calibration"),
    ):  # fmt: skip
        (tmp_path / "changed.json").write_text(changed)
        with pytest.raises(UserError, match=says):
            read_calibrated(tmp_path / "changed.json")
    with pytest.raises(UserError, match=r"none\.json"):
        read_calibrated(tmp_path / "none.json")
