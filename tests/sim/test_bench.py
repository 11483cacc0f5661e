"""`d2ppo bench sim`, and hours of stepping."""

from __future__ import annotations

import gc
import json
import os

import numpy as np
import pytest

from d2ppo_core import cli
from d2ppo_sim.bench_measure import Bare, Clock, measure, record
from native_support import native, resident

pytestmark = pytest.mark.sim


def test_bench_prints_a_table_and_writes_json(tmp_path, capsys):
    assert cli.main(["bench", "sim", "--tasks", "lift", "--seconds", "0.4", "--run-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "bare mj_step" in printed and "lift" in printed and "load" in printed
    report = json.loads((tmp_path / "bench-sim.json").read_text())
    lift, machine = report["tasks"]["lift"], report["machine"]
    assert machine["versions"]["mujoco"] == "3.3.7" and len(machine["load_after"]) == 3
    for rate in ("stock", "native", "all_cores", "bare", "bare_all_cores"):
        assert lift[rate]["control_steps"] > 0 and lift[rate]["per_cpu_second"] > 0
    assert lift["ratios"]["native_over_stock"] > 3
    assert 0.5 < lift["ratios"]["native_over_bare"] < 1.5
    ratios = lift["ratios"]
    assert ratios["scaling_over_bare"] == pytest.approx(ratios["scaling"] / ratios["bare_scaling"], abs=2e-3)
    (camera,) = report["images"]["lift_image"]
    assert camera["camera"] == "robot0_eye_in_hand" and 0 < camera["ours"]["cpu_ms"] < camera["stock"]["cpu_ms"]
    assert "robot0_eye_in_hand" in printed and list(report["images"]) == ["lift_image"]


@pytest.mark.parametrize("threads", [1, 2])
def test_bare_physics_follows_the_native_trajectory(threads):
    """Else the comparison would be of other states: it raises when an episode's end differs."""
    env = native("Lift")
    bare, clock = Bare(env.model, record(env, 2), 3, threads), Clock()
    for _ in range(13):
        bare.between()
        clock.steps += bare.work()
    assert clock.steps == 13 * 3 * 8
    bare._data[2].qpos[0] += 1e-12
    bare._at = 96
    with pytest.raises(RuntimeError, match="did not follow"):
        bare.between()


@pytest.mark.parametrize(("arguments", "words"), [
    (["sim", "--tasks", "reach"], "is not robosuite's"),
    (["sim", "--tasks", "nothing"], "there is no task 'nothing'"),
    (["sim", "--seconds", "0"], "give 0.1 to 3600"),
    (["sim", "--sconds", "1"], "--help"),
    ([], "--help"),
])
def test_wrong_options_are_explained(arguments, words, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["Lift", "PickPlaceCan", "NutAssemblySquare", "TwoArmTransport"])
def test_native_is_as_fast_as_promised(environment):
    """Ratios of CPU time: at least 8 times stock (Transport 6), and 85 % of the bare physics."""
    ratios = measure(environment, 4.0, 1)["ratios"]
    assert ratios["native_over_stock"] >= (6 if environment == "TwoArmTransport" else 8)
    assert ratios["native_over_bare"] >= 0.85


def soak(steps: int, envs: int = 8, chunk: int = 10) -> np.ndarray:
    """(n, 2): control steps done and memory held, while stepping with resets on and on."""
    env, rng, seed, seen, done = native("Lift", envs, 1, 50, True, 2), np.random.default_rng(0), 0, [], 0
    env.reset(list(range(envs)), list(range(envs)))
    while done < steps:
        over = [row for row in range(envs) if env.over[row]]
        if over:
            env.reset(over, list(range(seed, seed + len(over))))
            seed += len(over)
        result = env.step(list(range(envs)), rng.uniform(-1, 1, (envs, chunk, 7)))
        done += int(result.control_steps.sum())
        if len(seen) <= done * 50 // steps:
            gc.collect()
            seen.append((done, resident()))
    assert env.diverged == 0
    return np.array(seen)


def leak(seen: np.ndarray) -> float:
    """MB for each 100 000 control steps, over the last two thirds: the start pages things in."""
    later = seen[len(seen) // 3 :]
    return float(np.polyfit(later[:, 0], later[:, 1], 1)[0] * 1e5)


@pytest.mark.slow
def test_a_million_steps_do_not_leak():
    assert leak(soak(int(os.environ.get("D2PPO_SOAK_STEPS", "1000000")))) < 1.0
