"""Around the compiled core: compiling it once, bundles, seeds and the distribution of starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact, ks_2samp

from d2ppo_core import cli
from d2ppo_core.errors import UserError
from d2ppo_sim import demos
from d2ppo_sim.episode import Simulation
from d2ppo_sim.native import compiler
from d2ppo_sim.native.library import find_task_model
from d2ppo_sim.native.simulation import NativeSimulation
from d2ppo_sim.native.starts import draw_start
from d2ppo_sim.native.task_model import load_task_model
from d2ppo_sim.robosuite_env import ROBOTS, RobosuiteEnv
from native_support import compared, native
from support import d2ppo

pytestmark = pytest.mark.sim


def starts_agree(environment: str, count: int) -> None:
    """Each number of arms and used objects has robosuite's distribution over resets (Kolmogorov-Smirnov)."""
    env, reference = native(environment), RobosuiteEnv(environment)
    where, facts = compared(env), env.task.facts
    ours = np.array([draw_start(facts, env.model.qpos0, seed, 0)[where] for seed in range(4 * count)])
    theirs = []
    for seed in range(count):
        reference.reset(seed)
        theirs.append(reference.env.sim.data.qpos[where].copy())
    reference.close()
    for column, other in zip(ours.T, np.array(theirs).T, strict=True):
        if np.ptp(other) < 1e-9:
            np.testing.assert_allclose(column, other[0], rtol=0, atol=1e-9)
        else:
            assert ks_2samp(column, other).pvalue > 1e-5


@pytest.mark.parametrize("environment", ROBOTS)
def test_starts_have_robosuites_distribution(environment):
    starts_agree(environment, 80)


@pytest.mark.slow
@pytest.mark.parametrize("environment", ROBOTS)
def test_starts_have_robosuites_distribution_over_500_resets(environment):
    starts_agree(environment, 500)


@pytest.mark.parametrize("environment", ROBOTS)
def test_start_depends_on_the_seed_alone(environment):
    env = native(environment, 2)
    one, two = env.reset([0, 1], [5, 5 + 2**32]), env.reset([1, 0], [5, 2**60])
    for name, value in one.items():
        np.testing.assert_array_equal(value[0], two[name][0])
    assert not np.array_equal(one["object"][0], one["object"][1])
    assert not np.array_equal(two["object"][0], two["object"][1])
    assert (env.data[0].warning[0].number, env.data[0].ncon < 200) == (1, True)


def test_single_simulation_equals_the_vector_env():
    alone: Simulation = NativeSimulation("Lift")
    env, actions = native("Lift"), np.random.default_rng(0).uniform(-1, 1, (5, 7))
    first, seen = alone.reset(3), env.reset([0], [3])
    for action in actions:
        np.testing.assert_array_equal(first["object"], seen["object"][0, 0])
        outcome, step = alone.step(action), env.step([0], action[None, None])
        first, seen = outcome.observation, step.observation
        assert not outcome.diverged and outcome.reward == step.reward[0]
    assert alone.state().shape == (1 + env.model.nq + env.model.nv,)
    assert "<mujoco" in alone.model_xml() and alone.env_args()["env_name"] == "Lift"
    alone._env.data[0].qvel[:] = np.nan
    assert alone.step(actions[0]).diverged


WITHOUT_ROBOSUITE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "robosuite":
            raise ImportError("no robosuite here")
sys.meta_path.insert(0, Blocker())
import numpy as np
from d2ppo_core.envs import EnvRequest, make_env
env = make_env("native", EnvRequest("Lift", 2, 50))
seen = env.reset([0, 1], [3, 4])
step = env.step([0, 1], np.full((2, 4, 7), 0.3))
print(step.observation["object"].tobytes().hex())
try:
    assert env.render(0, 32, 48).shape == (32, 48, 3)
except Exception as error:
    assert "off-screen OpenGL" in str(error), error
"""


def test_a_bundle_steps_where_there_is_no_robosuite(tmp_path):
    done = d2ppo("bundle", "task=lift", f"run_dir={tmp_path}")
    assert "D2PPO_BUNDLES=" in done.stdout
    own_cache = tmp_path / "cache" / "d2ppo"
    own_cache.mkdir(parents=True)
    (own_cache / compiler.library_path().name).write_bytes(compiler.library_path().read_bytes())
    environment = os.environ | {"D2PPO_BUNDLES": str(tmp_path), "XDG_CACHE_HOME": str(own_cache.parent)}
    environment.pop("MUJOCO_GL", None)
    ran = subprocess.run([sys.executable, "-c", WITHOUT_ROBOSUITE], env=environment, cwd=tmp_path, check=False,
                         capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    env = native("Lift", 2)
    env.reset([0, 1], [3, 4])
    expected = env.step([0, 1], np.full((2, 4, 7), 0.3)).observation["object"]
    assert ran.stdout.strip() == expected.tobytes().hex()
    assert sorted(p.name for p in own_cache.iterdir()) == [compiler.library_path().name]


def test_bundle_command_explains_itself(tmp_path, capsys):
    (tmp_path / "lift.safetensors").write_bytes(b"mine")
    for arguments, words in (
        (["task=lift", f"run_dir={tmp_path}"], "overwrite=true"),
        (["tsk=lift"], "no option 'tsk'"),
        (["out=x"], "no task is given"),
        (["task=nothing"], "there is no task 'nothing'"),
        (["task=reach"], "needs no bundle"),
    ):
        assert cli.main(["bundle", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["bundle", "--help"]) == 0
    assert (tmp_path / "lift.safetensors").read_bytes() == b"mine"


def test_damaged_bundles_are_refused(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    task = find_task_model("Lift")
    task.save(good)
    assert load_task_model(good).facts == task.facts
    content = good.read_bytes()
    for damaged in (b"", content[:1000], content[: len(content) // 2], content[:-4000] + bytes(4000)):
        bad.write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad\.safetensors"):
            load_task_model(bad)
    with pytest.raises(UserError, match="no such file"):
        load_task_model(tmp_path / "none.safetensors")
    other = task.facts.model_copy(update={"mujoco": "3.0.0"})
    type(task)(other, b"", ()).save(bad)
    with pytest.raises(UserError, match=r"for mujoco 3\.0\.0"):
        load_task_model(bad)
    (tmp_path / "can.safetensors").write_bytes(content)
    monkeypatch.setenv("D2PPO_BUNDLES", str(tmp_path))
    find_task_model.cache_clear()
    with pytest.raises(UserError, match="a bundle of Lift, not of PickPlaceCan"):
        find_task_model("PickPlaceCan")
    find_task_model.cache_clear()


def test_models_are_cached_and_old_ones_forgotten(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "d2ppo"
    folder.mkdir()
    for number in range(3):
        (folder / f"NutAssemblySquare-{number}.safetensors").write_bytes(b"")
        os.utime(folder / f"NutAssemblySquare-{number}.safetensors", (number, number))
    for said in (True, False):
        find_task_model.cache_clear()
        find_task_model("NutAssemblySquare")
        assert ("building the model of NutAssemblySquare" in capsys.readouterr().err) is said
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 2 and "NutAssemblySquare-2.safetensors" in names
    (made,) = (path for path in folder.iterdir() if path.stat().st_size)
    made.write_bytes(made.read_bytes()[:-1000])  # damaged: made anew
    find_task_model.cache_clear()
    assert find_task_model("NutAssemblySquare").facts.environment == "NutAssemblySquare"
    assert "building the model" in capsys.readouterr().err
    find_task_model.cache_clear()


COMPILE = "from d2ppo_sim.native.compiler import load_core; print(load_core()._name)"


def test_several_processes_may_compile_at_once(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", COMPILE], env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert all("compiling the simulator core" in err for _, err in outputs if err)
    (library,) = (tmp_path / "d2ppo").iterdir()
    again = subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True, capture_output=True, text=True)
    assert Path(again.stdout.strip()) == library and not again.stderr


def test_a_compiler_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    compiler.load_core.cache_clear()
    with pytest.raises(UserError, match="false could not compile"):
        native("Lift")
    assert not list((tmp_path / "d2ppo").iterdir())


def test_demonstrations_are_recorded_natively(tmp_path):
    recorder = demos.Recorder(demos.Settings("native", "Lift", 0, 0.1, 0.05, 200), str(tmp_path))
    trials = [recorder.record(seed) for seed in range(3)]
    assert sum(trial.success for trial in trials) >= 2
    assert recorder.env_args()["env_version"] == "1.4.1"
    assert len(list(tmp_path.glob("*.npz"))) == 3
    recorder.close()


@pytest.mark.slow
@pytest.mark.parametrize("environment", ROBOTS)
def test_experts_succeed_as_often_as_in_robosuite(environment, tmp_path):
    """After contacts trajectories part, but not by kind: the same share of 200 seeds (fewer by $D2PPO_SEEDS)."""
    seeds = range(int(os.environ.get("D2PPO_SEEDS", "200")))
    wins, limit = [], 600 if environment == "TwoArmTransport" else 300  # control steps
    for simulator in ("native", "robosuite"):
        settings = demos.Settings(simulator, environment, 0, 0.1, 0.05, limit)
        recorder = demos.Recorder(settings, str(tmp_path))
        trials = [recorder.record(seed) for seed in seeds]
        recorder.close()
        wins.append(sum(trial.success for trial in trials))
        print(environment, simulator, f"{wins[-1]}/{len(seeds)}", np.mean([t.steps for t in trials if t.success]))
    lost = [len(seeds) - w for w in wins]
    assert fisher_exact([wins, lost]).pvalue > 1e-3, (wins, lost)
