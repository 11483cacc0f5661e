"""Environments in actors of two Ray nodes equal those of one process, whatever is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2ppo_core import cli
from d2ppo_core.bench.rollout import BASE, cores_needed
from d2ppo_core.bench.synthetic import can_config, spec_of
from d2ppo_core.conf.schema import ClusterConfig
from d2ppo_core.contract import Camera
from d2ppo_core.envs import EnvRequest, VectorEnv, make_env
from d2ppo_core.errors import UserError
from d2ppo_core.inference import Actor
from d2ppo_core.pretrain_setup import fresh_policy
from d2ppo_core.rl.rollout import Collector, Rollout
from d2ppo_core.rl.setup import fresh_critic
from d2ppo_core.scale import actors
from d2ppo_core.scale.cluster import Cluster, import_ray
from d2ppo_core.tasks import load_task, observation_spec
from ray_support import NODE, assert_same, joined, kill, pids, ray_nodes, strike
from support import assert_same_run

DEBUG = ("task=reach", "experiment=debug", "threads=1")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with ray_nodes() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "SETTLE", 0.05)


def camera_of_lift() -> Camera:
    return observation_spec(load_task("lift_image")).cameras[0]


def test_any_sequence_with_any_kills_equals_one_process(nodes: Any) -> None:
    """Random resets and steps of some environments, chunks of any length, actors killed in between."""
    rng = np.random.default_rng(7)
    request = EnvRequest("Reach", 7, 30, history=2, terminate_at_success=True, workers=3)
    here, there = make_env("toy", request), joined(nodes, "toy", request)
    running: set[int] = set()
    try:
        for turn in range(80):
            if turn in (11, 30, 31, 55):
                strike(there, rng.integers(3))
            envs = rng.permutation(7)[: rng.integers(1, 8)].tolist()
            if rng.random() < 0.25 or not set(envs) & running:
                seeds = rng.integers(0, 2**40, len(envs)).tolist()
                assert_same(there.reset(envs, seeds), here.reset(envs, seeds))
                running |= set(envs)
                continue
            envs = [env for env in envs if env in running]
            chunks = rng.uniform(-1.5, 1.5, (len(envs), rng.integers(1, 9), 2))
            step = here.step(envs, chunks)
            assert_same(there.step(envs, chunks), step)
            running -= {env for env, over in zip(envs, step.terminated | step.truncated, strict=True) if over}
        assert np.array_equal(there.render(2, 24, 32), here.render(2, 24, 32))
    finally:
        there.close()
        there.close()


class Deadly:
    """Environments whose first actor's process is killed while step number `fatal` is under way."""

    def __init__(self, env: Any, fatal: int) -> None:
        self._env, self._fatal, self.num_envs = env, fatal, env.num_envs
        self.reset = env.reset

    def step(self, envs: Any, chunks: np.ndarray) -> Any:
        self._fatal -= 1
        if self._fatal == 0:
            threading.Timer(0.005, kill, (pids(self._env)[0],)).start()
        return self._env.step(envs, chunks)


def rollout(env: VectorEnv, chunks: int) -> Rollout:
    """What a small policy experiences in Lift."""
    config = can_config((32, 32, 32), train_steps=4, steps=4, finetuned_steps=2)
    config.task = load_task("lift")
    policy = fresh_policy(config, spec_of(config)).eval()
    collector = Collector(Actor(policy, 0, explore=True), fresh_critic(policy, config).eval(), env, chunks, 0)
    collector.reset(0)
    return collector.collect(0)


@pytest.mark.sim
def test_a_rollout_of_lift_is_the_same_when_an_actor_is_killed_in_its_middle(nodes: Any) -> None:
    """Rewards, ends and everything the policy saw, bit for bit; episodes end inside the window."""
    request = EnvRequest("Lift", 5, 16, workers=2)
    here, there = make_env("native", request), joined(nodes, "native", request)
    try:
        before = pids(there)
        expected, found = rollout(here, 9), rollout(Deadly(there, 7), 9)
        after = pids(there)
        assert before[0] != after[0] and before[1] == after[1]
        assert found.truncated.any()
        assert_same(
            {name: getattr(found, name) for name in ("reward", "first", "terminated", "truncated", "success")},
            {name: getattr(expected, name) for name in ("reward", "first", "terminated", "truncated", "success")},
        )
        assert found.observation.state.equal(expected.observation.state)
        assert found.control_steps == expected.control_steps
        assert (there.observation, there.action, there.simulator) == (here.observation, here.action, here.simulator)
        with pytest.raises(RuntimeError, match="the episode is over"):
            [there.step([0], np.zeros((1, 4, 7))) for _ in range(5)]
        with pytest.raises(UserError, match="NaN or infinity for environment 3"):
            there.step([1, 3], np.array([np.zeros((4, 7)), np.full((4, 7), np.nan)]))
        with pytest.raises(IndexError, match="there is no environment"):
            there.reset([5], [0])
    finally:
        there.close()


@pytest.mark.slow
@pytest.mark.sim
def test_a_lost_node_is_survived_with_pictures_and_noise(nodes: Any) -> None:
    """Its actors go on where there is room, or where there is none: images, randomisation and limits included."""
    randomise = {"observation_noise": {"eef_pos": 0.01}, "latency": {"most": 2}, "light": {"diffuse": 0.2}}
    request = EnvRequest("Lift", 3, 40, cameras=(camera_of_lift(),), randomise=randomise, limits="robot", workers=0)
    here, third = make_env("native", request), nodes.add_node(**NODE)
    there = joined(nodes, "native", request)
    try:
        assert there.workers == 3 and there.randomise == randomise
        rng, rows = np.random.default_rng(0), [2, 0, 1]
        assert_same(there.reset(rows, [5, 6, 7]), here.reset(rows, [5, 6, 7]))
        for turn in range(3):
            if turn == 2:
                nodes.remove_node(third, allow_graceful=False)
            chunks = rng.uniform(-1, 1, (3, 4, 7))
            assert_same(there.step(rows, chunks), here.step(rows, chunks))
        assert np.array_equal(there.render(0, 48, 64), here.render(0, 48, 64))
    finally:
        there.close()
        here.close()


def test_actors_that_are_lost_again_and_again_end_the_run(nodes: Any) -> None:
    there = joined(nodes, "toy", EnvRequest("Reach", 2, 30, workers=1), losses=0)
    try:
        there.reset([0, 1], [0, 1])
        strike(there, 0)
        with pytest.raises(UserError, match=r"lost 1 times in a row .* resume=true"):
            there.step([0, 1], np.zeros((2, 4, 2)))
    finally:
        there.close()


def test_fine_tuning_and_its_evaluations_are_the_same(nodes: Any, reach_file: Path, tmp_path: Path) -> None:
    """The evaluation's actors come beside those that hold every CPU."""
    assert cli.main(["pretrain", *DEBUG, f"data={reach_file}", f"run_dir={tmp_path / 'base'}"]) == 0
    start = f"checkpoint={tmp_path / 'base' / 'policy.safetensors'}"
    common = ("finetune", *DEBUG, start, "algorithm.evaluate_every=1", "rollout.workers=4", "evaluation.workers=2")
    assert cli.main([*common, f"run_dir={tmp_path / 'here'}"]) == 0
    there = (f"run_dir={tmp_path / 'there'}", "rollout=ray", f"cluster.address={nodes.address}")
    assert cli.main([*common, *there]) == 0
    assert_same_run(tmp_path / "here", tmp_path / "there")


def test_bench_rollout_measures_both(nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy task, a moment of each; cores needed follow from the rates."""
    quick = ("--task", "reach", "--envs", "4", "--workers", "1", "2", "--seconds", "0.05", "--learn-chunks", "1")
    out = tmp_path / "bench.json"
    assert cli.main(["bench", "rollout", *quick, "--address", nodes.address, "--json", str(out)]) == 0
    report, printed = json.loads(out.read_text()), capsys.readouterr().out
    rates = report["rates"]
    assert list(rates) == [BASE, "local, 1", "local, 2", "Ray, 1", "Ray, 2"] and BASE in printed
    assert rates[BASE]["times_one_thread"] == 1 and rates["Ray, 1"]["overhead_ms_per_chunk"] > 0
    learner = report["learner"]
    cores = cores_needed(60_000, learner["seconds_an_iteration"], rates[BASE]["per_second"], 0.9)
    assert learner["cores_for_busy_share"]["0.9"] == pytest.approx(cores, abs=0.06)
    assert cli.main(["bench", "rollout", "--envs", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("rollout.workers=9", "cluster.address={}"), "has 4 CPUs; lower it"),
        (("cluster.losses=-1",), "not negative"),
        (("cluster.kind=slurm",), "choose local or ray"),
        (("task=lift", "simulator=nothing", "cluster.address={}"), "there is no simulator 'nothing'"),
        (("cluster.address=127.0.0.1:9",), "cannot join the Ray cluster at '127.0.0.1:9'"),
    ],
)
def test_mistakes_are_one_sentence(
    nodes: Any, options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.format(nodes.address) for option in options]
    common = ["finetune", "experiment=debug", "task=reach", "scratch=true", "rollout=ray", "threads=1"]
    assert cli.main([*common, *given, f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said


def test_without_ray_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    common = ("finetune", "experiment=debug", "task=reach", "scratch=true", "threads=1", "rollout=ray")
    assert cli.main([*common, f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "pip install ray" in said and said.count("\n") == 1


def test_nothing_imports_ray_before_it_is_asked_for() -> None:
    modules = "d2ppo_core.rl.finetune, d2ppo_core.evaluate, d2ppo_core.commands"
    program = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_silent_head_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors outlive their head by a moment; then there is nobody to ask for others."""
    monkeypatch.setattr("d2ppo_core.scale.cluster.HEAD_SECONDS", 0.5)
    with ray_nodes(1) as cluster:
        there = joined(cluster, "toy", EnvRequest("Reach", 2, 10**6, workers=2))
        try:
            there.reset([0, 1], [0, 1])
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
            since = time.monotonic()
            with pytest.raises(UserError, match="does not answer any more; start the cluster again"):
                while time.monotonic() - since < 30:
                    there.step([0, 1], np.zeros((2, 1, 2)))
        finally:
            there.close()


def test_a_cluster_of_its_own_leaves_nothing() -> None:
    """An empty address starts one; it ends with its last member, and so do its processes and its folder."""
    first = Cluster(ClusterConfig(), workers=1)
    second = Cluster(ClusterConfig())
    folder = Path(str(Cluster._folder))
    assert first.first and not second.first and folder.is_dir()
    assert processes_of(folder)
    for member in (first, second, second):
        member.leave()
    assert not folder.exists() and not import_ray().is_initialized()
    assert not processes_of(folder)


def processes_of(folder: Path) -> list[int]:
    """Running processes that name the folder in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found
