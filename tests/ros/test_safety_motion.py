"""One motion against its limits: what passes is the same object, what does not is brought inside or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_core.action import pose_target
from d2ppo_core.contract import ActionSpec
from d2ppo_ros.records import SECOND, Command
from d2ppo_ros.safety.arms import ArmWatch
from d2ppo_ros.safety.checks import Reaction
from d2ppo_ros.safety.motion import GripperGuard, MotionFilter, malformed
from d2ppo_ros.safety.settings import LockstepSettings, SafetySettings, SimSettings
from safety_bench import HOME, MS, SMALL, arm_state, delta, pose

ROBOT, SPEC = SafetySettings(), ActionSpec()
START = arm_state()
seeds = st.integers(0, 2**32 - 1)


class Rig:
    """A filter and an arm."""

    def __init__(self, limits: SafetySettings = ROBOT, spec: ActionSpec = SPEC, **measured) -> None:
        self.filter = MotionFilter(limits, spec)
        self.arms = [ArmWatch(i, limits) for i in range(spec.arms)]
        for arm in self.arms:
            arm.update(arm_state(**measured))

    def __call__(self, command: Command) -> tuple[Command, set[str]]:
        result, self.findings = self.filter.check(command, self.arms)
        return result, {finding.check for finding in self.findings}

    @property
    def refused(self) -> bool:
        return any(finding.reaction >= Reaction.HOLD for finding in self.findings)


def moved(*position: float, turn: tuple[float, ...] = (0, 0, 0), stamp: int = SECOND, **changes) -> Command:
    """An absolute target relative to where the arm started."""
    return pose(stamp, START.position + position, Rotation.from_rotvec(turn).as_matrix() @ START.rotation, **changes)


BAD_ACTIONS = [np.zeros(6), np.zeros((1, 7)), np.zeros(0), np.full(7, np.nan), np.r_[np.zeros(6), np.inf]]


@pytest.mark.parametrize("action", BAD_ACTIONS, ids=lambda action: str(action)[:20])
def test_malformed_actions(action: np.ndarray) -> None:
    rig = Rig()
    assert rig(delta(SECOND, action))[1] == {"malformed"}
    assert rig.refused
    assert not rig.filter.moving


@pytest.mark.parametrize(
    "wrong",
    [{"position": np.zeros(2)}, {"quaternion": np.zeros(4)}, {"quaternion": np.array([0, 0, 0, 1.1])},
     {"velocity": np.full(6, np.nan)}, {"acceleration": np.zeros(3)}, {"gripper": np.inf}, {"gripper": 3.0}],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_malformed_targets(wrong: dict) -> None:
    good = moved(0, 0, 0)
    assert malformed(good, SPEC) is None
    assert malformed(replace(good, targets=(replace(good.targets[0], **wrong),)), SPEC) is not None
    assert malformed(replace(good, targets=good.targets * 2), SPEC) is not None
    assert malformed(good, ActionSpec(arms=2)) is not None


@settings(max_examples=25, deadline=None)
@given(st.lists(seeds, min_size=1, max_size=10), st.sampled_from([SimSettings(), LockstepSettings()]),
       st.sampled_from([1, 2]), st.sampled_from(["measured", "commanded"]))  # fmt: skip
def test_sim_passes_every_action_in_range_untouched(
    several: list[int], limits: SafetySettings, arms: int, reference: str
) -> None:
    rig = Rig(limits, ActionSpec(arms=arms, delta_reference=reference))
    for i, seed in enumerate(several):
        action = np.random.default_rng(seed).uniform(-1, 1, 7 * arms)
        action[seed % 7] = (-1.0, 1.0)[seed % 2]  # the very ends too
        command = delta(SECOND + i * 50 * MS, action)
        result, found = rig(command)
        assert result is command
        assert found == set()


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(1e-6, 1e6))
def test_sim_clips_what_is_out_of_range(seed: int, scale: float) -> None:
    rig, action = Rig(SimSettings()), scale * np.random.default_rng(seed).normal(size=7)
    result, found = rig(delta(SECOND, action))
    np.testing.assert_array_equal(result.action, np.clip(action, -1, 1))
    assert found == ({"range"} if np.abs(action).max() > 1.001 else set())


@settings(max_examples=40, deadline=None)
@given(st.lists(seeds, min_size=1, max_size=8), st.sampled_from(["measured", "commanded"]))
def test_robot_lets_no_delta_past_any_limit(several: list[int], reference: str) -> None:
    """Whatever the action and wherever the arm: what goes on is slow, inside the box and upright."""
    spec = ActionSpec(delta_reference=reference)
    rig = Rig(spec=spec)
    base = (START.position, START.rotation)
    for i, seed in enumerate(several):
        action = np.random.default_rng(seed).normal(size=7) * 10.0 ** (seed % 4 - 2)
        result, _ = rig(delta(SECOND + i * 50 * MS, action))
        assert np.linalg.norm(result.action[:3]) * spec.position_scale <= 0.0125 + 1e-9
        assert np.linalg.norm(result.action[3:6]) * spec.rotation_scale <= 0.05 + 1e-9
        assert abs(result.action[6]) <= 1
        target = pose_target(result.action, *base, spec)
        assert (target.position >= [0.2, -0.45, 0.01]).all()
        assert (target.position <= ROBOT.box_high).all()
        assert np.arccos(np.clip(-target.orientation[2, 2], -1, 1)) <= ROBOT.tilt + 1e-3
        if reference == "commanded":
            base = (target.position, target.orientation)


def test_robot_passes_small_deltas_as_they_are() -> None:
    rig, command = Rig(), delta(SECOND)
    assert rig(command) == (command, set())
    edge = delta(SECOND + 50 * MS, np.array([0.25, 0, 0, 0, 0, 0.1, -1]))  # exactly 12.5 mm and 0.05 rad
    assert rig(edge)[0] is edge


@pytest.mark.parametrize(
    ("action", "found"),
    [([0.26, 0, 0, 0, 0, 0, -1], {"delta"}), ([0, 0, 0, 0, 0.11, 0, -1], {"delta"}),
     ([2, 0, 0, 0, 0, 0, -1], {"range"}), ([1.0005, 0, 0, 0, 0, 0, -1], {"delta"}),
     ([0.2, 0, 0, 0, 0, 0, -1.0005], set())],
)  # fmt: skip
def test_robot_says_what_it_shortened(action: list[float], found: set[str]) -> None:
    assert Rig()(delta(SECOND, np.array(action)))[1] == found


def test_deltas_more_often_than_every_step_are_shortened() -> None:
    """Else whoever sends them at 1 kHz would be twenty times as fast."""
    rig, full = Rig(), np.array([0.25, 0, 0, 0, 0, 0, -1])
    assert rig(delta(SECOND, full))[1] == set()
    result, found = rig(delta(SECOND + 20 * MS, full))
    assert found == {"command_speed"}
    np.testing.assert_allclose(result.action[:3], [0.1, 0, 0], atol=1e-9)
    assert rig(delta(SECOND + 70 * MS, full))[1] == set()


def test_a_delta_into_a_face_slides_along_it() -> None:
    at_face = replace(START, position=np.array([0.4, 0.0, 0.012]))
    rig = Rig(position=at_face.position)
    result, found = rig(delta(SECOND, np.array([0.1, 0, -0.2, 0, 0, 0, -1])))
    assert found == {"workspace"}
    np.testing.assert_allclose(result.action[:3] * 0.05, [0.005, 0, -0.002], atol=1e-9)


def test_a_delta_from_outside_leads_back() -> None:
    rig = Rig(position=np.array([0.4, 0.0, -0.005]))  # 15 mm too low
    result, _ = rig(delta(SECOND, np.array([0, 0, -0.2, 0, 0, 0, -1])))
    assert 0 < result.action[2] * 0.05 <= 0.0125


def test_tilting_stops_at_the_cone() -> None:
    tilted = Rotation.from_rotvec([0.77, 0, 0]).as_matrix() @ START.rotation
    rig = Rig(rotation=tilted)
    result, found = rig(delta(SECOND, np.array([0, 0, 0, 0.1, 0, 0, -1])))
    assert found == {"workspace"}
    assert result.action[3] * 0.5 == pytest.approx(ROBOT.tilt - 0.77, abs=1e-6)


def test_the_smallest_share_wins() -> None:
    """Near a joint's end and near a singularity at once: the one that leaves least."""
    q = np.array([0, 0.8, 0, -1.0, 0, 1.9, 2.8973 - 0.105])
    wide = replace(ROBOT, box_high=[0.9, 0.45, 0.8])
    rig = Rig(wide, q=q)
    axis = rig.arms[0].state.rotation[:, 2]
    result, found = rig(delta(SECOND, np.r_[np.zeros(3), 0.05 * axis, -1]))
    assert "joint_margin" in found
    assert np.linalg.norm(result.action[3:6]) == pytest.approx(0.1 * 0.05, rel=1e-3)  # 5 of 50 mrad are left


def test_towards_a_joints_end_is_refused_and_away_passes() -> None:
    q = HOME.copy()
    q[6] = 2.8973 - 0.09
    rig = Rig(q=q)
    axis = rig.arms[0].state.rotation[:, 2]
    assert rig(delta(SECOND, np.r_[np.zeros(3), 0.05 * axis, -1]))[1] == {"joint_margin"}
    assert rig.refused
    away = delta(SECOND, np.r_[np.zeros(3), -0.05 * axis, -1])
    assert rig(away)[0] is away


class TestPose:
    def test_at_the_measured_pose_it_passes(self) -> None:
        command = moved(0.009, 0, 0)
        assert Rig()(command) == (command, set())

    @pytest.mark.parametrize(
        ("command", "refused"),
        [(moved(0.0099, 0, 0), False), (moved(0.0101, 0, 0), True), (moved(0, 0, 0, turn=(0, 0, 0.049)), False),
         (moved(0, 0, 0, turn=(0, 0, 0.051)), True)],
    )  # fmt: skip
    def test_a_first_jump_is_refused(self, command: Command, refused: bool) -> None:
        rig = Rig()
        rig(command)
        assert rig.refused == refused
        assert rig.filter.moving != refused

    def test_the_jump_is_looked_at_again_after_a_hold(self) -> None:
        rig = Rig()
        for i in range(20):
            rig(moved(0.002 * i, 0, 0, stamp=SECOND + 10 * i * MS))
            assert not rig.refused
        rig.filter.reset()  # the arm was held, and measured where it was at first
        assert rig(moved(0.04, 0, 0, stamp=2 * SECOND))[1] == {"jump"}

    def test_without_a_measurement_nothing_starts(self) -> None:
        rig = Rig()
        rig.arms[0].forget()
        rig(moved(0, 0, 0))
        assert rig.refused

    def test_speed_is_cut_to_the_limit_and_gaps_are_no_leave_to_leap(self) -> None:
        rig = Rig()
        rig(moved(0, 0, 0))
        result, found = rig(moved(0.02, 0, 0, stamp=SECOND + 10 * MS))
        assert found == {"command_speed"}
        np.testing.assert_allclose(result.targets[0].position, START.position + np.array([0.0025, 0, 0]), atol=1e-9)
        result, _ = rig(moved(0.2, 0, 0, stamp=4 * SECOND))
        np.testing.assert_allclose(result.targets[0].position, START.position + np.array([0.015, 0, 0]), atol=1e-9)

    def test_exactly_at_the_limit_passes(self) -> None:
        rig = Rig()
        for i in range(40):
            velocity = np.array([0, min(0.25, 0.04 * i), 0, 0, 0, 0])
            command = moved(0, 0.0025 * i, 0, stamp=SECOND + 10 * i * MS, velocity=velocity)
            assert rig(command)[0] is command, i

    def test_velocity_and_acceleration_are_bounded(self) -> None:
        rig = Rig()
        wild = moved(0, 0, 0, velocity=np.full(6, 9.0), acceleration=np.full(6, 900.0))
        result, found = rig(wild)
        assert found == {"acceleration"}
        (target,) = result.targets
        assert np.linalg.norm(target.velocity[:3]) == pytest.approx(0.2)  # 4 m/s^2 for the 50 ms of a first command
        assert np.linalg.norm(target.acceleration[:3]) == pytest.approx(4.0)
        assert np.linalg.norm(target.acceleration[3:]) == pytest.approx(10.0)

    def test_outside_is_brought_to_the_face_with_less_velocity(self) -> None:
        rig = Rig(position=np.array([0.4, 0.0, 0.012]))
        command = pose(SECOND, np.array([0.4, 0.0, 0.005]), START.rotation, velocity=np.array([0, 0, -0.1, 0, 0, 0]))
        result, found = rig(command)
        assert found == {"workspace"}
        np.testing.assert_allclose(result.targets[0].position, [0.4, 0, 0.01], atol=1e-9)
        assert result.targets[0].velocity[2] == pytest.approx(-0.1 * 2 / 7)

    def test_sim_passes_any_path(self) -> None:
        rig = Rig(SimSettings())
        for i in range(20):
            command = moved(0.05 * i, 0, 0, stamp=SECOND + 10 * i * MS, velocity=np.full(6, 3.0), gripper=(-1.0) ** i)
            assert rig(command)[0] is command

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(seeds, st.integers(1, 500)), min_size=2, max_size=8))
    def test_robot_lets_no_target_past_any_limit(self, several: list[tuple[int, int]]) -> None:
        rig, stamp, last = Rig(), SECOND, None
        for seed, wait in several:
            rng, stamp = np.random.default_rng(seed), stamp + wait * MS
            scale = 10.0 ** (seed % 5 - 4)
            command = moved(*(rng.normal(size=3) * scale), turn=tuple(rng.normal(size=3) * scale), stamp=stamp,
                            velocity=rng.normal(size=6), acceleration=100 * rng.normal(size=6))  # fmt: skip
            result, _ = rig(command)
            if rig.refused:
                continue
            (target,) = result.targets
            assert (target.position >= [0.2, -0.45, 0.01]).all()
            assert (target.position <= ROBOT.box_high).all()
            assert np.linalg.norm(target.velocity[:3]) <= 0.25 + 1e-9
            assert np.linalg.norm(target.velocity[3:]) <= 1 + 1e-9
            if last is not None:
                dt = min(stamp - last[1], 50 * MS) / SECOND
                turn = Rotation.from_quat(target.quaternion) * Rotation.from_quat(last[0].quaternion).inv()
                assert np.linalg.norm(target.position - last[0].position) <= 0.25 * dt + 1e-6
                assert turn.magnitude() <= dt + 1e-6
            last = (target, stamp)


class TestGripper:
    def test_toggles_are_kept_apart(self) -> None:
        guard, sent = GripperGuard(0.5), []
        for step, wanted in enumerate([-1, -1, 1, -1, -1] + [-1] * 10):
            value = guard.limit(wanted, step * 50 * MS)
            guard.sent(value, step * 50 * MS)
            sent.append(value)
        assert sent == [-1, -1] + [1] * 10 + [-1] * 3  # closed at 100 ms: open from 600 ms on

    def test_what_was_not_sent_is_no_toggle(self) -> None:
        guard = GripperGuard(0.5)
        guard.sent(-1.0, 0)
        assert guard.limit(1.0, 10 * MS) == 1.0  # this command was then refused for another reason
        assert guard.limit(-1.0, 20 * MS) == -1.0

    def test_the_filter_keeps_the_last_side(self) -> None:
        rig, close, open_ = Rig(), SMALL.copy(), SMALL
        close[6] = 1.0
        rig(delta(SECOND, open_))
        rig(delta(SECOND + 50 * MS, close))
        result, found = rig(delta(SECOND + 100 * MS, open_))
        assert found == {"gripper"}
        assert result.action[6] == 1.0
        np.testing.assert_array_equal(result.action[:6], open_[:6])

    def test_it_holds_for_each_of_two_arms(self) -> None:
        rig = Rig(spec=ActionSpec(arms=2))
        action = np.concatenate([SMALL, SMALL])
        rig(delta(SECOND, action))
        for i, (first, second) in enumerate([(1, -1), (-1, 1)], start=1):
            action = action.copy()
            action[6], action[13] = first, second
            result, _ = rig(delta(SECOND + i * 50 * MS, action))
        assert (result.action[6], result.action[13]) == (1, 1)  # the first toggles too early, the second may


def test_planar_actions_are_only_clipped() -> None:
    rig = Rig(SimSettings(), ActionSpec(meaning="planar_delta", gripper="none"))
    assert rig(delta(SECOND, np.array([0.5, -1.0])))[1] == set()
    result, found = rig(delta(SECOND, np.array([3.0, -1.0])))
    assert found == {"range"}
    np.testing.assert_array_equal(result.action, [1.0, -1.0])
