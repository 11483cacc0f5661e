"""Forward kinematics and Jacobian of the arm against differences, published numbers and the simulator's model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_core.opengl import choose_backend
from d2ppo_ros.safety.kinematics import LIMITS, forward
from safety_bench import HOME

PANDA = LIMITS["panda"]
postures = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).uniform(PANDA.low, PANDA.high))


def test_home_is_where_franka_says() -> None:
    position, rotation, _ = forward(HOME, 0.107 + 0.1034)
    np.testing.assert_allclose(position, [0.3069, 0.0, 0.4869], atol=1e-4)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=1e-12)  # the tool points down


@settings(max_examples=30, deadline=None)
@given(postures)
def test_jacobian_is_the_derivative(q: np.ndarray) -> None:
    step, jacobian = 1e-6, forward(q, 0.21)[2]
    for joint in range(7):
        ahead, behind = (forward(q + sign * step * np.eye(7)[joint], 0.21) for sign in (1, -1))
        linear = (ahead[0] - behind[0]) / (2 * step)
        angular = Rotation.from_matrix(ahead[1] @ behind[1].T).as_rotvec() / (2 * step)
        np.testing.assert_allclose(jacobian[:, joint], [*linear, *angular], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(postures)
def test_rotation_is_one(q: np.ndarray) -> None:
    rotation = forward(q, 0.21)[1]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) > 0


@pytest.mark.parametrize("model", ["panda", "fr3"])
def test_limits_are_ranges(model: str) -> None:
    limits = LIMITS[model]
    assert (limits.low < limits.high).all()
    assert (limits.speed > 0).all()
    assert limits.low.shape == limits.high.shape == limits.speed.shape == (7,)


@pytest.mark.sim
def test_equals_the_simulators_model() -> None:
    """robosuite's Panda: same lengths, its hand 0.1065 m ahead of joint 7 and the grip site 0.097 m further."""
    choose_backend()  # before MuJoCo is imported
    mujoco = pytest.importorskip("mujoco")
    robots = pytest.importorskip("robosuite.models.robots")
    grippers = pytest.importorskip("robosuite.models.grippers")
    arm = robots.Panda()
    arm.add_gripper(grippers.gripper_factory("PandaGripper"))
    model = mujoco.MjModel.from_xml_string(arm.get_xml())
    data = mujoco.MjData(model)
    site = next(i for i in range(model.nsite) if model.site(i).name.endswith("grip_site"))
    base = next(i for i in range(model.nbody) if model.body(i).name.endswith("link0"))
    rng = np.random.default_rng(0)
    for q in rng.uniform(PANDA.low, PANDA.high, (5, 7)):
        data.qpos[:7] = q
        mujoco.mj_forward(model, data)
        jacobian = np.zeros((6, model.nv))
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
        turn = data.xmat[base].reshape(3, 3)
        position, _, ours = forward(q, 0.1065 + 0.097)
        np.testing.assert_allclose(turn @ position + data.xpos[base], data.site_xpos[site], atol=1e-6)
        np.testing.assert_allclose(np.vstack([turn @ ours[:3], turn @ ours[3:]]), jacobian[:, :7], atol=1e-5)
    ranges = np.degrees(model.jnt_range[:7])  # the arm alone is read as degrees, and written in radians
    np.testing.assert_allclose(ranges, np.stack([PANDA.low, PANDA.high], axis=1), atol=1e-6)
