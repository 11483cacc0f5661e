"""The toy task: its rules, and that the vectorised form equals one environment at a time."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.errors import UserError
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_sim import toy
from d2ppo_sim.episode import Episode
from d2ppo_sim.experts import ActionNoise, ReachExpert

seeds = st.integers(0, 2**40)


def make(n: int = 1, limit: int = 40, history: int = 1, terminate: bool = True):
    return make_env("toy", EnvRequest("Reach", n, limit, history, terminate))


def test_toy_keeps_its_tasks_contract():
    env, task = make(), load_task("reach")
    assert env.observation == observation_spec(task)
    assert env.action == action_spec(task)


def test_other_environments_are_refused():
    with pytest.raises(UserError, match="Reach"):
        make_env("toy", EnvRequest("Lift", 1, 10))


@given(seeds=st.lists(seeds, min_size=1, max_size=6), chunk=st.integers(1, 5), terminate=st.booleans(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_batch_equals_one_at_a_time(seeds, chunk, terminate, data):
    """Rewards, ends and observations of a batch are those of each episode alone, bit for bit."""
    n, rng = len(seeds), np.random.default_rng(data.draw(st.integers(0, 1000)))
    env = make(n, limit=11, history=2, terminate=terminate)
    alone = [Episode(toy.Reach(), 2, 11, terminate) for _ in range(n)]
    seen, live = env.reset(range(n), seeds), list(range(n))
    for i, episode in enumerate(alone):
        for name, value in episode.reset(seeds[i]).items():
            np.testing.assert_array_equal(seen[name][i], value)
    while live:
        towards = (env._goal[live] - env._position[live, -1])[:, None] / toy.STEP
        chunks = towards + rng.normal(0, 0.3, (len(live), chunk, 2))
        step = env.step(live, chunks)
        results = [alone[e].run_chunk(c) for e, c in zip(live, chunks, strict=True)]
        for i, result in enumerate(results):
            for name in ("reward", "terminated", "truncated", "success", "control_steps"):
                assert getattr(step, name)[i] == getattr(result, name)
            for name, value in result.observation.items():
                np.testing.assert_array_equal(step.observation[name][i], value)
        live = [e for e, r in zip(live, results, strict=True) if not (r.terminated or r.truncated)]


@given(seed=seeds, moves=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_point_never_enters_the_post_nor_leaves_the_walls_nor_jumps(seed, moves):
    env = make(limit=100, terminate=False)
    before = env.reset([0], [seed])["position"][0, -1]
    for move in moves:
        after = env.step([0], np.array(move)[None, None]).observation["position"][0, -1]
        assert np.hypot(*after) >= toy.POST_RADIUS
        assert np.abs(after).max() <= toy.WALL
        assert np.abs(after - before).max() <= toy.STEP + 1e-12
        before = after


@given(seed=seeds)
def test_straight_on_is_stopped_by_the_post_where_it_stands_in_the_way(seed):
    start, goal = toy.draw_start(seed)
    blocked = toy._touches_post(start[None], goal[None])[0]
    env = make(limit=60)
    seen = env.reset([0], [seed])
    for _ in range(60):
        error = (goal - seen["position"][0, -1]) / toy.STEP
        step = env.step([0], (error / max(1.0, np.abs(error).max()))[None, None])
        seen = step.observation
        if step.terminated[0] or step.truncated[0]:
            break
    assert step.terminated[0] != blocked


def test_success_at_the_last_step_is_terminated_not_truncated():
    env = make(limit=1)
    env.reset([0], [0])
    env._goal[0] = env._position[0, -1] + [0.1, 0]
    step = env.step([0], np.array([[[1.0, 0.0], [1.0, 0.0]]]))
    assert step.terminated[0] and not step.truncated[0]
    assert step.control_steps[0] == 1 and step.reward[0] == 1.0
    with pytest.raises(RuntimeError, match="call reset"):
        env.step([0], np.zeros((1, 1, 2)))


@pytest.mark.parametrize("noise", (0.0, 0.1))
def test_expert_passes_on_both_sides(noise):
    wins = {"left": 0, "right": 0}
    for seed in range(100):
        simulation, rng = toy.Reach(), np.random.default_rng(seed)
        seen = simulation.reset(seed)
        expert, disturb = ReachExpert(rng, seen), ActionNoise(rng, np.full(2, noise))
        path = []
        for _ in range(40):
            outcome = simulation.step(disturb.perturb(expert.act(seen)))
            seen = outcome.observation
            path.append(seen["position"])
            if outcome.success:
                beside_post = min(path, key=lambda position: abs(position[0]))
                assert (beside_post[1] > 0) == (expert.mode == "left")
                wins[expert.mode] += 1
                break
    assert wins["left"] >= 30 and wins["right"] >= 30
    assert sum(wins.values()) >= 90


def test_it_is_fast():
    """More than 50 000 control steps a second, with ample margin for a busy machine."""
    env, n = make(200, limit=10_000, terminate=False), 200
    env.reset(range(n), range(n))
    chunks = np.random.default_rng(0).uniform(-1, 1, (n, 8, 2))
    env.step(range(n), chunks)
    start = time.process_time()
    for _ in range(25):
        env.step(range(n), chunks)
    assert 25 * n * 8 / (time.process_time() - start) > 50_000


def test_picture_has_the_goal_where_it_is():
    env = make()
    env.reset([0], [0])
    env._goal[0] = [1.0, 1.0]  # upper right
    green = (env.render(0, 90, 120) == (40, 170, 60)).all(axis=2)
    rows, columns = np.nonzero(green)
    assert rows.mean() < 30 and columns.mean() > 80


def test_commands_and_toy_import_no_simulator():
    code = "import d2ppo_sim.commands, d2ppo_sim.toy, d2ppo_sim.vector, d2ppo_sim.demos, sys; " \
           "print(sorted({'robosuite', 'mujoco'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
