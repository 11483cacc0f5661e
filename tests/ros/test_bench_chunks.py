"""`d2ppo bench chunks` with random weights: what it must say of itself, and that the loop is the one of `evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("d2ppo_sim.robosuite_env")  # not robosuite itself: the OpenGL backend is not chosen yet

from d2ppo_core.checkpoint import save_policy
from d2ppo_core.contract import PolicySpec, Provenance, SimulatorSpec
from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.errors import UserError
from d2ppo_core.evaluate import evaluate
from d2ppo_core.network_specs import MLPSpec, SamplerSpec
from d2ppo_core.policies.build import build_policy
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_ros.bench.chunks import BENCH
from d2ppo_ros.executor.settings import ExecutorSettings
from d2ppo_ros.nodes import sim_loop

pytestmark = pytest.mark.sim
STEPS = 24  # of a trial
H, TA = 8, 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy for Lift that has learned nothing."""
    path, task = tmp_path_factory.mktemp("policy") / "policy.safetensors", load_task("lift")
    simulator = SimulatorSpec(name="robosuite", version="1", environment="Lift", controller="OSC_POSE")
    spec = PolicySpec(
        task="lift", observation=observation_spec(task), action=action_spec(task), horizon=H, executed=TA,
        network=MLPSpec(hidden=(8, 8, 8), time_size=4), sampler=SamplerSpec(train_steps=4, steps=4),
        provenance=Provenance(stage="pretrain", dataset="none", dataset_digest="0" * 64, code_version="0", seed=0,
                              simulator=simulator),
    )  # fmt: skip
    torch.manual_seed(0)
    policy = build_policy(spec)
    save_policy(path, spec, {"raw": policy.network, "ema": policy.network, "normalizer": policy.normalizer})
    return path


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_loop, "load_task", lambda name: replace(load_task(name), max_episode_steps=STEPS))


def test_receding_without_latency_does_what_evaluate_does(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """The same chunks, bit for bit; so the same was seen before each of them."""
    loop, chunks = sim_loop.SimLoop(checkpoint), []
    predict = loop.actor.predict
    monkeypatch.setattr(loop.actor, "predict", lambda *given: chunks.append(predict(*given)) or chunks[-1])
    trial = loop.run(ExecutorSettings(lockstep=True, gripper_dwell=0.0), 100003)
    ours, count = np.array(chunks), len(chunks)
    env = make_env("native", EnvRequest("Lift", 1, STEPS, workers=1))
    found = evaluate(loop.actor, env, [100003])
    np.testing.assert_array_equal(ours, np.array(chunks[count:]))
    assert count == STEPS // TA and found.control_steps == [trial.steps]
    env.close()
    loop.close()


def test_latency_is_waited_for_or_bridged(checkpoint: Path):
    loop = sim_loop.SimLoop(checkpoint)
    runs = {
        mode: loop.run(ExecutorSettings(mode=mode, lockstep=True, lockstep_latency=0.1, gripper_dwell=0.0), 100003)
        for mode in ("receding", "async", "rtc")
    }
    loop.close()
    assert runs["receding"].chunk.tolist() == ([-1] * 2 + [0] * 4 + [-1] * 2 + [1] * 4) + (
        [-1] * 2 + [2] * 4 + [-1] * 2 + [3] * 4
    )
    for mode in ("async", "rtc"):
        assert (runs[mode].chunk[:2] == -1).all() and (runs[mode].chunk[2:] >= 0).all()
        assert runs[mode].counts.starved == 2
        assert np.isfinite(runs[mode].reference[2:]).all()
    assert np.isnan(runs["receding"].reference).all()


def test_the_report(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--checkpoint", str(checkpoint), "--episodes", "1", "--latency", "0", "0.05", "--modes", "async",
                 "ensemble", "--run-dir", str(tmp_path)]  # fmt: skip
    assert BENCH.run(arguments) == 0
    report = json.loads((tmp_path / "bench-chunks.json").read_text())
    assert [(row["mode"], row["latency"]) for row in report["rows"]] == [
        ("async", 0.0), ("async", 0.05), ("ensemble", 0.0), ("ensemble", 0.05)
    ]  # fmt: skip
    first = report["rows"][0]
    assert first["ticks"] == STEPS and first["chunks"] == STEPS // TA
    assert first["changes"]["goal_step"]["border"]["count"] == STEPS // TA - 1
    assert report["rows"][2]["changes"]["goal_step"]["inside"] is None  # a new chunk at every step
    assert (tmp_path / "bench-chunks.png").read_bytes().startswith(b"\x89PNG")
    assert "success and schedule" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(checkpoint: Path):
    with pytest.raises(UserError, match="no such file"):
        BENCH.run(["--checkpoint", "nowhere.safetensors"])
    with pytest.raises(UserError, match="'fast' is no --modes; choose one of receding"):
        BENCH.run(["--checkpoint", str(checkpoint), "--modes", "fast"])
