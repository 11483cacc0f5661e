"""One robosuite environment: its contract, its seeds, and its stepping loop against the stock one."""

import numpy as np
import pytest

from d2ppo_core.errors import UserError
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_sim import graphics, robosuite_env
from d2ppo_sim.robosuite_env import ROBOTS, RobosuiteEnv, make_stock, numpy_seeded

pytestmark = pytest.mark.sim
TASKS = ("lift", "can", "square", "transport")


@pytest.fixture(scope="module")
def lift():
    env = RobosuiteEnv("Lift")
    yield env
    env.close()


def wander(env, steps: int, seed: int = 0) -> np.ndarray:
    """(steps, Da) actions held for 10 steps each, tending downwards so that things are touched."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (-(-steps // 10), env.action.size))
    actions[:, 2] -= 0.4
    return np.repeat(actions, 10, axis=0)[:steps]


def play(env, seed: int, actions: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Every observation as one vector, and the last state."""
    seen = [env.reset(seed)] + [env.step(a).observation for a in actions]
    return [np.concatenate(list(o.values())) for o in seen], env.state()


@pytest.mark.parametrize("name", TASKS)
def test_live_environment_keeps_the_tasks_contract(name):
    task = load_task(name)
    env = RobosuiteEnv(task.environment)
    assert env.observation == observation_spec(task)
    assert env.action == action_spec(task)
    seen = env.reset(0)
    assert {key.name: (key.size,) for key in env.observation.lowdim} == {k: v.shape for k, v in seen.items()}
    assert all(value.dtype == np.float64 for value in seen.values())
    assert len(env.env.action_spec[0]) == env.action.size
    assert env.simulator.version == "1.4.1, mujoco 3.3.7"
    env.close()


def against_stock(environment: str, seed: int, steps: int) -> None:
    """Observations, rewards, success and the final state equal the stock environment's, bit for bit."""
    ours, stock = RobosuiteEnv(environment), make_stock(environment)
    with numpy_seeded(robosuite_env.MODEL_SEED):
        stock.reset()
    seen = ours.reset(seed)
    with numpy_seeded(seed):
        reference = stock.reset()
    for action in [None, *wander(ours, steps)]:
        if action is not None:
            outcome = ours.step(action)
            reference, reward, _, _ = stock.step(action)
            seen = outcome.observation
            assert outcome.reward == reward
            assert outcome.success == stock._check_success()
        for name, value in seen.items():
            np.testing.assert_array_equal(value, reference["object-state" if name == "object" else name], err_msg=name)
    np.testing.assert_array_equal(ours.state(), stock.sim.get_state().flatten())
    ours.close()


@pytest.mark.parametrize("environment", ROBOTS)
def test_own_loop_equals_stock(environment):
    against_stock(environment, seed=7, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("environment", ROBOTS)
def test_own_loop_equals_stock_over_whole_episodes(environment):
    against_stock(environment, seed=8, steps=400)


@pytest.mark.parametrize("environment", ("Lift", "PickPlaceCan", "NutAssemblySquare"))
def test_episode_depends_on_its_seed_alone(environment):
    env, other = RobosuiteEnv(environment), RobosuiteEnv(environment)
    actions = wander(env, 15)
    first, state = play(env, 3, actions)
    play(env, 4, wander(env, 15, seed=1))
    again, state_again = play(env, 3, actions)
    elsewhere, state_elsewhere = play(other, 3, actions)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, elsewhere)
    np.testing.assert_array_equal(state, state_again)
    np.testing.assert_array_equal(state, state_elsewhere)
    assert not np.array_equal(first[0], play(env, 5, actions[:0])[0][0])
    env.close()
    other.close()


@pytest.mark.slow
def test_transport_episode_depends_on_its_seed_alone():
    env = RobosuiteEnv("TwoArmTransport")
    actions = wander(env, 30)
    first = play(env, 3, actions)[0]
    play(env, 4, wander(env, 30, seed=1))
    np.testing.assert_array_equal(first, play(env, 3, actions)[0])
    env.close()


def test_numpys_global_generator_is_left_alone(lift):
    np.random.seed(123)
    expected = np.random.get_state()[1].copy()
    lift.reset(9)
    lift.step(np.zeros(7))
    RobosuiteEnv("Lift").close()
    np.testing.assert_array_equal(np.random.get_state()[1], expected)


def test_numpys_global_generator_does_not_reach_the_episode(lift):
    np.random.seed(1)
    first = play(lift, 11, wander(lift, 5))[0]
    np.random.seed(2)
    np.testing.assert_array_equal(first, play(lift, 11, wander(lift, 5))[0])


def test_large_seeds_are_told_apart(lift):
    small, large = lift.reset(5)["object"], lift.reset(5 + 2**32)["object"]
    assert not np.array_equal(small, large)


def test_nan_in_the_state_is_reported_and_cured_by_reset(lift):
    seen = lift.reset(1)
    lift.env.sim.data.qvel[2] = np.nan
    outcome = lift.step(np.zeros(7))
    assert outcome.diverged
    assert not outcome.success
    for name, value in outcome.observation.items():
        np.testing.assert_array_equal(value, seen[name])
    expected = play(RobosuiteEnv("Lift"), 2, wander(lift, 5))[0]
    np.testing.assert_array_equal(play(lift, 2, wander(lift, 5))[0], expected)


def test_picture_is_upright_and_leaves_the_simulation_alone(lift):
    actions = wander(lift, 8)
    expected = play(lift, 6, actions)[1]
    lift.reset(6)
    for action in actions:
        lift.step(action)
        image = lift.render(64, 96)
    np.testing.assert_array_equal(lift.state(), expected)
    assert image.shape == (64, 96, 3)
    assert image.dtype == np.uint8
    # The white table fills the lower half, with the red cube on it; the dark robot is at the upper edge.
    assert image[-16:].mean() > image[:16].mean() + 50
    assert ((image[..., 0].astype(int) - image[..., 1:].max(axis=2)) > 40).sum() > 5


def test_without_graphics_only_pictures_are_refused(lift, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    camera = graphics.Camera(lift.env.sim.model._model)
    with pytest.raises(UserError, match=r"libegl1 libgl1-mesa-dri libosmesa6"):
        camera.picture(lift.env.sim.data._data, "agentview", 32, 32)


def test_unknown_environment_names_the_known_ones():
    with pytest.raises(UserError, match=r"Door.*Lift, PickPlaceCan"):
        robosuite_env.env_kwargs("Door")
