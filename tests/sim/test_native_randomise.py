"""Domain randomisation in the native simulator: at equal seeds the robosuite simulator's numbers."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from d2ppo_core.contract import Camera
from d2ppo_sim.episode import Outcome
from d2ppo_sim.native.simulation import NativeSimulation
from d2ppo_sim.randomise import parse
from d2ppo_sim.randomised_env import RandomisedEnv
from d2ppo_sim.robosuite_env import RobosuiteEnv
from native_support import adopt, native, seed_of

pytestmark = pytest.mark.sim
FRONT = Camera(name="agentview", height=48, width=48, field_of_view=45.0)
MODEL = {"camera": {"position": 0.05, "rotation": 5.0}, "light": {"position": 0.3, "diffuse": 0.5},
         "colour": {"rgb": 0.3}, "mass": {"factor": 3.0}, "friction": {"factor": 2.0}}
NOISE = {"observation_noise": {"eef_pos": 0.01, "eef_quat": 0.01, "object": 0.02}, "action_noise": {"std": 0.1},
         "latency": {"least": 0, "most": 3}}
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 7)) * 0.2


@pytest.fixture(scope="module")
def lift():
    env = RobosuiteEnv("Lift", (FRONT,))
    yield env
    env.close()


def fields_of(env, index: int) -> dict[str, np.ndarray]:
    """What the core reads in an environment's model, whichever that is."""
    shift = 0
    if index in env.worlds._private:
        shift = env.worlds._private[index]._shift
    found = {}
    for name in dir(env.model):
        value = None if name.startswith(("_", "mesh", "tex", "bvh", "oct")) else getattr(env.model, name)
        if isinstance(value, np.ndarray) and value.size:
            raw = ctypes.string_at(value.ctypes.data + shift, value.nbytes)
            found[name] = np.frombuffer(raw, dtype=value.dtype).reshape(value.shape)
    return found


def test_model_values_equal_the_robosuite_simulators_and_leave_no_trace(lift):
    theirs = RandomisedEnv(lift, parse(MODEL))
    env = native("Lift", 2, cameras=(FRONT,), randomise=MODEL)
    nominal, seed = fields_of(env, 0), seed_of(env)
    theirs.reset(seed)
    env.reset([0, 1], [seed, seed + 1])
    changed = {name for name, value in fields_of(env, 0).items() if not np.array_equal(value, nominal[name])}
    assert {"cam_pos", "light_diffuse", "geom_rgba", "body_mass", "dof_M0", "geom_friction"} <= changed
    assert changed <= set(theirs._drawn)
    for name in changed:
        np.testing.assert_array_equal(fields_of(env, 0)[name], theirs._drawn[name], err_msg=name)
    assert not np.array_equal(fields_of(env, 1)["body_mass"], fields_of(env, 0)["body_mass"])
    first, other = fields_of(env, 0), env.reset([0], [seed_of(env, 0, seed + 1)])
    assert not np.array_equal(fields_of(env, 0)["body_mass"], first["body_mass"]) and other
    env.reset([0], [seed])
    for name, value in fields_of(env, 0).items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)
    for name, value in nominal.items():
        np.testing.assert_array_equal(getattr(env.model, name), value, err_msg=name)
    env.close()


def test_physics_and_pictures_follow_the_drawn_model(lift):
    """From the same state; the mass shows in the contact forces, camera, light and colour in the pixels."""
    theirs = RandomisedEnv(lift, parse(MODEL))
    env = native("Lift", 1, cameras=(FRONT,), randomise=MODEL)
    theirs.reset(3)
    for _ in range(3):
        theirs.step(np.zeros(7))
    adopt(env, 0, lift, seed=3)
    for action in ACTIONS[:6]:
        outcome, step = theirs.step(action), env.step([0], action[None, None])
        np.testing.assert_allclose(env.data[0].qpos, lift.data.qpos, rtol=0, atol=1e-8)
        np.testing.assert_allclose(step.observation["object"][0, 0], outcome.observation["object"], rtol=0, atol=1e-8)
        env.views[0, 0] = np.concatenate([np.ravel(part) for part in lift.view()])
        ours, image = env._images(np.array([0]))[FRONT.key][0, 0], theirs.images(theirs.view())[FRONT.key]
        np.testing.assert_array_equal(ours, image)
    plain = native("Lift", 1, cameras=(FRONT,))
    adopt(plain, 0, lift)
    assert not np.array_equal(plain._images(np.array([0]))[FRONT.key][0, 0], ours)
    for one in (env, plain):
        one.close()


def robosuites(lift, seed: int, truths: list[dict], history: int) -> tuple[list[dict], list[np.ndarray]]:
    """What a policy would have seen of these truths, and what was executed of `ACTIONS`, in the robosuite simulator."""
    env, done, truths = RandomisedEnv(lift, parse(NOISE)), [], iter(truths)
    env.env = Replay(lift, truths, done)
    seen = [env.reset(seed)] + [env.step(action).observation for action in ACTIONS]
    padded = [seen[0]] * (history - 1) + seen
    windows = [padded[t : t + history] for t in range(len(seen))]
    return [{name: np.stack([one[name] for one in window]) for name in seen[0]} for window in windows], done


class Replay:
    """Stands for robosuite: hands out given observations."""

    def __init__(self, lift, truths, done):
        self.model, self.data, self._truths, self._done = lift.model, lift.data, truths, done

    def reset(self, seed):
        return next(self._truths)

    def view(self):
        return None

    def step(self, action):
        self._done.append(action)
        return Outcome(next(self._truths), 0.0, False)


@pytest.mark.parametrize("seed", range(4))
def test_noise_and_delay_equal_the_robosuite_simulators(seed, lift, monkeypatch):
    """In chunks of different lengths, with a history: the same draws in the same order."""
    env = native("Lift", 2, 2, randomise=NOISE)
    executed = []
    monkeypatch.setattr(env, "_core", Tapped(env._core, executed))
    seen = [env.reset([1], [seed])]
    truths = [{name: value[-1] for name, value in env.truth(1).items()}]
    for chunk in np.split(ACTIONS, [1, 3, 10]):
        seen.append(env.step([1], chunk[None]).observation)
        rows = env.truth(1)
        known = min(len(chunk), env.history.shape[1])
        truths += [None] * (len(chunk) - known)
        truths += [{name: value[t - known] for name, value in rows.items()} for t in range(known)]
    truths = [truth or truths[0] for truth in truths]  # older than what matters
    expected, done = robosuites(lift, seed, truths, 2)
    np.testing.assert_array_equal(np.concatenate(executed), done)
    for ours, at in zip(seen, (0, 1, 3, 10, 12), strict=True):
        for name, value in expected[at].items():
            np.testing.assert_array_equal(ours[name][0], value, err_msg=f"{name} after {at} control steps")


class Tapped:
    """The core, with the chunks it is given taken down."""

    def __init__(self, core, executed):
        self._core, self._executed = core, executed

    def __getattr__(self, name):
        return getattr(self._core, name)

    def d2_step(self, batch, count, envs, chunks, length, threads, results):
        values = (ctypes.c_double * (count * length * 7)).from_address(chunks)
        self._executed.append(np.array(values).reshape(length, 7))
        self._core.d2_step(batch, count, envs, chunks, length, threads, results)


def test_late_images_are_those_of_earlier_steps():
    late = {"latency": {"least": 2, "most": 2}}
    plain, env = native("Lift", 1, cameras=(FRONT,)), native("Lift", 1, cameras=(FRONT,), randomise=late)
    seen, delayed = [plain.reset([0], [5])], [env.reset([0], [5])]
    for action in ACTIONS[:5]:
        seen.append(plain.step([0], action[None, None]).observation)
        delayed.append(env.step([0], action[None, None]).observation)
    for time in range(6):
        for name in (FRONT.key, "object"):
            np.testing.assert_array_equal(delayed[time][name], seen[max(0, time - 2)][name])
    for one in (plain, env):
        one.close()


def test_experts_are_told_the_truth():
    alone = NativeSimulation("Lift", randomise=NOISE | {"latency": {"least": 2, "most": 2}})
    first = alone.reset(3)
    truth = alone.truth
    assert not np.array_equal(first["object"], truth["object"])
    outcome = alone.step(ACTIONS[0])
    assert not np.array_equal(alone.truth["object"], truth["object"])
    np.testing.assert_array_equal(outcome.observation["object"], first["object"])
    alone.close()
