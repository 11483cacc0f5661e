"""The simulator core by numba against the compiled one; and when it is chosen."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from multiprocessing import get_context

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import Camera
from d2ppo_core.envs import EnvRequest
from d2ppo_core.errors import UserError
from d2ppo_core.opengl import choose_backend
from d2ppo_sim.native.compiler import eigen_address, load_core, load_numba_core
from d2ppo_sim.native.library import find_task_model
from d2ppo_sim.native.vector import NativeVectorEnv
from d2ppo_sim.robosuite_env import ROBOTS

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def core():
    """Compiled once on each machine, then read from the cache."""
    choose_backend()  # before MuJoCo is imported
    return load_numba_core("no-such-compiler")


def make(environment: str, core, envs: int = 1, history: int = 1, limit: int = 10_000, terminate: bool = False,
         workers: int = 1) -> NativeVectorEnv:
    request = EnvRequest(environment, envs, limit, history, terminate, workers)
    return NativeVectorEnv(find_task_model(environment), request, core)


def both(environment: str, core, *options) -> tuple[NativeVectorEnv, NativeVectorEnv]:
    """The same environments over the numba core and over the compiled one."""
    return make(environment, core, *options), make(environment, load_core(), *options)


def assert_steps_equal(ours, theirs, bound: float = 0.0) -> None:
    for name in ("reward", "terminated", "truncated", "success", "control_steps"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    for name, value in theirs.observation.items():
        np.testing.assert_allclose(ours.observation[name], value, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("environment", ROBOTS)
def test_trajectories_equal_the_compiled_cores(environment, core):
    """From a reset (its stale mass matrix included) under random actions that tend upwards."""
    ours, theirs = both(environment, core, 2, 2)
    first, expected = ours.reset([0, 1], [3, 4]), theirs.reset([0, 1], [3, 4])
    for name, value in expected.items():
        np.testing.assert_allclose(first[name], value, rtol=0, atol=1e-12, err_msg=name)
    actions = np.repeat(np.random.default_rng(0).uniform(-1.2, 1.2, (2, 10, ours.action.size)), 10, axis=1)
    actions[..., 2::7] = 0.5 * np.abs(actions[..., 2::7])
    actions[:, 20:30, 3:6] = 0.0  # no rotation: the old orientation stays the goal
    for start in range(0, 100, 5):
        steps = [env.step([0, 1], actions[:, start : start + 5]) for env in (ours, theirs)]
        bound = 1e-8 if start < 10 else 1e-5
        assert_steps_equal(*steps, bound)
        for one, two in zip(ours.data, theirs.data, strict=True):
            np.testing.assert_allclose(one.qpos, two.qpos, rtol=0, atol=bound)


EDGES = {  # the object to be moved, and where a success test changes its answer (m)
    "Lift": ("cube", (0, 0, 0.84)),
    "PickPlaceCan": ("Can", (0.1, 0.28, 0.85)),
    "NutAssemblySquare": ("SquareNut", (0.23, 0.1, 0.87)),
    "TwoArmTransport": ("", ()),
}


def moved_by_hand(env: NativeVectorEnv, environment: str) -> list[np.ndarray]:
    """Positions (nq,) with the object around the edge; in Transport payload and trash in their bins, one by one."""
    qpos, starts = env.data[0].qpos.copy(), []
    at = {rule.name: slice(rule.qpos, rule.qpos + 3) for rule in env.task.facts.placements}
    name, edge = EDGES[environment]
    if name:
        for offset in np.random.default_rng(0).uniform(-1, 1, (30, 3)) * (0.05, 0.05, 0.03):
            qpos[at[name]] = np.array(edge) + offset
            starts.append(qpos.copy())
    else:
        for thing, bin_ in (("payload", "transport_target_bin"), ("trash", "transport_trash_bin")):
            qpos[at[thing]] = qpos[at[bin_]] - (0, 0, 0.04)
            starts.append(qpos.copy())
    return starts


@pytest.mark.parametrize("environment", EDGES)
def test_success_and_contacts_equal_the_compiled_cores(environment, core):
    ours, theirs = both(environment, core)
    ours.reset([0], [0])
    found = set()
    for qpos in moved_by_hand(ours, environment):
        steps = []
        for env in (ours, theirs):
            env.start([0], qpos[None])
            steps.append(env.step([0], np.zeros((1, 3, env.action.size))))
        assert_steps_equal(*steps, 1e-8)
        found.add(bool(steps[0].success[0]))
    assert found == {True, False}


def test_chunks_history_and_episode_ends_equal_the_compiled_cores(core):
    """The cube falls from above the mark: a success at once, or it goes on, or the time limit."""
    for terminate, limit in ((True, 100), (False, 100), (False, 2)):
        ours, theirs = both("Lift", core, 1, 3, limit, terminate)
        ours.reset([0], [0])
        qpos = ours.data[0].qpos.copy()
        (rule,) = ours.task.facts.placements
        qpos[rule.qpos + 2] = 0.9
        steps = []
        for env in (ours, theirs):
            env.start([0], qpos[None])
            steps.append(env.step([0], np.full((1, 8, 7), 0.3)))
        assert_steps_equal(*steps, 1e-8)
        assert steps[0].control_steps[0] == (1 if terminate else min(limit, 8))
        assert (steps[0].terminated[0], steps[0].truncated[0]) == (terminate, limit == 2)
        np.testing.assert_array_equal(ours.over, theirs.over)
        np.testing.assert_array_equal(ours.steps, theirs.steps)


def test_results_do_not_depend_on_threads(core):
    actions = np.random.default_rng(1).uniform(-1, 1, (5, 8, 7))
    alone, found = make("Lift", core, 1), []
    for workers in (1, 4):
        env = make("Lift", core, 5, 1, 10_000, False, workers)
        env.reset(range(5), range(5))
        found.append(env.step(range(5), actions))
    assert_steps_equal(*found)
    for seed in range(5):
        alone.reset([0], [seed])
        step = alone.step([0], actions[seed][None])
        for name, value in step.observation.items():
            np.testing.assert_array_equal(value[0], found[0].observation[name][seed])


def test_a_diverging_environment_harms_no_other(core):
    alone, env = make("Lift", core), make("Lift", core, 3, 1, 10_000, False, 2)
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 4, 7))
    alone.reset([0], [1])
    before = env.reset([0, 1, 2], [0, 1, 2])
    env.data[0].qvel[2] = np.nan
    env.data[2].qvel[0] = 1e12
    step, expected = env.step([0, 1, 2], np.repeat(actions, 3, axis=0)), alone.step([0], actions)
    assert step.truncated.tolist() == [True, False, True] and not step.terminated.any()
    assert step.control_steps.tolist() == [1, 4, 1] and env.diverged == 2
    for name, value in step.observation.items():
        np.testing.assert_array_equal(value[0], before[name][0], err_msg="the last finite observation")
        np.testing.assert_array_equal(value[1], expected.observation[name][0])
    env.reset([0], [1])
    np.testing.assert_array_equal(env.step([0], actions).observation["object"], expected.observation["object"])


def test_the_benchmarks_functions_equal_the_compiled_cores(core):
    """Controls taken down, the same physics under them without a controller, and reading without stepping."""
    import mujoco

    found = []
    for each, env in zip((core, load_core()), both("Lift", core), strict=True):
        env.reset([0], [7])
        data, qpos = mujoco.MjData(env.model), env.data[0].qpos.copy()
        substeps, action = env.task.facts.control.substeps, np.full(7, 0.2)
        tape, seen = np.zeros((substeps, env.model.nu)), np.zeros(env.observation.state_size)
        each.d2_tape(env._batch, 0, action.ctypes.data, tape.ctypes.data)
        data.qpos[:] = qpos
        one = [(ctypes.c_void_p * 1)(address) for address in (env._batch.models[0], data._address, tape.ctypes.data)]
        each.d2_bare(*one, 1, substeps, 1)
        np.testing.assert_array_equal(data.qpos, env.data[0].qpos)
        each.d2_observe(env._batch, 0, seen.ctypes.data)
        found.append((tape, seen))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)


def test_conversions_equal_the_compiled_cores(core):
    for rotation in Rotation.random(100, random_state=0):
        found = []
        for each in (core, load_core()):
            wxyz, matrix = rotation.as_quat()[[3, 0, 1, 2]].copy(), np.ascontiguousarray(rotation.as_matrix())
            as_matrix, as_quaternion = np.zeros(9), np.zeros(4)
            each.d2_rotation_of(wxyz.ctypes.data, as_matrix.ctypes.data)
            each.d2_quaternion_of(eigen_address(), matrix.ctypes.data, as_quaternion.ctypes.data)
            found.append(np.concatenate([as_matrix, as_quaternion]))
        np.testing.assert_array_equal(*found)


def test_views_equal_the_compiled_cores(core):
    """Where everything stood at each frame, for pictures; the last one stays when an episode diverges."""
    found = []
    for env in both("Lift", core, 1, 3):
        model = env.model
        views = np.zeros((3, 12 * (model.ngeom + model.nsite + model.ncam) + 6 * model.nlight))
        env._batch.views = views.ctypes.data
        env.reset([0], [2])
        env.step([0], np.full((1, 2, 7), 0.5))
        assert not np.array_equal(views[0], views[1]) and not np.array_equal(views[1], views[2])
        found.append(views.copy())
        env.data[0].qvel[0] = np.nan
        env.step([0], np.zeros((1, 1, 7)))
        np.testing.assert_array_equal(views, found[-1][[1, 2, 2]])
    np.testing.assert_allclose(*found, rtol=0, atol=1e-10)


def test_structures_lie_where_mujoco_has_them():
    from d2ppo_sim.native.numba_memory import DATA, MODEL

    env = make("Lift", load_core())
    env.reset([0], [0])
    for theirs, structure in ((env.model, MODEL), (env.data[0], DATA)):
        memory = (ctypes.c_char * structure.itemsize).from_address(theirs._address)
        ours = np.frombuffer(memory, dtype=structure)[0]
        for name in set(structure.names) - {"contact", "warning"}:
            value = getattr(theirs, name)
            assert ours[name] == (value.ctypes.data if isinstance(value, np.ndarray) else value), name
    env.data[0].warning[2].number = 12345
    assert ours["warning"]["number"][2] == 12345


STEP = """
import numpy as np
from d2ppo_core.envs import EnvRequest, make_env
env = make_env("native", EnvRequest("Lift", 2, 50))
env.reset([0, 1], [3, 4])
print(env.step([0, 1], np.full((2, 4, 7), 0.3)).observation["object"].tobytes().hex())
"""


def test_numba_steps_where_there_is_no_compiler(core, tmp_path):
    find_task_model("Lift").save(tmp_path / "lift.safetensors")
    cache = tmp_path / "cache" / "d2ppo"
    cache.mkdir(parents=True)
    (cache / core.folder.name).symlink_to(core.folder)  # else half a minute of compiling
    environment = os.environ | {"CXX": "/nonexistent/g++", "D2PPO_BUNDLES": str(tmp_path),
                                "XDG_CACHE_HOME": str(cache.parent)}
    ran = subprocess.run([sys.executable, "-c", STEP], env=environment, cwd=tmp_path, check=False, capture_output=True,
                         text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    (said,) = ran.stderr.splitlines()
    assert "no C++ compiler (/nonexistent/g++)" in said and "numba" in said and "install g++" in said
    env = make("Lift", load_core(), 2)
    env.reset([0, 1], [3, 4])
    expected = env.step([0, 1], np.full((2, 4, 7), 0.3)).observation["object"]
    found = np.frombuffer(bytes.fromhex(ran.stdout.strip())).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    assert [path.name for path in cache.iterdir()] == [core.folder.name], "nothing was compiled"


def test_workers_do_not_say_it_again(core, capfd):
    worker = get_context("spawn").Process(target=load_numba_core, args=("g++",))
    worker.start()
    worker.join(timeout=60)
    assert worker.exitcode == 0 and capfd.readouterr().err == ""
    load_numba_core("g++")
    assert "no C++ compiler (g++)" in capfd.readouterr().err


def test_without_numba_too_the_error_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UserError, match=r"neither `g\+\+` here nor numba.*install g\+\+.*simulator=robosuite"):
        load_numba_core("g++")
    assert not list(tmp_path.iterdir())


def test_views_for_cameras_equal_the_compiled_cores(core):
    """Also the last view of an environment whose state is no longer finite."""
    camera = Camera(name="agentview", height=16, width=16, field_of_view=45.0)
    request, found = EnvRequest("Lift", 2, 50, 3, workers=1, cameras=(camera,)), []
    for each in (core, load_core()):
        env = NativeVectorEnv(find_task_model("Lift"), request, each)
        env.reset([0, 1], [3, 4])
        env.step([0, 1], np.full((2, 5, 7), 0.3))
        env.data[1].qvel[2] = np.nan
        seen = env.step([0, 1], np.full((2, 1, 7), 0.3)).observation[camera.key]
        found.append((env.views.copy(), seen))
        env.close()
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=1e-8)
    np.testing.assert_array_equal(found[0][0][1, 2], found[0][0][1, 1])
    assert not np.array_equal(found[0][0][0, 2], found[0][0][0, 1])
    assert np.mean(found[0][1] == found[1][1]) > 0.99
