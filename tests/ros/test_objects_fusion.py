"""Averages, consensus, filter and sign: properties, closed forms, and the cases they are there for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError
from d2ppo_core.tasks import load_task, observation_spec
from d2ppo_ros.objects.fusion import Gate, fuse
from d2ppo_ros.objects.layout import KEY, LAYOUTS, layout_of, object_vector
from d2ppo_ros.objects.poses import Pose, average, average_quaternions
from d2ppo_ros.objects.scene import PlacedCamera, Tag, TaggedObject
from d2ppo_ros.objects.smoothing import PoseFilter, QuaternionSign
from d2ppo_ros.objects.tags import Candidate, Sighting
from d2ppo_ros.objects.tracker import GripHistory
from d2ppo_ros.records import SECOND, RobotState

GATE = Gate(0.02, 0.25)
CUBE = TaggedObject(
    name="cube",
    tags=tuple(Tag(id=i, size=0.03, position=(0.0, 0.0, 0.0), quaternion=(0.0, 0.0, 0.0, 1.0)) for i in range(6)),
)
CAMERA = {"a": PlacedCamera(name="a", position=(0.0, 0.0, 0.0), quaternion=(0.0, 0.0, 0.0, 1.0))}
TRUE = Pose.of((0.1, -0.2, 0.6), (0.3, 0.5, -0.2, 0.7))

number = st.floats(-1, 1)
quaternions = st.tuples(number, number, number, number).filter(lambda q: np.linalg.norm(q) > 0.1)
weights = st.floats(0.01, 100)
near = st.tuples(*[st.floats(-0.4, 0.4)] * 3)  # rotation vectors around one rotation: then the mean is unique
clusters = st.tuples(quaternions, st.lists(st.tuples(near, weights, st.booleans()), min_size=1, max_size=6))


def cluster(drawn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 4) quaternions of random sign around one rotation, their weights, and that rotation."""
    middle, parts = drawn
    turned = Rotation.from_quat(middle) * Rotation.from_rotvec([vector for vector, _, _ in parts])
    signs = np.where([flip for _, _, flip in parts], -1.0, 1.0)
    return turned.as_quat() * signs[:, None], np.array([w for _, w, _ in parts]), np.array(middle)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float((Rotation.from_quat(a).inv() * Rotation.from_quat(b)).magnitude())


@given(clusters, st.randoms(use_true_random=False))
def test_average_is_blind_to_order_sign_and_scale_of_weights(drawn, random):
    q, w, _ = cluster(drawn)
    mean, order = average_quaternions(q, w), list(range(len(q)))
    random.shuffle(order)
    assert angle(average_quaternions(q[order], w[order]), mean) < 1e-6
    assert angle(average_quaternions(-q, 7 * w), mean) < 1e-6


@given(clusters)
def test_average_stays_among_its_parts(drawn):
    """No further from any part than the parts are from each other; of equal parts it is that part."""
    q, w, middle = cluster(drawn)
    mean = average_quaternions(q, w)
    widest = max(angle(a, b) for a in q for b in q)
    assert max(angle(mean, part) for part in q) <= widest + 1e-6
    assert angle(average_quaternions(np.stack([middle, -middle]), np.ones(2)), middle) < 1e-6


@given(quaternions, near, st.floats(0.05, 0.95))
def test_two_equal_weights_meet_halfway_and_more_weight_pulls(q, vector, share):
    a = Rotation.from_quat(q)
    b = a * Rotation.from_rotvec(vector)
    both, whole = np.stack([a.as_quat(), -b.as_quat()]), float(np.linalg.norm(vector))
    assert angle(average_quaternions(both, np.ones(2)), a.as_quat()) == pytest.approx(whole / 2, abs=1e-6)
    away = angle(average_quaternions(both, np.array([1 - share, share])), a.as_quat())
    expected = math.atan2(share * math.sin(whole), (1 - share) + share * math.cos(whole))  # of two, in closed form
    assert away == pytest.approx(expected, abs=1e-6)


def test_positions_are_weighted_means():
    poses = [Pose.of((0, 0, 0), (0, 0, 0, 1)), Pose.of((1, 2, 4), (0, 0, 0, -1))]
    mean = average(poses, [3.0, 1.0])
    np.testing.assert_allclose(mean.position, [0.25, 0.5, 1.0])
    assert mean.rotation.magnitude() < 1e-12


def sighting(tag: int, shift=(0.0, 0.0, 0.0), turn=(0.0, 0.0, 0.0), error=0.1, sigma=0.001, other=None) -> Sighting:
    """One that places the object at TRUE, shifted (m) and turned (rad); `other` is a second (turn, error)."""
    pose = Pose(TRUE.position + shift, TRUE.rotation * Rotation.from_rotvec(turn))
    candidates = [Candidate(pose, error)]
    if other is not None:
        candidates.append(Candidate(Pose(pose.position, TRUE.rotation * Rotation.from_rotvec(other[0])), other[1]))
    return Sighting(tag, "a", tuple(sorted(candidates, key=lambda c: c.error)), sigma)


def test_outlier_is_rejected_however_sharp_it_looks():
    wrong = sighting(3, shift=(0.1, 0, 0), error=0.01, sigma=1e-5)
    found = fuse([wrong, sighting(0), sighting(1, shift=(0.001, 0, 0))], CUBE, CAMERA, GATE)
    assert [s.tag for s in found.rejected] == [3]
    np.testing.assert_allclose(found.pose.position, np.add(TRUE.position, (0.0005, 0, 0)), atol=1e-9)
    assert found.spread == pytest.approx(0.0005)


def test_flipped_solution_gives_way_to_other_tags_and_to_the_last_pose():
    flip = (0.0, 1.0, 0.0)
    doubtful = sighting(0, turn=flip, error=0.10, other=((0, 0, 0), 0.12))  # the wrong one fits a little better
    assert fuse([doubtful], CUBE, CAMERA, GATE).pose.apart(TRUE)[1] > 0.9
    assert fuse([doubtful], CUBE, CAMERA, GATE, previous=TRUE).pose.apart(TRUE)[1] < 1e-6
    assert fuse([doubtful, sighting(1)], CUBE, CAMERA, GATE).pose.apart(TRUE)[1] < 1e-6
    both = fuse([doubtful, sighting(1)], CUBE, CAMERA, GATE)
    assert not both.rejected and both.error == pytest.approx(0.11)
    # A fit that is clearly better is believed against a last pose that was wrong.
    clear = sighting(0, error=0.05, other=(flip, 0.6))
    wrong = Pose(TRUE.position, TRUE.rotation * Rotation.from_rotvec(flip))
    assert fuse([clear], CUBE, CAMERA, GATE, previous=wrong).pose.apart(TRUE)[1] < 1e-6


def test_weight_follows_sigma_and_unknown_tags_count_nothing():
    found = fuse([sighting(0, sigma=0.001), sighting(1, (0.01, 0, 0), sigma=0.003)], CUBE, CAMERA, GATE)
    np.testing.assert_allclose(found.pose.position[0] - TRUE.position[0], 0.01 * (1 / 9) / (1 + 1 / 9), atol=1e-9)
    assert fuse([sighting(77)], CUBE, CAMERA, GATE) is None
    assert fuse([], CUBE, CAMERA, GATE) is None


shifts = st.tuples(*[st.floats(-0.05, 0.05)] * 3)
many = st.lists(st.tuples(shifts, near, st.floats(0.02, 1.0), st.floats(1e-4, 1e-2)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(many, st.randoms(use_true_random=False))
def test_fusion_is_blind_to_order_and_stays_inside(drawn, random):
    """The fused position lies in the box around the sightings that it used."""
    seen = [sighting(i, *one) for i, one in enumerate(drawn)]
    found = fuse(seen, CUBE, CAMERA, GATE)
    assert {s.tag for s in found.used} | {s.tag for s in found.rejected} == set(range(len(seen)))
    used = np.array([s.candidates[0].pose.position for s in found.used])
    assert (found.pose.position >= used.min(0) - 1e-9).all() and (found.pose.position <= used.max(0) + 1e-9).all()
    if len({s.sigma for s in seen}) == len(seen):  # equally good ones may be taken either way
        random.shuffle(seen)
        again = fuse(seen, CUBE, CAMERA, GATE)
        np.testing.assert_allclose(again.pose.position, found.pose.position, atol=1e-9)
        assert again.pose.apart(found.pose)[1] < 1e-6


@settings(deadline=None)
@given(st.lists(st.integers(1, SECOND // 4), min_size=1, max_size=30), st.floats(0.1, 20))
def test_filter_step_response_is_the_closed_form_at_any_sampling(steps, cutoff):
    turn = np.array([0.0, 0.0, 1.2])
    low, stamp = PoseFilter(cutoff, gap=1.0), 5 * SECOND
    low.update(stamp, Pose.of((0, 0, 0), (0, 0, 0, 1)))
    goal, elapsed = Pose(np.array([1.0, -2.0, 0.5]), Rotation.from_rotvec(turn)), 0
    for step in steps:
        elapsed += step
        pose = low.update(stamp + elapsed, goal)
        share = 1 - math.exp(-2 * math.pi * cutoff * elapsed / SECOND)
        np.testing.assert_allclose(pose.position, share * goal.position, atol=1e-9)
        np.testing.assert_allclose(pose.rotation.as_rotvec(), share * turn, atol=1e-9)


def test_filter_starts_anew_after_a_gap_when_time_jumps_back_and_is_off_at_zero():
    here, there = Pose.of((0, 0, 0), (0, 0, 0, 1)), Pose.of((1, 0, 0), (0, 0, 0, 1))
    low = PoseFilter(1.0, gap=0.5)
    low.update(SECOND, here)
    assert 0 < low.update(SECOND + SECOND // 2, there).position[0] < 1
    assert low.update(2 * SECOND + 1, there).position[0] == 1
    assert low.update(SECOND, here).position[0] == 0
    off = PoseFilter(0.0, gap=0.5)
    off.update(SECOND, here)
    assert off.update(SECOND + 1, there).position[0] == 1


def test_quaternion_sign_is_the_samplers_then_continuous():
    sign, turn = QuaternionSign(), lambda yaw: Rotation.from_rotvec([0, 0, yaw]).as_quat()
    for yaw in (0.1, 3.0, 3.3, 6.2):  # the sampler's half angles lie in 0 ... pi
        sign.reset()
        for first in (turn(yaw), -turn(yaw)):
            np.testing.assert_allclose(sign(first), [0, 0, math.sin(yaw / 2), math.cos(yaw / 2)], atol=1e-12)
    sign.reset()
    walked = np.array([sign(turn(yaw)) for yaw in np.linspace(6.2, 6.5, 20)])  # past 2 pi z changes sign, no jump
    assert np.abs(np.diff(walked, axis=0)).max() < 0.02 and walked[-1, 2] < 0


def test_layouts_agree_with_the_tasks():
    """A change of a task's contract must not pass unnoticed here."""
    for task, layout in LAYOUTS.items():
        (key,) = [key for key in observation_spec(load_task(task)).lowdim if key.name == KEY]
        assert (key.size, key.body) == (layout.size, layout.body)
        vector = object_vector(task, np.ones(3), np.array([0, 0, 0, 1.0]), np.zeros(3), np.array([0, 0, 0, 1.0]))
        assert vector.shape == (layout.size,)
    for task in ("transport", "lift_image", "no_such"):
        with pytest.raises(UserError, match="choose one of lift, can, square"):
            layout_of(task)


def test_grip_is_that_of_the_images_time():
    history = GripHistory(tolerance=0.02)
    assert history.at(SECOND) is None
    for i in range(3):
        hand = Rotation.from_rotvec([0, 0, 0.1 * i]).as_quat()
        values = {"robot0_eef_pos": np.array([i, 0.0, 0.0]), "robot0_eef_quat": hand}
        history.add(RobotState(SECOND + i * SECOND // 10, "t", i, values))
    grip, hand = history.at(SECOND + SECOND * 3 // 20)
    np.testing.assert_allclose(grip, [1.5, 0, 0])
    np.testing.assert_allclose(Rotation.from_quat(hand).as_rotvec(), [0, 0, 0.15], atol=1e-12)
    assert history.at(SECOND - 1) is None
    np.testing.assert_allclose(history.at(SECOND + SECOND // 5 + SECOND // 100)[0], [2, 0, 0])  # within the tolerance
    assert history.at(SECOND + SECOND // 5 + SECOND // 20) is None
    with pytest.raises(UserError, match="no robot0_eef_quat"):
        history.add(RobotState(2 * SECOND, "t", 0, {"robot0_eef_pos": np.zeros(3)}))
    history.add(RobotState(2 * SECOND, "another trial", 0, values))
    assert history.at(SECOND + 1) is None
