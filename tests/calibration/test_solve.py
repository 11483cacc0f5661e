"""Cameras and hand-eye from rendered boards with known truth; what cannot be known is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_calibration import synthetic
from d2ppo_calibration.board import BoardSpec
from d2ppo_calibration.calibration import calibrate, read_calibration
from d2ppo_calibration.camera import project
from d2ppo_calibration.commands import CALIBRATE
from d2ppo_calibration.dataset import read_dataset
from d2ppo_calibration.detect import Seen, board_pose
from d2ppo_calibration.export import export, static_transform
from d2ppo_calibration.handeye import Problem, diversity, hold_out, require_motion, solve, solve_all
from d2ppo_calibration.intrinsics import calibrate_camera, good_views
from d2ppo_calibration.poses import apart, from_vector, inverse, placed, pose, vector
from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json

BOARD, SEES = BoardSpec(), synthetic.webcam()
six = st.tuples(*[st.floats(-1.5, 1.5) for _ in range(3)], *[st.floats(-2.0, 2.0) for _ in range(3)]).map(np.array)


def imagined(setup: str, views: int = 8, pixel: float = 0.0, robot: tuple[float, float] = (0.0, 0.0),
             seed: int = 0, tilt: float = 40.0) -> tuple[Problem, synthetic.Truth]:
    """A problem from projected corners, without pictures."""
    rng, truth = np.random.default_rng(seed), synthetic.truth_of(setup, SEES)
    seen, flange = [], []
    for number, camera_board in enumerate(synthetic.camera_boards(BOARD, views, rng, tilt)):
        pixels = project(SEES, camera_board, BOARD.corners) + rng.normal(0, pixel or 1e-9, (len(BOARD.corners), 2))
        seen.append(Seen(str(number), np.arange(len(pixels)), BOARD.corners, pixels, SEES.size, 0.5))
        flange.append(synthetic.disturbed(synthetic.base_flange(setup, truth, camera_board), rng, *robot))
    return Problem(SEES, seen, np.array(flange), setup == "eye_in_hand"), truth


@pytest.mark.parametrize("setup", ["in_hand", "to_hand"])
def test_the_truth_is_recovered_from_pictures(setup, request):
    recorded = request.getfixturevalue(setup)
    found = calibrate(recorded.folder)
    checks = {check.name: check for check in found.checks}
    assert checks["reprojection"].value <= 0.3
    assert checks["reprojection of held-out views"].value <= 0.3
    assert np.allclose(found.intrinsics.matrix, recorded.truth.sees.matrix, rtol=2e-3, atol=1.5)
    metres, degrees = apart(found.pose.matrix, recorded.truth.camera)
    assert metres <= 0.001 and degrees <= 0.1, (metres, degrees)
    metres, degrees = apart(found.board_pose.matrix, recorded.truth.board)
    assert metres <= 0.001 and degrees <= 0.1, (metres, degrees)
    assert set(found.solvers) == {"tsai", "park", "horaud", "andreff", "daniilidis", "shah", "li"}
    assert found.parent_frame == {"in_hand": "panda_link8", "to_hand": "panda_link0"}[setup]
    assert checks["held-out views: board"].value < 2 and found.accepted and not found.rejected


def test_a_pushed_board_is_left_out(copied: Path, in_hand):
    dataset = read_dataset(copied)
    moved = dataset.views[4].base_effector.matrix @ pose((0.01, -0.015, 0.0), np.zeros(3))
    views = [view.model_dump(mode="json") for view in dataset.views]
    views[4]["base_effector"] = placed(moved).model_dump(mode="json")
    write_json(copied / "dataset.json", dataset.model_dump(mode="json") | {"views": views})
    found = calibrate(copied, in_hand.truth.sees)
    assert found.rejected == ("view-004.png",)
    metres, degrees = apart(found.pose.matrix, in_hand.truth.camera)
    assert metres <= 0.001 and degrees <= 0.1


def test_spoiled_pixels_are_left_out_of_the_camera():
    problem, _ = imagined("eye_in_hand", 12, pixel=0.05)
    seen = list(problem.seen)
    spoiled = seen[3].pixels + np.random.default_rng(0).normal(0, 3, seen[3].pixels.shape)
    seen[3] = Seen("3", seen[3].ids, seen[3].points, spoiled, seen[3].size, 0.5)
    result = calibrate_camera(seen)
    assert result.rejected == ["3"]
    assert np.allclose(result.sees.matrix, SEES.matrix, atol=1.5)


@given(errors=st.lists(st.floats(0.01, 100), min_size=6, max_size=30))
def test_at_most_a_quarter_is_left_out_and_only_the_worst(errors):
    good = good_views(np.array(errors), least=5, floor=1.0)
    assert (~good).sum() <= len(errors) // 4 and good.sum() >= 5
    if not good.all():
        assert min(np.array(errors)[~good]) >= max(np.array(errors)[good]) and min(np.array(errors)[~good]) > 1.0


@given(a=six, b=six)
def test_poses_round_trip(a, b):
    one, two = from_vector(a), from_vector(b)
    assert np.allclose(from_vector(vector(one)), one, atol=1e-9)
    assert np.allclose(inverse(one) @ one, np.eye(4), atol=1e-9)
    assert np.allclose(inverse(np.array([one, two])) @ [one, two], np.eye(4), atol=1e-9)
    assert np.allclose(placed(one).matrix, one, atol=1e-9)
    assert apart(one, two) == pytest.approx(apart(two, one)) and apart(one, one)[1] == pytest.approx(0, abs=1e-5)


@settings(max_examples=4, deadline=None)
@given(shift=six, setup=st.sampled_from(["eye_in_hand", "eye_to_hand"]))
def test_where_the_base_stands_changes_what_it_must_and_nothing_else(shift, setup):
    problem, truth = imagined(setup)
    moved = from_vector(shift)
    other = Problem(SEES, problem.seen, moved @ problem.base_flange, problem.in_hand)
    camera = truth.camera if setup == "eye_in_hand" else moved @ truth.camera
    board = moved @ truth.board if setup == "eye_in_hand" else truth.board
    solution = solve(other)[0]
    assert np.allclose(solution.camera, camera, atol=1e-6) and np.allclose(solution.board, board, atol=1e-6)


@settings(max_examples=4, deadline=None)
@given(shift=six, setup=st.sampled_from(["eye_in_hand", "eye_to_hand"]))
def test_another_point_of_the_hand_changes_what_it_must_and_nothing_else(shift, setup):
    problem, truth = imagined(setup)
    moved = from_vector(shift)
    other = Problem(SEES, problem.seen, problem.base_flange @ moved, problem.in_hand)
    camera = inverse(moved) @ truth.camera if setup == "eye_in_hand" else truth.camera
    board = truth.board if setup == "eye_in_hand" else inverse(moved) @ truth.board
    solution = solve(other)[0]
    assert np.allclose(solution.camera, camera, atol=1e-6) and np.allclose(solution.board, board, atol=1e-6)


@pytest.mark.parametrize("setup", ["eye_in_hand", "eye_to_hand"])
def test_every_solver_agrees_where_nothing_is_off(setup):
    problem, truth = imagined(setup)
    closed = solve_all(problem)
    assert len(closed) == 7
    for name, solution in closed.items():
        assert np.allclose(solution.camera, truth.camera, atol=1e-6), name


def test_refining_beats_the_closed_forms_on_average():
    ours, theirs = [], []
    for seed in range(3):
        problem, truth = imagined("eye_in_hand", 10, pixel=0.07, robot=(0.0001, 0.02), seed=seed)
        solution, _, closed = solve(problem)
        ours.append(apart(solution.camera, truth.camera)[0])
        theirs += [apart(one.camera, truth.camera)[0] for one in closed.values()]
    assert np.mean(ours) < np.mean(theirs)


def test_held_out_views_tell_a_wrong_robot_from_a_right_one():
    right, _ = imagined("eye_in_hand", 12, pixel=0.05, robot=(0.0001, 0.02))
    wrong, _ = imagined("eye_in_hand", 12, pixel=0.05, robot=(0.01, 1.0))
    assert hold_out(right)[0] < 0.001 and hold_out(wrong)[0] > 0.004


def arms(turns: Rotation) -> np.ndarray:
    places = np.random.default_rng(0).uniform(-0.2, 0.2, (len(turns), 3))
    return np.array([pose(place, turn) for place, turn in zip(places, turns, strict=True)])


@pytest.mark.parametrize(("turns", "says"), [
    (Rotation.from_rotvec(np.zeros((8, 3))), "straight lines"),
    (Rotation.from_rotvec(np.outer(np.linspace(0, 1.4, 8), [0, 0, 1])), "about one axis"),
    (Rotation.from_euler("xyz", np.random.default_rng(0).uniform(-2, 2, (8, 3)), degrees=True), "straight lines"),
    (Rotation.from_euler("xyz", np.random.default_rng(0).uniform(-40, 40, (4, 3)), degrees=True), "only 4 views"),
])  # fmt: skip
def test_degenerate_motions_are_refused(turns, says):
    with pytest.raises(UserError, match=says):
        require_motion(arms(turns))


@given(angle=st.floats(10, 80), second=st.floats(10, 80))
def test_diversity_measures_turns_about_two_axes(angle, second):
    turns = Rotation.from_rotvec(np.radians([[0, 0, 0], [angle, 0, 0], [0, second, 0]]))
    first, across = diversity(arms(turns))
    assert first >= max(angle, second) - 1e-6 and across <= first + 1e-6
    assert across >= 0.5 * min(angle, second)


def test_a_board_that_is_never_tilted_is_refused():
    problem, _ = imagined("eye_in_hand", 8, tilt=1.0, pixel=0.05)
    with pytest.raises(UserError, match=r"cannot be told apart|no camera explains"):
        calibrate_camera(problem.seen)


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_boards_pose_is_found_in_one_picture(seed):
    (camera_board,) = synthetic.camera_boards(BOARD, 1, np.random.default_rng(seed))
    pixels = project(SEES, camera_board, BOARD.corners)
    seen = Seen("", np.arange(len(pixels)), BOARD.corners, pixels, SEES.size, 0.5)
    assert np.allclose(board_pose(SEES, seen), camera_board, atol=1e-5)


def test_the_command_writes_what_it_prints_and_says_what_is_refused(copied: Path, tmp_path: Path, capsys):
    out = tmp_path / "found.json"
    assert CALIBRATE.run(["solve", str(copied), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text()) and read_calibration(out).digest == printed["digest"]

    dataset = read_dataset(copied)
    still = dataset.views[0].base_effector.model_dump(mode="json")
    views = [view.model_dump(mode="json") | {"base_effector": still} for view in dataset.views]
    write_json(copied / "dataset.json", dataset.model_dump(mode="json") | {"views": views})
    with pytest.raises(UserError, match="turn the hand by 30 degrees"):
        CALIBRATE.run(["solve", str(copied), "--out", str(tmp_path / "other.json")])
    assert not (tmp_path / "other.json").exists()


def test_rendered_recordings_are_made_and_their_lens_is_found(tmp_path: Path, copied: Path, capsys):
    made = ["synthetic", str(tmp_path / "new"), "--setup", "camera_only", "--views", "2", "--json"]
    assert CALIBRATE.run(made) == 0
    known = json.loads(capsys.readouterr().out)
    assert known == json.loads((tmp_path / "new" / "truth.json").read_text())
    assert [view.base_effector for view in read_dataset(tmp_path / "new").views] == [None, None]
    with pytest.raises(UserError, match="choose a new folder"):
        CALIBRATE.run(made)
    with pytest.raises(UserError, match="only 2 views"):
        CALIBRATE.run(["intrinsics", str(tmp_path / "new"), "--out", str(tmp_path / "lens.json")])
    assert CALIBRATE.run(["intrinsics", str(copied), "--out", str(tmp_path / "lens.json")]) == 0
    lens = read_calibration(tmp_path / "lens.json")
    assert lens.pose is None and lens.setup == "camera_only"
    with pytest.raises(UserError, match="run `d2ppo calibrate solve`"):
        static_transform(lens)
    assert len(export(lens, tmp_path / "out")) == 1
