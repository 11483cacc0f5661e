"""VectorEnv over worker processes: the same results for any number of them, and none left behind."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.errors import UserError
from d2ppo_sim import demos
from d2ppo_sim.experts import ActionNoise, LiftExpert
from d2ppo_sim.pool import ProcessPool, WorkerDied
from d2ppo_sim.toy import Reach

pytestmark = pytest.mark.sim


def rollout(workers: int, chunks: np.ndarray) -> list[np.ndarray]:
    """Everything that 3 environments return; the second starts anew on the way."""
    env = make_env("robosuite", EnvRequest("Lift", 3, 10, history=2, workers=workers))
    out = [*env.reset([0, 1, 2], [5, 6, 7]).values()]
    for step, chunk in enumerate(chunks):
        if step == 2:
            out += env.reset([1], [8]).values()
        s = env.step([0, 2, 1], chunk)
        out += [*s.observation.values(), s.reward, s.terminated, s.truncated, s.success, s.control_steps]
    env.close()
    env.close()
    return out


def test_results_do_not_depend_on_the_number_of_workers():
    chunks = np.random.default_rng(0).uniform(-1, 1, (3, 3, 3, 7))
    for one, two in zip(rollout(1, chunks), rollout(2, chunks), strict=True):
        np.testing.assert_array_equal(one, two)


def expert_actions(seed: int) -> tuple[np.ndarray, int]:
    """(60, 7) actions of the expert from `seed`, and the control step, from 1, at which it first succeeds."""
    env = make_env("robosuite", EnvRequest("Lift", 1, 100, terminate_at_success=False, workers=1))
    seen = env.reset([0], [seed])
    rng = np.random.default_rng(seed)
    expert, noise = LiftExpert(rng, now(seen)), ActionNoise(rng, np.zeros(7))
    actions, first = [], 0
    while len(actions) < 60:
        actions.append(noise.perturb(expert.act(now(seen))))
        step = env.step([0], np.array(actions[-1])[None, None])
        seen = step.observation
        if step.success[0] and not first:
            first = len(actions)
    env.close()
    assert 0 < first < 60
    return np.array(actions), first


def now(seen: dict) -> dict:
    return {name: value[0, -1] for name, value in seen.items()}


@pytest.fixture(scope="module")
def winning():
    return expert_actions(4)


def after(winning, limit: int, terminate: bool, upto: int, chunk: int = 4):
    """The last of the chunks that execute the first `upto` actions, under a time limit."""
    env = make_env("robosuite", EnvRequest("Lift", 1, limit, history=2, terminate_at_success=terminate, workers=1))
    env.reset([0], [4])
    for start in range(0, upto, chunk):
        step = env.step([0], winning[0][None, start : min(start + chunk, upto)])
    return env, step


def test_chunk_stops_at_success(winning):
    actions, first = winning
    start = (first - 1) // 4 * 4
    env, step = after(winning, limit=100, terminate=True, upto=start + 4)
    assert step.success[0] and step.terminated[0] and not step.truncated[0]
    assert step.reward[0] == 1.0
    assert step.control_steps[0] == first - start
    with pytest.raises(RuntimeError, match="call reset"):
        env.step([0], actions[None, :1])
    # What it returned is the observation of the very step that ended the episode.
    other, _ = after(winning, limit=100, terminate=False, upto=start)
    for action in actions[start:first]:
        single = other.step([0], action[None, None])
    for name, value in step.observation.items():
        np.testing.assert_array_equal(value, single.observation[name])


def test_success_at_the_last_step_is_terminated_not_truncated(winning):
    _, step = after(winning, limit=winning[1], terminate=True, upto=-(-winning[1] // 4) * 4)
    assert step.terminated[0] and not step.truncated[0]


def test_success_goes_on_paying_when_it_does_not_terminate(winning):
    _, first = winning
    _, step = after(winning, limit=first, terminate=False, upto=first)
    assert step.success[0] and step.truncated[0] and not step.terminated[0]
    _, later = after(winning, limit=100, terminate=False, upto=60)
    assert later.reward[0] == 4.0 and not later.terminated[0] and not later.truncated[0]


def test_time_limit_truncates_within_the_chunk():
    env = make_env("robosuite", EnvRequest("Lift", 1, 6, workers=1))
    first = env.reset([0], [0])
    assert not env.step([0], np.zeros((1, 4, 7))).truncated[0]
    step = env.step([0], np.zeros((1, 4, 7)))
    assert step.truncated[0] and not step.terminated[0] and not step.success[0]
    assert step.control_steps[0] == 2
    assert first["object"].shape == (1, 1, 10)


def test_history_is_oldest_first_and_starts_with_the_first_observation():
    env = make_env("robosuite", EnvRequest("Lift", 1, 50, history=3, workers=1))
    first = env.reset([0], [0])["robot0_eef_pos"][0]
    np.testing.assert_array_equal(first, np.repeat(first[:1], 3, axis=0))
    down = np.tile([0, 0, -1.0, 0, 0, 0, -1], (1, 2, 1))
    later = env.step([0], down).observation["robot0_eef_pos"][0]
    np.testing.assert_array_equal(later[0], first[0])
    assert later[0, 2] > later[1, 2] > later[2, 2]
    assert env.observation.history == 3


def test_nan_state_truncates_only_its_own_episode(caplog):
    env = make_env("robosuite", EnvRequest("Lift", 2, 50, workers=1))
    env.reset([0, 1], [0, 1])
    env._pool._hosted[0]._episodes[0].simulation.env.sim.data.qpos[0] = np.nan
    step = env.step([0, 1], np.zeros((2, 3, 7)))
    assert step.truncated.tolist() == [True, False]
    assert not step.terminated.any()
    assert all(np.isfinite(v).all() for v in step.observation.values())
    assert env.diverged == 1
    assert "environment 0" in caplog.text


def test_nan_actions_are_refused_before_anything_moves():
    env = make_env("toy", EnvRequest("Reach", 2, 50))
    start = env.reset([0, 1], [0, 1])
    chunks = np.ones((2, 1, 2))
    chunks[1, 0, 0] = np.nan
    with pytest.raises(UserError, match="NaN or infinity for environment 1"):
        env.step([0, 1], chunks)
    np.testing.assert_array_equal(env._position, start["position"])


def test_dead_worker_is_an_error_not_a_hang():
    env = make_env("robosuite", EnvRequest("Lift", 2, 50, workers=2))
    env.reset([0, 1], [0, 1])
    os.kill(env._pool._processes[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=r"worker 1 .* signal 9.*fewer environments"):
        env.step([0, 1], np.zeros((2, 1, 7)))
    env.close()


def test_close_ends_the_workers():
    pool = ProcessPool(Reach, [(), ()])
    processes = list(pool._processes)
    for worker in (0, 1):
        pool.send(worker, "reset", worker)
    assert set(pool.ready()) <= {0, 1}
    for worker in (0, 1):
        np.testing.assert_array_equal(pool.receive(worker)["goal"], Reach().reset(worker)["goal"])
    pool.close()
    pool.close()
    assert not any(p.is_alive() for p in processes)


def test_errors_travel_from_the_worker(tmp_path):
    without_expert = demos.Settings("robosuite", "Door", 0, 0.1, 0.05, 300)
    with pytest.raises(UserError, match="no scripted expert for Door"):
        ProcessPool(demos.Recorder, [(without_expert, str(tmp_path))])
    pool = ProcessPool(Reach, [()])
    pool.send(0, "missing")
    with pytest.raises(RuntimeError, match="AttributeError"):
        pool.receive(0)
    pool.send(0, "reset", 3)  # it lives on
    np.testing.assert_array_equal(pool.receive(0)["goal"], Reach().reset(3)["goal"])
    pool.close()


PARENT = """
import time
from d2ppo_sim.pool import ProcessPool
from d2ppo_sim.toy import Reach
if __name__ == "__main__":
    pool = ProcessPool(Reach, [(), ()])
    print(*[p.pid for p in pool._processes], flush=True)
    time.sleep(60)
"""


def test_no_orphans_after_the_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(runs(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in children)


def runs(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
