"""The nominal response against an integrator, the controller that it stands for, and data of another controller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import ActionSpec, LowDim, ObservationSpec
from d2ppo_core.data.robomimic import read_demonstrations, write_demonstrations
from d2ppo_core.errors import UserError
from d2ppo_core.response import KD, KP, Motion, advance, at_rest, osc_goal, osc_goal_rotation
from support import ENV_ARGS, reach_episodes

Array = np.ndarray
vector = st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3).map(np.array)
motions = st.builds(
    lambda p, turn, v, w: Motion(p, matrix(turn), np.concatenate([v, w]), np.zeros(6)), vector, vector, vector, vector
)
seconds = st.floats(0, 0.5)


def matrix(turn: Array) -> Array:
    return Rotation.from_rotvec(turn).as_matrix()


def assert_same(left: Motion, right: Motion, atol: float) -> None:
    for name in ("position", "rotation", "velocity", "acceleration"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=0, atol=atol, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(vector, vector, vector, seconds)
def test_positions_solve_the_equation_of_motion(start: Array, speed: Array, goal: Array, t: float) -> None:
    def rate(_: float, y: Array) -> Array:
        return np.concatenate([y[3:], 150 * (goal - y[:3]) - 2 * np.sqrt(150) * y[3:]])

    found = solve_ivp(rate, (0, t), np.concatenate([start, speed]), rtol=1e-10, atol=1e-12, method="DOP853").y[:, -1]
    motion = Motion(start, np.eye(3), np.concatenate([speed, np.zeros(3)]), np.zeros(6))
    later = advance(motion, goal, np.eye(3), t)
    np.testing.assert_allclose(np.concatenate([later.position, later.velocity[:3]]), found, rtol=0, atol=1e-8)
    np.testing.assert_allclose(later.acceleration[:3], rate(0, found)[3:], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(later.velocity[3:], 0)


@pytest.mark.parametrize("t", [0.01, 0.05, 0.3])
def test_a_turn_about_a_fixed_axis_solves_it_too(t: float) -> None:
    """The rotation matrix itself is integrated, R' = [w]x R, under the controller's own law."""
    axis, frame = np.array([2.0, -1, 2]) / 3, matrix(np.array([0.3, 0.9, -0.2]))
    goal = matrix(0.5 * axis) @ frame

    def rate(_: float, y: Array) -> Array:
        rotation, w = y[:9].reshape(3, 3), y[9:]
        error = Rotation.from_matrix(goal @ rotation.T).as_rotvec()
        return np.concatenate([np.cross(w, rotation, axisb=0, axisc=0).ravel(), KP * error - KD * w])

    start = np.concatenate([frame.ravel(), -1.5 * axis])
    found = solve_ivp(rate, (0, t), start, rtol=1e-10, atol=1e-12, method="DOP853").y[:, -1]
    later = advance(Motion(np.zeros(3), frame, np.concatenate([np.zeros(3), -1.5 * axis]), np.zeros(6)),
                    np.zeros(3), goal, t)  # fmt: skip
    np.testing.assert_allclose(later.rotation, found[:9].reshape(3, 3), rtol=0, atol=1e-8)
    np.testing.assert_allclose(later.velocity[3:], found[9:], rtol=0, atol=1e-7)
    np.testing.assert_allclose(later.acceleration[3:], rate(0, found)[9:], rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(motions, vector, vector, seconds, seconds)
def test_parts_add_up(motion: Motion, position: Array, turn: Array, first: float, second: float) -> None:
    goal = position, matrix(turn)
    assert_same(advance(advance(motion, *goal, first), *goal, second), advance(motion, *goal, first + second), 1e-8)


@settings(max_examples=60, deadline=None)
@given(motions, vector, vector, seconds)
def test_the_controller_that_follows_is_given_the_goal(
    motion: Motion, position: Array, turn: Array, t: float
) -> None:
    """Tracking the motion at any of its times is the same as holding its goal, so it can really be followed."""
    m = advance(motion, position, matrix(turn), t)
    np.testing.assert_allclose(osc_goal(m.position, m.velocity[:3], m.acceleration[:3]), position, rtol=0, atol=1e-9)
    goal = osc_goal_rotation(m.rotation, m.velocity[3:], m.acceleration[3:])
    np.testing.assert_allclose(goal, matrix(turn), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(motions, vector, vector)
def test_a_new_goal_changes_the_acceleration_alone(motion: Motion, position: Array, turn: Array) -> None:
    now = advance(motion, position, matrix(turn), 0.0)
    np.testing.assert_allclose(now.acceleration[:3], KP * (position - motion.position) - KD * motion.velocity[:3])
    for name in ("position", "rotation", "velocity"):
        np.testing.assert_allclose(getattr(now, name), getattr(motion, name), rtol=0, atol=1e-12, err_msg=name)


def test_at_rest_at_the_goal_it_stays_and_from_elsewhere_it_never_overshoots() -> None:
    goal, turned = np.array([0.4, -0.1, 1.0]), matrix(np.array([0.1, 0.2, 0.3]))
    assert_same(advance(at_rest(goal, turned), goal, turned, 0.7), at_rest(goal, turned), 1e-12)
    left = [goal[0] - advance(at_rest(np.zeros(3), turned), goal, turned, t).position[0] for t in np.arange(0, 3, 0.05)]
    assert left[0] == goal[0] and (np.diff(left) < 0).all() and 0 < left[-1] < 1e-9


@pytest.mark.parametrize("gain", [{"kp": 300}, {"kp": [150, 150, 150, 150, 150, 90]}, {"damping": 2}])
def test_demonstrations_of_another_response_are_refused(gain: dict[str, object], tmp_path: Path) -> None:
    controller = {"type": "OSC_POSE", "kp": 150, "damping": 1}
    seen = ObservationSpec(lowdim=(LowDim(name="position", size=2), LowDim(name="goal", size=2)))
    does = ActionSpec(meaning="planar_delta", position_scale=0.1, rotation_scale=0.0, gripper="none")
    for number, settings_ in enumerate((controller, controller | gain)):
        kwargs = {"control_freq": 20, "controller_configs": settings_}
        write_demonstrations(tmp_path / f"{number}.hdf5", reach_episodes(2), ENV_ARGS | {"env_kwargs": kwargs}, {})
    assert len(read_demonstrations(tmp_path / "0.hdf5", "Reach", seen, does).actions) == 2
    with pytest.raises(UserError, match=f"{next(iter(gain))} .* instead of"):
        read_demonstrations(tmp_path / "1.hdf5", "Reach", seen, does)
