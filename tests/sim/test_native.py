"""The compiled core against robosuite, number by number; and its behaviour as a VectorEnv."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.errors import UserError
from d2ppo_sim.experts import ActionNoise, LiftExpert
from d2ppo_sim.native.compiler import eigen_address, load_core
from d2ppo_sim.robosuite_env import ROBOTS, RobosuiteEnv
from native_support import adopt, compared, native, seed_of, touching_pairs

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def references():
    """robosuite's environments, each built once."""
    built: dict[str, RobosuiteEnv] = {}

    def reference(environment: str) -> RobosuiteEnv:
        if environment not in built:
            built[environment] = RobosuiteEnv(environment)
        return built[environment]

    yield reference
    for env in built.values():
        env.close()


def random_actions(size: int, steps: int, seed: int) -> np.ndarray:
    """(steps, Da) held for 10 steps each, tending upwards so that nothing is touched for a while."""
    actions = np.repeat(np.random.default_rng(seed).uniform(-1, 1, (-(-steps // 10), size)), 10, axis=0)[:steps]
    actions[:, 2::7] = 0.5 * np.abs(actions[:, 2::7])
    return actions


def scripted_actions(size: int, steps: int) -> np.ndarray:
    """(steps, Da): closes, turns about one axis after another, opens, rests, moves sideways at full speed."""
    actions = np.zeros((steps, size))
    for arm in range(0, size, 7):
        for t in range(steps):
            phase = t // 10 % 5
            actions[t, arm + 6] = 1.0 if phase < 2 else -1.0
            actions[t, arm + 3 + phase % 3] = (0.4, -0.3, 0.2, 0.0, 0.0)[phase]
            actions[t, arm + 1] = 1.5 if phase == 4 else 0.0  # beyond the range: clipped
            actions[t, arm + 2] = 0.2
    return actions


def check_against(reference: RobosuiteEnv, env, actions: np.ndarray, early: float) -> int:
    """Step both from the same state; returns how many control steps passed before a new contact."""
    adopt(env, 0, reference)
    start, where = touching_pairs(reference, env), compared(env)
    for number, action in enumerate(actions, start=1):
        outcome, step = reference.step(action), env.step([0], action[None, None])
        bound = early if number <= 10 else 1e-5
        if number > 10 and touching_pairs(reference, env) - start:
            return number
        np.testing.assert_allclose(env.data[0].qpos[where], reference.env.sim.data.qpos[where], rtol=0, atol=bound)
        for name, value in outcome.observation.items():
            np.testing.assert_allclose(step.observation[name][0, -1], value, rtol=0, atol=bound, err_msg=name)
        assert step.success[0] == outcome.success
        assert step.reward[0] == outcome.reward
    return len(actions)


@pytest.mark.parametrize("environment", ROBOTS)
def test_trajectories_equal_robosuites(environment, references):
    reference, env = references(environment), native(environment)
    early = 1e-7 if environment == "TwoArmTransport" else 1e-8
    size, free = env.action.size, []
    for seed, actions in enumerate((random_actions(size, 100, 1), scripted_actions(size, 60))):
        reference.reset(seed)
        for _ in range(3):
            reference.step(np.zeros(size))
        free.append(check_against(reference, env, actions, early))
    assert min(free) > 10, f"a new contact after {free} control steps: choose other actions"


@pytest.mark.parametrize("environment", ROBOTS)
def test_equal_from_the_very_reset(environment, references):
    """The first substep, in which robosuite uses a mass matrix from before it opened the fingers, included."""
    reference, env = references(environment), native(environment)
    seen = reference.reset(5)
    first = env.start([0], reference.env.sim.data.qpos[None])
    for name, value in seen.items():
        np.testing.assert_allclose(first[name][0, 0], value, rtol=0, atol=1e-12, err_msg=name)
    for action in random_actions(env.action.size, 4, 2):
        outcome, step = reference.step(action), env.step([0], action[None, None])
        for name, value in outcome.observation.items():
            np.testing.assert_allclose(step.observation[name][0, 0], value, rtol=0, atol=1e-12, err_msg=name)


def test_conversions_equal_robosuites_bit_for_bit(references):
    references("Lift")
    from robosuite.utils.transform_utils import mat2quat, quat2mat

    core, eigen = load_core(), eigen_address()
    for rotation in Rotation.random(300, random_state=0):
        quaternion, matrix = rotation.as_quat(), np.ascontiguousarray(rotation.as_matrix())
        wxyz, as_matrix, as_quaternion = quaternion[[3, 0, 1, 2]].copy(), np.zeros((3, 3)), np.zeros(4)
        core.d2_rotation_of(wxyz.ctypes.data, as_matrix.ctypes.data)
        core.d2_quaternion_of(eigen, matrix.ctypes.data, as_quaternion.ctypes.data)
        np.testing.assert_array_equal(as_matrix, quat2mat(quaternion))
        np.testing.assert_array_equal(as_quaternion, mat2quat(matrix))


def test_success_and_release_equal_robosuites(references):
    """States at the edges of each success test: object moved by hand, hand near and far."""
    edges = {"Lift": (0, 0, 0.84), "PickPlaceCan": (0.1, 0.28, 0.85), "NutAssemblySquare": (0.23, 0.1, 0.87)}
    for environment, edge in edges.items():
        reference, env = references(environment), native(environment)
        reference.reset(0)
        (rule,) = [p for p in env.task.facts.placements if p.shown]
        rng, seen = np.random.default_rng(0), set()
        for _ in range(60):
            where = np.array(edge) + rng.uniform(-1, 1, 3) * (0.05, 0.05, 0.03)
            for data in (reference.env.sim.data._data, env.data[0]):
                data.qvel[:] = 0
            qpos = reference.env.sim.data._data.qpos
            qpos[rule.qpos : rule.qpos + 3] = where
            adopt(env, 0, reference)
            action = np.zeros(env.action.size)
            outcome, step = reference.step(action), env.step([0], action[None, None])
            assert step.success[0] == outcome.success and step.reward[0] == outcome.reward
            seen.add(outcome.success)
        assert seen == {True, False}, environment


def test_transport_success_equals_robosuites(references):
    """Payload and trash put into their bins, one after the other."""
    reference, env = references("TwoArmTransport"), native("TwoArmTransport")
    reference.reset(0)
    at = {p.name.replace("transport_", ""): p.qpos for p in env.task.facts.placements}
    qpos, found = reference.env.sim.data._data.qpos, []
    for thing, bin_ in ((None, None), ("payload", "target_bin"), ("trash", "trash_bin")):
        if thing:
            qpos[at[thing] : at[thing] + 3] = qpos[at[bin_] : at[bin_] + 3] - np.array([0, 0, 0.04])
        adopt(env, 0, reference)
        for _ in range(3):
            action = np.zeros(14)
            outcome, step = reference.step(action), env.step([0], action[None, None])
            np.testing.assert_array_equal(step.observation["object"][0, 0, -2:], outcome.observation["object"][-2:])
            assert step.success[0] == outcome.success and step.reward[0] == outcome.reward
        found.append(bool(step.success[0]))
    assert found == [False, False, True]


@pytest.mark.parametrize("environment", ROBOTS)
def test_contract_is_robosuites(environment, references):
    reference, env = references(environment), native(environment, history=2)
    assert env.observation == reference.observation.model_copy(update={"history": 2})
    assert env.action == reference.action
    assert env.simulator == reference.simulator.model_copy(update={"name": "robosuite-native"})


def expert_chunks(env, seed: int, chunks: int) -> np.ndarray:
    """(chunks, 4, 7) actions of the Lift expert, found by playing it."""
    seen, rng, actions = env.reset([0], [seed]), np.random.default_rng(seed), []
    expert = LiftExpert(rng, {name: value[0, -1] for name, value in seen.items()})
    noise = ActionNoise(rng, np.array([0.1] * 3 + [0.05] * 3 + [0]))
    for _ in range(4 * chunks):
        actions.append(noise.perturb(expert.act({name: value[0, -1] for name, value in seen.items()})))
        seen = env.step([0], actions[-1][None, None]).observation
    return np.array(actions).reshape(chunks, 4, 7)


def test_chunks_history_and_episode_ends_equal_robosuites(references):
    """A whole successful episode: the same numbers of control steps, flags and windows as the stock VectorEnv's."""
    from d2ppo_sim.episode import Episode

    env = native("Lift", history=3, limit=75, terminate=True)
    seed = seed_of(env)  # robosuite's own geometry here
    chunks = expert_chunks(native("Lift"), seed, 20)
    env.reset([0], [seed])
    episode = Episode(references("Lift"), 3, 75, True)
    episode.reset(0)
    reference = episode.simulation
    reference.env.sim.data._data.qpos[:] = env.data[0].qpos
    reference.env.sim.data._data.qvel[:] = 0
    for robot, control in zip(reference.env.robots, env.control, strict=True):
        reference.env.sim.forward()
        robot.controller.initial_joint = np.array(control.posture[:])
        robot.controller.reset_goal()
        robot.controller.new_update = True
    env.control[0].has_first_mass = 0.0
    first = env.history[0, 0]
    episode._seen.extend([dict(zip(("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"),
                                   np.split(first, [3, 7, 9]), strict=True))] * 3)
    for chunk in chunks:
        ours, theirs = env.step([0], chunk[None]), episode.run_chunk(chunk)
        assert ours.control_steps[0] == theirs.control_steps
        assert (ours.terminated[0], ours.truncated[0]) == (theirs.terminated, theirs.truncated)
        assert (ours.success[0], ours.reward[0]) == (theirs.success, theirs.reward)
        for name, value in theirs.observation.items():
            np.testing.assert_allclose(ours.observation[name][0], value, rtol=0, atol=1e-6, err_msg=name)
        if theirs.terminated:
            break
    assert theirs.terminated and theirs.reward == 1.0
    with pytest.raises(RuntimeError, match="call reset"):
        env.step([0], chunk[None])


def rollout(envs: int, workers: int, order: list[int]) -> dict[int, list[np.ndarray]]:
    """By episode seed, everything that was returned, whichever environment ran it, in whatever company."""
    env, found = native("Lift", envs, 2, 30, True, workers), {seed: [] for seed in order}
    for start in range(0, len(order), envs):
        seeds = order[start : start + envs]
        rows = list(range(len(seeds)))
        first = env.reset(rows, seeds)
        for row, seed in enumerate(seeds):
            found[seed] += [value[row] for value in first.values()]
        for number in range(4):
            chunks = np.stack([np.random.default_rng((seed, number)).uniform(-1, 1, (4, 7)) for seed in seeds])
            step = env.step(rows, chunks)
            for row, seed in enumerate(seeds):
                found[seed] += [value[row] for value in step.observation.values()]
                found[seed] += [step.reward[row], step.success[row], step.control_steps[row]]
    return found


def test_results_depend_neither_on_threads_nor_on_the_batch():
    expected = rollout(6, 1, [0, 1, 2, 3, 4, 5])
    for other in (rollout(6, 4, [0, 1, 2, 3, 4, 5]), rollout(2, 2, [5, 0, 3, 1, 4, 2]), rollout(1, 1, [3, 2])):
        for seed, values in other.items():
            for one, two in zip(expected[seed], values, strict=True):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("field", ["qpos", "qvel"])
def test_a_diverging_environment_harms_no_other(field, caplog):
    alone, env = native("Lift", 1), native("Lift", 3, workers=2)
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 4, 7))
    alone.reset([0], [1])
    before = env.reset([0, 1, 2], [0, 1, 2])
    getattr(env.data[0], field)[2] = np.nan
    env.data[2].qvel[0] = 1e12
    step, expected = env.step([0, 1, 2], np.repeat(actions, 3, axis=0)), alone.step([0], actions)
    assert step.truncated.tolist() == [True, False, True]
    assert not step.terminated.any() and not step.success.any()
    assert step.control_steps.tolist() == [1, 4, 1]
    assert env.diverged == 2
    assert "environment 0" in caplog.text and "environment 2" in caplog.text
    for name, value in step.observation.items():
        np.testing.assert_array_equal(value[0], before[name][0], err_msg="the last finite observation")
        np.testing.assert_array_equal(value[1], expected.observation[name][0])
    env.reset([0], [1])
    np.testing.assert_array_equal(env.step([0], actions).observation["object"], expected.observation["object"])


def test_time_limit_truncates_within_the_chunk():
    env = native("Lift", limit=6)
    env.reset([0], [0])
    assert not env.step([0], np.zeros((1, 4, 7))).truncated[0]
    step = env.step([0], np.zeros((1, 4, 7)))
    assert step.truncated[0] and not step.terminated[0] and step.control_steps[0] == 2


def test_wrong_calls_are_refused():
    env = native("Lift", 2)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step([0], np.zeros((1, 4, 7)))
    env.reset([0, 1], [0, 1])
    with pytest.raises(UserError, match="NaN or infinity for environment 1"):
        env.step([0, 1], np.array([np.zeros((1, 7)), np.full((1, 7), np.nan)]))
    with pytest.raises(IndexError):
        env.step([2], np.zeros((1, 1, 7)))
    with pytest.raises(ValueError, match="twice"):
        env.step([0, 0], np.zeros((2, 1, 7)))
    with pytest.raises(ValueError, match="do not fit"):
        env.step([0], np.zeros((1, 1, 6)))
    with pytest.raises(UserError, match=r"Door.*Lift"):
        make_env("native", EnvRequest("Door", 1, 10))


def test_picture_shows_the_scene():
    env = native("Lift")
    env.reset([0], [0])
    image = env.render(0, 64, 96)
    assert image.shape == (64, 96, 3) and image.dtype == np.uint8
    assert ((image[..., 0].astype(int) - image[..., 1:].max(axis=2)) > 40).sum() > 5  # the red cube
    env.close()
    env.close()
