"""An arm's references: frames against the simulator, smooth paths, hard ceilings, deltas and holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import ActionSpec
from d2ppo_core.errors import UserError
from d2ppo_core.response import advance, at_rest
from d2ppo_ros.records import ArmState, Command, Kind, Target
from d2ppo_ros.robot.ceilings import Ceilings, Limiter
from d2ppo_ros.robot.frames import HAND_TURN, ArmFrames, finger_positions
from d2ppo_ros.robot.reference import References
from d2ppo_ros.robot.waypoints import PathPoint, Waypoints, turn_between
from d2ppo_ros.safety.kinematics import LIMITS, forward

CEILINGS = Ceilings(0.25, 1.0, 4.0, 10.0)
REST = PathPoint.rest(np.zeros(3), np.eye(3))
numbers = st.floats(-1.0, 1.0)
vectors = st.tuples(numbers, numbers, numbers).map(np.array)
cycles = st.lists(st.integers(1, 20).map(lambda ms: ms / 1000), min_size=5, max_size=60)


def o_t_ee(q: np.ndarray) -> np.ndarray:
    """What the robot reports at q, with Franka's hand."""
    position, rotation, _ = forward(q, 0.2104)
    pose = np.eye(4)
    pose[:3, 3], pose[:3, :3] = position, rotation @ Rotation.from_euler("z", HAND_TURN).as_matrix()
    return pose


@pytest.mark.sim
@pytest.mark.parametrize("task", ["lift", "transport"])
def test_the_same_observation_as_the_simulator_at_equal_joints(task: str) -> None:
    import mujoco

    from d2ppo_core.tasks import load_task
    from d2ppo_sim.robot import SimulatedRobot

    robot, generator = SimulatedRobot(load_task(task)), np.random.default_rng(0)
    robot.reset(1)
    model, data, limits = robot.env.model, robot.env.data[0], LIMITS["fr3"]
    for _ in range(100):
        for arm in robot._facts.arms:
            data.qpos[list(arm.qpos)] = generator.uniform(limits.low, limits.high)
        mujoco.mj_kinematics(model, data)
        for number, arm in enumerate(robot.arms()):
            base, hand = (data.body(f"robot{number}_{name}") for name in ("base", "right_hand"))
            frames = ArmFrames(base.xpos, 2 * np.arctan2(base.xquat[3], base.xquat[0]))
            ee = o_t_ee(arm.q)
            position, rotation = frames.site(ee)
            assert np.allclose(position, arm.position, atol=1e-6)
            assert np.allclose(rotation, arm.rotation, atol=1e-6)
            assert np.allclose(frames.hand_quaternion(ee, arm.q), np.roll(hand.xquat, -1), atol=1e-6)  # sign and all
            assert np.allclose(frames.ee(position, rotation), ee, atol=1e-9)
    fingers = robot.values["robot0_gripper_qpos"]
    assert np.allclose(finger_positions(fingers[0] - fingers[1]), fingers, atol=1e-6)
    robot.close()


@given(vectors, vectors, vectors)
def test_twists_and_wrenches_move_between_the_points(linear: np.ndarray, angular: np.ndarray, turn: np.ndarray) -> None:
    frames, rotation = ArmFrames(np.array([0.1, 0.2, 0.3]), 0.7), Rotation.from_rotvec(2 * turn).as_matrix()
    step, twist = 1e-6, np.concatenate([linear, angular])
    moved = frames.ee(step * linear, Rotation.from_rotvec(step * angular).as_matrix() @ rotation)
    still = frames.ee(np.zeros(3), rotation)
    found = frames.ee_twist(twist, rotation)
    assert np.allclose((moved - still)[:3, 3] / step, found[:3], atol=1e-4)
    assert np.allclose(turn_between(still[:3, :3], moved[:3, :3]) / step, found[3:], atol=1e-4)
    wrench = np.concatenate([angular, linear])  # power is the same, wherever it is counted
    assert np.isclose(frames.site_wrench(wrench, rotation) @ twist, wrench @ found, atol=1e-9)


@settings(max_examples=60)
@given(st.lists(st.tuples(vectors, vectors, st.floats(-0.05, 0.1)), min_size=1, max_size=6), cycles)
def test_paths_have_no_jump_and_end_at_rest(points: list, steps: list[float]) -> None:
    now, path, last = 0.0, Waypoints(0.0, REST), REST
    for number, step in enumerate(steps):
        if number % 5 == 0 and points:
            place, twist, ahead = points.pop()
            goal = PathPoint(place, Rotation.from_rotvec(place).as_matrix(), np.concatenate([twist, twist]))
            path.add(now, now + ahead, goal)
            at = path.at(now)
            assert np.allclose(at.position, last.position) and np.allclose(at.twist, last.twist, atol=1e-6)
        now += step
        last = path.at(now)
        assert np.isfinite(last.position).all() and np.isfinite(last.twist).all()
    assert np.allclose(path.at(now + 1.0).twist, 0)
    assert np.allclose(path.at(now + 1.0).position, path.at(now + 9.0).position)


@settings(max_examples=60)
@given(st.lists(st.tuples(vectors, vectors, vectors), min_size=1, max_size=8), cycles)
def test_nothing_gets_past_the_ceilings(points: list, steps: list[float]) -> None:
    limiter, before, seconds = Limiter(CEILINGS, None, REST), np.zeros(6), 0.0
    for number, step in enumerate(steps):
        place, turn, twist = points[number % len(points)]
        goal = PathPoint(place, Rotation.from_rotvec(turn).as_matrix(), 9 * np.concatenate([twist, twist]))
        old, new = limiter.point, limiter.follow(goal, step)
        velocity = np.concatenate([new.position - old.position, turn_between(old.rotation, new.rotation)]) / step
        between = (step + seconds) / 2 if seconds else step
        change = (velocity - before) / between
        assert np.linalg.norm(velocity[:3]) <= 0.25 + 1e-9 and np.linalg.norm(velocity[3:]) <= 1.0 + 1e-6
        assert np.linalg.norm(change[:3]) <= 4.0 + 1e-6 and np.linalg.norm(change[3:]) <= 10.0 + 1e-3
        assert np.linalg.norm(new.twist[:3] - velocity[:3]) <= 4.0 * between + 1e-9  # feed-forward does not lie
        before, seconds = velocity, step


@settings(max_examples=20, deadline=None)
@given(vectors, vectors)
def test_a_jump_is_caught_up_with_and_not_overshot(place: np.ndarray, turn: np.ndarray) -> None:
    limiter = Limiter(CEILINGS, None, REST)
    goal, far = PathPoint.rest(0.1 * place, Rotation.from_rotvec(0.3 * turn).as_matrix()), 0.0
    for _ in range(400):
        far = max(far, float(np.linalg.norm(limiter.follow(goal, 0.005).position)))
    assert np.allclose(limiter.point.position, goal.position, atol=1e-4)
    assert far <= np.linalg.norm(goal.position) + 2e-3


def test_a_smooth_path_within_the_limits_passes_unchanged() -> None:
    limiter = Limiter(CEILINGS, None, REST)
    for cycle in range(1, 400):
        time = 0.005 * cycle
        position = np.array([0.05 * (1 - np.cos(2 * time)), 0.0, 0.0])
        twist = np.array([0.1 * np.sin(2 * time), 0, 0, 0, 0, 0])
        point = limiter.follow(PathPoint(position, np.eye(3), twist), 0.005)
        assert np.allclose(point.position, position) and np.array_equal(point.twist, twist)
    assert limiter.changed == 0


def arm(position: tuple[float, ...] = (0.0, 0.0, 0.0)) -> ArmState:
    return ArmState(0, np.zeros(7), np.zeros(7), np.array(position), np.eye(3))


def delta(action: list[float]) -> Command:
    return Command(0, "", 0, Kind.DELTA, action=np.array(action, dtype=float))


def references(**action: object) -> References:
    found = References(ActionSpec(**action), Ceilings(1.0, 2.5, 6.5, 12.5))
    found.hold(0.0, [arm()])
    return found


def test_a_delta_goes_as_the_controller_of_training_took_it() -> None:
    refs, step = references(), [0.2, 0.0, -0.1, 0.0, 0.1, 0.0, 1.0]
    refs.obey(delta(step), 0.0, [arm()])
    for cycle in range(1, 11):
        point = refs.advance(0.005 * cycle)[0]
    goal = 0.05 * np.array(step[:3]), Rotation.from_rotvec([0.0, 0.05, 0.0]).as_matrix()
    wanted = advance(at_rest(np.zeros(3), np.eye(3)), *goal, 0.05)
    assert np.allclose(point.position, wanted.position, atol=2e-5)
    assert np.allclose(point.twist, wanted.velocity, atol=2e-3)
    assert refs.changed == 0 and refs.grippers == [1.0]


def test_measured_and_commanded_deltas_count_from_different_poses() -> None:
    for reference, expected in (("measured", 0.01), ("commanded", 0.02)):
        refs = references(delta_reference=reference)
        for _ in range(2):
            refs.obey(delta([0.2, 0, 0, 0, 0, 0, 0]), 0.0, [arm()])  # an arm that does not move
        for cycle in range(1, 200):
            point = refs.advance(0.005 * cycle)[0]
        assert np.isclose(point.position[0], expected, atol=1e-4)


def test_commanded_goals_do_not_wind_up() -> None:
    refs = references(delta_reference="commanded")
    for _ in range(50):
        refs.obey(delta([0.25, 0, 0, 0, 0, 0, 0]), 0.0, [arm()])
        assert refs._servo.goals[0].position[0] <= 0.03 + 0.0125 + 1e-9
    assert refs.reanchored > 0


def test_a_reference_stands_still_with_the_robots_clock_and_holds_at_once() -> None:
    refs = references()
    refs.obey(delta([1, 0, 0, 0, 0, 0, 0]), 0.0, [arm()])
    first = refs.advance(0.05)[0]
    assert refs.advance(0.05)[0] is first
    held = refs.hold(0.05, [arm((0.001, 0.0, 0.0))])[0]
    assert np.array_equal(held.position, [0.001, 0, 0]) and not held.twist.any()
    assert np.array_equal(refs.advance(0.5)[0].position, held.position)


def test_poses_are_followed_and_malformed_commands_refused() -> None:
    refs = references()
    target = Target(np.array([0.01, 0, 0]), np.array([0, 0, 0, 1.0]), np.zeros(6), np.zeros(6), -1.0)
    refs.obey(Command(0, "", 0, Kind.POSE, targets=(target,)), 0.1, [arm()])
    assert 0 < refs.advance(0.05)[0].position[0] < 0.01
    for cycle in range(30):
        point = refs.advance(0.055 + 0.005 * cycle)[0]
    assert np.allclose(point.position, target.position, atol=1e-6)
    with pytest.raises(UserError):
        refs.obey(delta([0.0] * 6), 0.2, [arm()])
    with pytest.raises(UserError):
        refs.obey(delta([np.nan] * 7), 0.2, [arm()])
    assert np.allclose(refs.advance(0.3)[0].position, target.position, atol=1e-6)
