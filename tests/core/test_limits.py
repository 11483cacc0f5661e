"""The limits profile `robot`: what it does to an action, and that training and evaluation run under it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from d2ppo_core import cli
from d2ppo_core.action import apply_limits, pose_target, under_limits
from d2ppo_core.checkpoint import read_policy, save_policy
from d2ppo_core.contract import ActionSpec
from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.errors import UserError
from d2ppo_core.inference import load_policy
from d2ppo_core.network_specs import SamplerSpec
from oracles import small_spec

SIM, ROBOT = ActionSpec(), ActionSpec(limits="robot")
BOTH = ActionSpec(limits="robot", arms=2)
DEBUG = ("experiment=debug", "threads=1")
axes = array_shapes(min_dims=0, max_dims=2, max_side=4)
actions = axes.flatmap(lambda shape: arrays(float, (*shape, 14), elements=st.floats(-3, 3)))


@settings(max_examples=150, deadline=None)
@given(actions, st.sampled_from([ROBOT, BOTH]))
def test_what_the_robot_profile_promises(action: np.ndarray, spec: ActionSpec) -> None:
    action = action[..., : spec.size]
    limited, clipped = apply_limits(action, spec), np.clip(action, -1, 1)
    np.testing.assert_array_equal(apply_limits(limited, spec), limited)  # to the last bit
    assert limited.shape == action.shape and (np.abs(limited) <= np.abs(clipped)).all()
    for arm in range(spec.arms):
        one, whole = limited[..., 7 * arm :][..., :7], clipped[..., 7 * arm :][..., :7]
        np.testing.assert_array_equal(one[..., 6], whole[..., 6])
        for part, scale, most in ((slice(0, 3), 0.05, 0.0125), (slice(3, 6), 0.5, 0.05)):
            size, before = (scale * np.linalg.norm(a[..., part], axis=-1) for a in (one, whole))
            np.testing.assert_allclose(size, np.minimum(before, most), rtol=1e-9)
            assert (size <= most).all()
            turned = np.cross(one[..., part], whole[..., part])  # zero: the same direction
            np.testing.assert_allclose(turned, 0, atol=1e-15)
            np.testing.assert_array_equal(one[before <= most * (1 - 1e-9)][..., part],
                                          whole[before <= most * (1 - 1e-9)][..., part])  # fmt: skip


def test_limits_of_other_actions_and_rates() -> None:
    wild = np.array([-3.0, 0.4])
    plane = {"meaning": "planar_delta", "gripper": "none"}
    np.testing.assert_array_equal(apply_limits(wild, ActionSpec(limits="robot", **plane)), [-1, 0.4])
    slow = ActionSpec(limits="robot", control_hz=5)  # 0.25 m/s for 0.2 s is all that an action of 1 asks for
    np.testing.assert_array_equal(apply_limits(np.array([1.0, 0, 0, 0, 0, 0, 1]), slow), [1, 0, 0, 0, 0, 0, 1])
    with pytest.raises(UserError, match="NaN"):
        apply_limits(np.full(7, np.nan), ROBOT)


@pytest.mark.parametrize("spec", [ROBOT, BOTH])
def test_a_pose_target_of_one_arm_is_as_near(spec: ActionSpec) -> None:
    target = pose_target(np.array([3.0, 0, 0, 0, 0, -1, 5]), np.zeros(3), np.eye(3), spec)
    np.testing.assert_allclose(target.position, [0.0125, 0, 0], rtol=1e-9)
    assert np.arccos((np.trace(target.orientation) - 1) / 2) == pytest.approx(0.05)
    assert target.gripper == 1


@pytest.mark.sim
@pytest.mark.parametrize("simulator", ["native", "robosuite"])
def test_an_environment_under_the_robots_limits_equals_one_given_limited_actions(simulator: str) -> None:
    """To the last bit; and the limits matter."""
    pytest.importorskip("robosuite")
    chunks, seen = np.random.default_rng(0).uniform(-1.5, 1.5, (3, 1, 4, 7)), {}
    for name, limits, change in (
        ("robot", "robot", lambda a: a),
        ("limited", "sim", lambda a: apply_limits(a, ROBOT)),
        ("sim", "sim", lambda a: a),
        ("clipped", "sim", lambda a: apply_limits(a, SIM)),
    ):
        env = make_env(simulator, EnvRequest("Lift", 1, 20, workers=1, limits=limits))  # type: ignore[arg-type]
        try:
            assert env.action == ActionSpec(limits=limits)  # type: ignore[arg-type]
            env.reset([0], [3])
            seen[name] = [env.step([0], change(chunk)).observation["robot0_eef_pos"] for chunk in chunks]
        finally:
            env.close()
    np.testing.assert_array_equal(seen["robot"], seen["limited"])
    np.testing.assert_array_equal(seen["sim"], seen["clipped"])
    assert np.abs(np.subtract(seen["robot"], seen["sim"])).max() > 0.01


def test_a_simulator_without_the_profile_is_refused() -> None:
    with pytest.raises(UserError, match="'toy' has no limits=robot"):
        make_env("toy", EnvRequest("Reach", 1, 10, limits="robot"))


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(UserError, match="limits=slow"):
        under_limits(small_spec(SamplerSpec()), "slow")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of the task lift, fine-tuned from fresh weights under the robot's limits."""
    pytest.importorskip("robosuite")
    run = tmp_path_factory.mktemp("limits") / "run"
    arguments = ("task=lift", "scratch=true", "limits=robot", "rollout.max_episode_steps=12", *DEBUG)
    assert cli.main(["finetune", *arguments, f"run_dir={run}"]) == 0
    return run / "policy.safetensors"


def evaluated(policy: Path, run: Path, *options: str) -> dict:
    few = ("evaluation.episodes=2", "evaluation.max_episode_steps=8", "evaluation.workers=1", "threads=1")
    assert cli.main(["evaluate", f"checkpoint={policy}", *few, *options, f"run_dir={run}"]) == 0
    return json.loads((run / "summary.json").read_text())["protocol"]


@pytest.mark.sim
def test_a_fine_tuned_policy_keeps_the_limits_it_was_tuned_under(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, _ = read_policy(tuned)
    assert spec.action == ROBOT
    assert evaluated(tuned, tmp_path / "own")["limits"] == "robot"
    assert "warning" not in capsys.readouterr().err
    assert evaluated(tuned, tmp_path / "other", "limits=sim")["limits"] == "sim"
    assert "is of limits=robot and acts under limits=sim" in capsys.readouterr().err


@pytest.mark.sim
def test_a_baseline_of_other_limits_needs_to_be_told(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = load_policy(tuned)
    free = tmp_path / "sim.safetensors"
    save_policy(free, under_limits(policy.spec, "sim"), {"raw": policy.network, "normalizer": policy.normalizer})
    pair = (f"checkpoint={free}", f"baseline={tuned}", f"run_dir={tmp_path / 'run'}")
    assert cli.main(["evaluate", *pair]) == 2
    assert "different limits" in capsys.readouterr().err
    assert evaluated(free, tmp_path / "run", f"baseline={tuned}", "limits=robot")["limits"] == "robot"
