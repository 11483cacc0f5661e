"""Recordings survive whatever kills the program, and what is wrong with one is said in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from d2ppo_calibration.board import BoardSpec
from d2ppo_calibration.calibration import calibrate
from d2ppo_calibration.commands import CALIBRATE
from d2ppo_calibration.dataset import Dataset, Recording, digest, read_dataset, read_pictures
from d2ppo_calibration.poses import IDENTITY, Placed, placed
from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json

HAND = Dataset(camera="wrist", setup="eye_in_hand", board=BoardSpec())
GREY = np.full((24, 32, 3), 128, dtype=np.uint8)
ENDLESS = """
import sys, numpy as np
from d2ppo_calibration.board import BoardSpec
from d2ppo_calibration.dataset import Dataset, Recording
from d2ppo_calibration.poses import IDENTITY
recording = Recording(sys.argv[1], Dataset(camera="wrist", setup="eye_in_hand", board=BoardSpec()))
while True:
    recording.add(np.random.default_rng(0).integers(0, 255, (240, 320, 3)).astype(np.uint8), IDENTITY)
"""


def test_what_is_recorded_is_read_back(tmp_path: Path):
    recording = Recording(tmp_path, HAND)
    at = Placed(position=(0.1, 0.2, 0.3), quaternion=(0.0, 0.6, 0.0, 0.8))
    recording.add(GREY, at, joints=(0.0,) * 7, time=123)
    Recording(tmp_path, HAND).add(GREY + 1, IDENTITY)  # another program goes on
    dataset = read_dataset(tmp_path)
    assert dataset.views[0].base_effector == at and dataset.views[0].time == 123
    assert [view.image for view in dataset.views] == ["view-000.png", "view-001.png"]
    assert np.array_equal(read_pictures(tmp_path, dataset)[1], GREY + 1)
    with pytest.raises(UserError, match="choose a new folder"):
        Recording(tmp_path, HAND.model_copy(update={"camera": "front"}))


def test_the_digest_names_these_views(tmp_path: Path):
    recording = Recording(tmp_path / "a", HAND)
    recording.add(GREY, IDENTITY)
    first = digest(tmp_path / "a")
    other = Recording(tmp_path / "b", HAND)
    other.add(GREY, IDENTITY)
    assert digest(tmp_path / "b") == first
    recording.add(GREY, IDENTITY)
    assert digest(tmp_path / "a") != first
    (tmp_path / "b" / "view-000.png").write_bytes((tmp_path / "b" / "view-000.png").read_bytes() + b"0")
    assert digest(tmp_path / "b") != first


@pytest.mark.parametrize("fails", [1, 2])
def test_a_view_that_could_not_be_written_leaves_the_rest_whole(fails, tmp_path: Path, monkeypatch):
    recording = Recording(tmp_path, HAND)
    recording.add(GREY, IDENTITY)
    calls, replace = [], os.replace

    def failing(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == fails:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UserError, match="disk is full"):
        recording.add(GREY, IDENTITY)
    monkeypatch.undo()
    assert len(read_dataset(tmp_path).views) == 1
    recording.add(GREY, IDENTITY)  # the same program goes on
    assert len(read_dataset(tmp_path).views) == 2 and not list(tmp_path.glob(".*"))


def test_a_killed_recording_is_whole(tmp_path: Path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], env=environment)
    try:
        while len(list(tmp_path.glob("view-*.png"))) < 6:
            assert writer.poll() is None
            time.sleep(0.02)
    finally:
        writer.kill()
        writer.wait()
    dataset = read_dataset(tmp_path)
    assert len(dataset.views) >= 5 and len(read_pictures(tmp_path, dataset)) == len(dataset.views)


def spoil(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "dataset.json").read_text())
    write_json(folder / "dataset.json", values | changes)


@pytest.mark.parametrize(("how", "says"), [
    (lambda f: (f / "dataset.json").unlink(), "holds no dataset.json"),
    (lambda f: (f / "dataset.json").write_text("{"), "is not JSON"),
    (lambda f: (f / "view-002.png").unlink(), "lacks view-002.png"),
    (lambda f: (f / "view-002.png").write_bytes(b"no picture"), "no whole picture"),
    (lambda f: (f / "view-002.png").write_bytes(b""), "no whole picture"),
    (lambda f: spoil(f, setup="eye_on_stick"), "setup"),
    (lambda f: spoil(f, surprise=1), "surprise"),
    (lambda f: spoil(f, views=[]), "holds no views yet"),
    (lambda f: spoil(f, views=[{"image": "view-000.png"}]), "has no base_effector"),
    (lambda f: spoil(f, views=[{"image": "../x.png", "base_effector": None}]), "no file of this folder"),
    (lambda f: spoil(f, views=[{"image": "view-000.png", "base_effector": {"position": [0, 0, 0],
                                                                           "quaternion": [0, 0, 0, 2]}}]), "length 2"),
    (lambda f: spoil(f, board=BoardSpec(dictionary="DICT_7X7_50").model_dump(mode="json")), "is in none of the 12"),
])  # fmt: skip
def test_a_spoiled_recording_is_answered_in_a_sentence(how, says, copied: Path):
    how(copied)
    with pytest.raises(UserError, match=says) as caught:
        calibrate(copied)
    assert "\n" not in str(caught.value)


def test_pictures_of_two_sizes_are_refused(tmp_path: Path):
    recording = Recording(tmp_path, HAND)
    recording.add(GREY, IDENTITY)
    recording.add(np.concatenate([GREY, GREY]), IDENTITY)
    with pytest.raises(UserError, match=r"view-001\.png is 32 x 48, but the first picture 32 x 24"):
        read_pictures(tmp_path, read_dataset(tmp_path))


def test_a_camera_of_another_size_is_refused(copied: Path, tmp_path: Path):
    info = {"image_width": 1280, "image_height": 720, "distortion_model": "plumb_bob",
            "camera_matrix": {"data": [900.0, 0.0, 640.0, 0.0, 900.0, 360.0, 0.0, 0.0, 1.0]},
            "distortion_coefficients": {"data": [0.0] * 5}}  # fmt: skip
    write_json(tmp_path / "info.yaml", info)
    with pytest.raises(UserError, match="calibrated at 1280 x 720"):
        CALIBRATE.run(["solve", str(copied), "--out", str(tmp_path / "c.json"),
                       "--intrinsics", str(tmp_path / "info.yaml")])  # fmt: skip


def test_options_that_are_wrong_are_answered_in_a_sentence(tmp_path: Path):
    for arguments in (["solve"], ["polish"], ["solve", str(tmp_path), "--out"], ["capture", str(tmp_path)]):
        with pytest.raises(UserError, match="--help"):
            CALIBRATE.run(arguments)


def test_the_tools_pose_does_not_matter(copied: Path, in_hand):
    """The same motion reported for the bare flange gives the same camera."""
    dataset = read_dataset(copied)
    views = [
        view.model_dump(mode="json") | {"base_effector": placed(dataset.base_flange(view)).model_dump(mode="json")}
        for view in dataset.views
    ]
    spoil(copied, flange_effector=IDENTITY.model_dump(mode="json"), views=views)
    bare, tooled = (calibrate(folder, in_hand.truth.sees).pose.matrix for folder in (copied, in_hand.folder))
    assert np.allclose(bare, tooled, atol=1e-5)
