"""One set of rendered pictures, as a camera in the hand and a camera that watches the hand would have recorded it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from d2ppo_calibration import synthetic
from d2ppo_calibration.dataset import Dataset, read_dataset
from d2ppo_calibration.poses import inverse, placed, pose
from d2ppo_core.files import write_json

cv2.setNumThreads(1)
VIEWS = 12
TOOL = pose((0.0, 0.0, 0.1034), np.array([0.0, 0.0, -np.pi / 4]))  # the Franka hand's, as Desk sets it


@dataclass(frozen=True)
class Recorded:
    folder: Path
    truth: synthetic.Truth


@pytest.fixture(scope="session")
def in_hand(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("in_hand")
    return Recorded(folder, synthetic.record(folder, "eye_in_hand", VIEWS, flange_effector=placed(TOOL)))


@pytest.fixture(scope="session")
def to_hand(in_hand: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The same pictures; the robot's poses are those that a camera beside the robot would have needed for them."""
    folder, rng = tmp_path_factory.mktemp("to_hand"), np.random.default_rng(1)
    shutil.copytree(in_hand.folder, folder, dirs_exist_ok=True)
    truth = synthetic.truth_of("eye_to_hand", in_hand.truth.sees)
    views = []
    hand = read_dataset(in_hand.folder)
    for view in hand.views:
        camera_board = inverse(hand.base_flange(view) @ in_hand.truth.camera) @ in_hand.truth.board
        at = synthetic.disturbed(synthetic.base_flange("eye_to_hand", truth, camera_board), rng, 0.0001, 0.02)
        views.append(view.model_copy(update={"base_effector": placed(at @ TOOL)}))
    rewrite(folder, setup="eye_to_hand", views=tuple(views))
    return Recorded(folder, truth)


def rewrite(folder: Path, **changes: object) -> Dataset:
    dataset = read_dataset(folder).model_copy(update=changes)
    write_json(folder / "dataset.json", dataset.model_dump(mode="json"))
    return dataset


@pytest.fixture
def copied(in_hand: Recorded, tmp_path: Path) -> Path:
    """A copy of the recording that a test may spoil."""
    shutil.copytree(in_hand.folder, tmp_path / "rec")
    return tmp_path / "rec"
