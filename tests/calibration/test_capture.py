"""Which pictures become views, what is said of the others, and where pictures come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from d2ppo_calibration import synthetic
from d2ppo_calibration.board import BoardSpec
from d2ppo_calibration.capture import Capture, RobotPose, pictures_of, read_poses
from d2ppo_calibration.commands import CALIBRATE
from d2ppo_calibration.dataset import Dataset, Recording, read_dataset
from d2ppo_calibration.detect import Detector, blur_of
from d2ppo_calibration.files import read_picture
from d2ppo_calibration.poses import pose
from d2ppo_core.errors import UserError

BOARD = BoardSpec(columns=6, rows=4, square=0.04, marker=0.03)
SEES = synthetic.webcam(focal=420.0, size=(400, 300))
RENDERER = synthetic.Renderer(BOARD, SEES)


def picture(x: float = -0.12, y: float = -0.08, z: float = 0.5, **options: float) -> np.ndarray:
    return RENDERER.picture(pose((x, y, z), np.array([0.1, 0.2, 0.1])), np.random.default_rng(0), **options)


def capture(folder: Path, setup: str = "camera_only") -> Capture:
    return Capture(Recording(folder, Dataset(camera="front", setup=setup, board=BOARD)))


def robot(turn: float = 0.0, speed: float = 0.0) -> RobotPose:
    return RobotPose(position=(0.4, 0.0, 0.3), quaternion=(float(np.sin(turn / 2)), 0.0, 0.0, float(np.cos(turn / 2))),
                     speed=speed)  # fmt: skip


def test_good_views_are_kept_and_others_get_a_reason(tmp_path: Path):
    taking = capture(tmp_path)
    assert taking.offer(picture()) == ""
    assert "much like" in taking.offer(picture(x=-0.118))
    assert "blurred" in taking.offer(picture(x=-0.15, z=0.35, blur=1.8))
    assert "only 0 corners" in taking.offer(np.full((300, 400, 3), 90, dtype=np.uint8))
    assert "corners are seen" in taking.offer(picture(x=0.1))  # half of it is outside
    assert taking.offer(picture(x=-0.2)) == "" and taking.offer(picture(z=0.75)) == ""
    assert len(read_dataset(tmp_path).views) == 3
    assert "nothing yet" in taking.advice() and "3 views" in taking.advice()
    shown = taking.picture()
    assert shown.shape == (300, 400, 3) and (shown == (0, 0, 255)).all(2).any()  # empty cells in red
    assert len(capture(tmp_path).views) == 3  # another program goes on
    assert "much like" in capture(tmp_path).offer(picture())


def test_the_robot_must_rest(tmp_path: Path):
    taking = capture(tmp_path, "eye_to_hand")
    assert "not known" in taking.offer(picture())
    assert "moves" in taking.offer(picture(), robot(speed=0.05), now=10.0)
    assert "just moved" in taking.offer(picture(), robot(), now=10.3)
    assert taking.offer(picture(), robot(), now=10.6) == ""
    assert "much like" in taking.offer(picture(), robot(turn=0.02), now=11.0)
    assert taking.offer(picture(), robot(turn=0.3), now=12.0) == ""  # the hand turned: that says something new
    assert "hand turned by 17 degrees" in taking.advice() and "tilt it more" in taking.advice()
    assert [view.time for view in read_dataset(tmp_path).views] == [10_600_000_000, 12_000_000_000]


@pytest.mark.parametrize("blur", [0.6, 1.0, 1.4, 1.8])
def test_blur_is_measured(blur):
    seen = Detector(BOARD).find(picture(z=0.4, blur=blur))
    assert seen.blur == pytest.approx(np.hypot(blur, 0.3), rel=0.3)
    flat = np.full((300, 400), 90, dtype=np.uint8)
    assert blur_of(flat, np.array([[200.0, 150.0]])) == float("inf")


def test_capture_from_a_folder_with_poses(in_hand, tmp_path: Path, capsys):
    """The recording's own pictures, taken anew from files: the same views."""
    dataset = read_dataset(in_hand.folder)
    shutil.copytree(in_hand.folder, tmp_path / "pictures", ignore=shutil.ignore_patterns("*.json"))
    poses = {view.image: view.base_effector.model_dump(mode="json") for view in dataset.views}
    poses["view-003.png"]["speed"] = 0.2
    (tmp_path / "poses.json").write_text(json.dumps(poses))
    (tmp_path / "tool.json").write_text(dataset.flange_effector.model_dump_json())
    command = ["capture", str(tmp_path / "rec"), "--source", str(tmp_path / "pictures"), "--camera", "rendered",
               "--setup", "eye_in_hand", "--poses", str(tmp_path / "poses.json"), "--tool", str(tmp_path / "tool.json"),
               "--json"]  # fmt: skip
    assert CALIBRATE.run(command) == 0
    assert json.loads(capsys.readouterr().out)["views"] == len(dataset.views) - 1
    taken = read_dataset(tmp_path / "rec")
    assert taken.flange_effector == dataset.flange_effector
    assert taken.views[3].base_effector == dataset.views[4].base_effector
    there = read_picture(in_hand.folder / "view-004.png")
    assert np.array_equal(read_picture(tmp_path / "rec" / "view-003.png"), there)
    assert (tmp_path / "rec" / "coverage.png").exists()


def test_capture_from_a_film(tmp_path: Path):
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (400, 300))
    for x in (-0.2, -0.2, -0.12, -0.12, -0.12):
        film.write(cv2.cvtColor(picture(x=x), cv2.COLOR_GRAY2BGR))
    film.release()
    board = tmp_path / "board.json"
    board.write_text(BOARD.model_dump_json())
    assert CALIBRATE.run(["capture", str(tmp_path / "rec"), "--source", str(tmp_path / "film.avi"), "--camera", "front",
                          "--board", str(board)]) == 0  # fmt: skip
    assert len(read_dataset(tmp_path / "rec").views) == 2


def test_bad_sources_are_answered_in_a_sentence(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.avi").write_text("no film")
    for source, says in ((tmp_path / "empty", "no pictures"), (tmp_path / "none", "there is no"),
                         (tmp_path / "text.avi", "cannot be opened"), ("97", "cannot be opened")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            list(pictures_of(str(source)))
    half = '{"a.png": {"position": [0, 0, 0]}}'
    for text, says in (("[]", "must hold"), (half, "a.png is not valid"), ("{", "JSON")):
        (tmp_path / "poses.json").write_text(text)
        with pytest.raises(UserError, match=says):
            read_poses(tmp_path / "poses.json")
    with pytest.raises(UserError, match="give --poses"):
        CALIBRATE.run(["capture", str(tmp_path / "rec"), "--source", str(tmp_path), "--camera", "c",
                       "--setup", "eye_in_hand"])  # fmt: skip
    assert not (tmp_path / "rec").exists()
