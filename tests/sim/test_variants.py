"""Geometry that robosuite draws anew at each hard reset: a pool of it, shared in memory, right for every episode."""

from __future__ import annotations

import ctypes
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from d2ppo_sim import demos
from d2ppo_sim.native.from_robosuite import SAMPLED, VARIANTS, _binary, _trimmed
from d2ppo_sim.native.starts import draw_start, draw_variant
from d2ppo_sim.robosuite_env import MODEL_SEED, RobosuiteEnv, numpy_seeded
from native_support import adopt, compared, native, resident, seed_of

pytestmark = pytest.mark.sim


def hard_reset(reference: RobosuiteEnv, seed: int) -> None:
    """What stock robosuite does before every episode."""
    reference.env.hard_reset = True
    with numpy_seeded(seed):
        reference._last = reference._read(reference.env.reset())
    reference._sensors = reference._needed_sensors()


def binary_of(fork) -> bytes:
    """The fork's whole model as MuJoCo writes it."""
    import mujoco

    library = ctypes.CDLL(str(next(Path(mujoco.__file__).parent.glob("libmujoco.so*"))))
    library.mj_sizeModel.argtypes, library.mj_sizeModel.restype = (ctypes.c_void_p,), ctypes.c_longlong
    library.mj_saveModel.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    buffer = np.zeros(library.mj_sizeModel(fork.address), dtype=np.uint8)
    library.mj_saveModel(fork.address, None, buffer.ctypes.data, len(buffer))
    return buffer.tobytes()


@pytest.mark.parametrize("environment", SAMPLED)
def test_a_variant_is_what_robosuite_builds_and_steps_after_that_hard_reset(environment):
    """The model equal to the last bit, the trajectories within the bounds that hold for geometry 0."""
    reference, env, variant = RobosuiteEnv(environment), native(environment), 3
    adopt(env, 0, reference)
    nominal = env.worlds.addresses[0]
    hard_reset(reference, MODEL_SEED + variant)
    for _ in range(3):
        reference.step(np.zeros(env.action.size))
    adopt(env, 0, reference, variant)
    assert env.worlds.addresses[0] != nominal
    expected = _trimmed(reference.env)
    env._core.d2_set_arena(expected._address, env.model.narena)
    fork = binary_of(env.worlds._shared[variant][0])
    assert hashlib.sha256(fork).digest() == hashlib.sha256(_binary(expected)).digest()
    actions = np.repeat(np.random.default_rng(1).uniform(-1, 1, (1, env.action.size)), 10, axis=0)
    actions[:, 2::7] = np.abs(actions[:, 2::7]) / 2
    where = compared(env)
    for action in actions:
        outcome, step = reference.step(action), env.step([0], action[None, None])
        np.testing.assert_allclose(env.data[0].qpos[where], reference.data.qpos[where], rtol=0, atol=1e-7)
        np.testing.assert_allclose(step.observation["object"][0, 0], outcome.observation["object"], rtol=0, atol=1e-7)
    reference.close()


def test_the_cubes_sizes_cover_robosuites_range():
    task = native("Lift").task
    cube = task.variants.values["geom_size"][:, :3]  # m, half
    assert cube.shape == (VARIANTS, 3) and len(np.unique(cube, axis=0)) == VARIANTS
    assert (cube >= 0.020).all() and (cube <= 0.022).all()
    assert (cube.min(axis=0) < 0.0205).all() and (cube.max(axis=0) > 0.0215).all()
    heights = [rules[0].z for rules in (task.facts.placements, *task.facts.other_placements)]
    np.testing.assert_allclose(np.array(heights) - cube[:, 2], heights[0] - cube[0, 2], rtol=0, atol=1e-12)


def test_seeds_draw_every_variant_equally_often():
    facts = native("Lift").task.facts
    drawn = Counter(draw_variant(facts, seed) for seed in range(1600))
    assert sorted(drawn) == list(range(VARIANTS)) and 60 < min(drawn.values()) < max(drawn.values()) < 140
    assert draw_variant(native("PickPlaceCan").task.facts, 7) == 0


def test_environments_of_one_geometry_share_its_model():
    env = native("Lift", 3)
    env.reset([0, 1, 2], [seed_of(env, 5), seed_of(env, 5, 100), seed_of(env, 0)])
    one, two, plain = env.worlds.addresses[:]
    assert one == two != plain == env.model._address
    env.reset([1], [seed_of(env, 6)])
    assert env.worlds.addresses[0] == one != env.worlds.addresses[1]


def test_forks_share_memory_and_do_not_touch_the_compiled_model():
    env = native("Lift", VARIANTS)
    before, own = env.model.geom_size.copy(), env.model.nbuffer / 1e6
    env.reset([0], [seed_of(env, 1)])
    held = resident()
    for variant in range(VARIANTS):
        env.reset([variant], [seed_of(env, variant)])
    env.step(list(range(VARIANTS)), np.zeros((VARIANTS, 2, 7)))
    assert resident() - held < own, "sixteen whole models would be sixteen times as much"
    np.testing.assert_array_equal(env.model.geom_size, before)
    np.testing.assert_array_equal(env.task.compiled().geom_size, before)


def test_demonstrations_carry_the_model_of_their_episode(tmp_path):
    import mujoco

    recorder = demos.Recorder(demos.Settings("native", "Lift", 0, 0.1, 0.05, 200), str(tmp_path))
    task, seeds = recorder._simulation._env.task, range(3)
    assert len({draw_variant(task.facts, seed) for seed in seeds}) > 1, "choose other seeds"
    for seed in seeds:
        trial = recorder.record(seed)
        if not trial.success:
            continue
        model = mujoco.MjModel.from_xml_string(demos.load_episode(tmp_path, trial).model_file)
        expected = task.variants.values["geom_size"][draw_variant(task.facts, seed), :3]
        np.testing.assert_allclose(model.geom_size[model.geom("cube_g0").id], expected, rtol=0, atol=1e-7)
    recorder.close()


@pytest.mark.slow
@pytest.mark.parametrize("environment", SAMPLED)
def test_starts_have_the_distribution_of_hard_resets(environment):
    """Geometry included: 16 sizes stand for a continuum, so distances between distributions are bounded instead."""
    env, reference = native(environment), RobosuiteEnv(environment)
    where, facts, theirs, masses = compared(env), env.task.facts, [], []
    for seed in range(100):
        hard_reset(reference, 1000 + seed)
        theirs.append(reference.data.qpos[where].copy())
        masses.append(reference.model.body_mass.sum())
    drawn = [draw_variant(facts, seed) for seed in range(400)]
    ours = np.array([draw_start(facts, env.model.qpos0, seed, v)[where] for seed, v in enumerate(drawn)])
    for column, other in zip(ours.T, np.array(theirs).T, strict=True):
        assert np.ptp(other) < 1e-9 or ks_2samp(column, other).statistic < 0.35
    weights = env.task.variants.values["body_mass"][drawn, 0] - env.task.variants.values["body_mass"][0, 0]
    assert ks_2samp(weights + env.model.body_mass.sum(), masses).statistic < 0.35
    reference.close()
