"""A run killed with SIGKILL at any moment and resumed equals, bit for bit, the run that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support import assert_same_run, command, d2ppo

PRETRAIN = (
    "task=reach",
    "experiment=debug",
    "train.steps=1500",
    "train.save_every=20",
    "train.validate_every=50",
    "threads=1",
)
FINETUNE = ("experiment=debug", "algorithm.iterations=60", "algorithm.reward_scaling=true", "threads=1")


def kill_until_done(arguments: tuple[str, ...], run_dir: Path, seed: int) -> int:
    """Start, kill at a random moment once a resume file exists, resume; returns how often it was really killed."""
    rng, kills = random.Random(seed), 0
    while True:
        process = subprocess.Popen(
            command(*arguments, f"run_dir={run_dir}", *(["resume=true"] if kills else [])),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        resume = run_dir / "resume.pt"
        before = resume.stat().st_mtime_ns if resume.exists() else 0
        while process.poll() is None and not (resume.exists() and resume.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if kills < 3 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
        return kills


def test_pretraining_killed_and_resumed_is_bit_identical(reach_file: Path, tmp_path: Path) -> None:
    arguments = ("pretrain", *PRETRAIN, f"data={reach_file}")
    d2ppo(*arguments, f"run_dir={tmp_path / 'whole'}")
    assert kill_until_done(arguments, tmp_path / "killed", seed=1) > 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="reset each iteration"),
        pytest.param(
            (
                "rollout.reset_each_iteration=false",
                "algorithm.save_every=3",
                "algorithm.finetuned_steps_every=20",
                "algorithm.finetuned_steps_drop=2",
                "algorithm.sampling_std_final=0.05",
            ),
            id="episodes carried over, annealing",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_finetuning_killed_and_resumed_is_bit_identical(
    reach_file: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    d2ppo("pretrain", "task=reach", "experiment=debug", f"data={reach_file}", f"run_dir={tmp_path / 'base'}")
    arguments = ("finetune", *FINETUNE, *options, f"checkpoint={tmp_path / 'base' / 'policy.safetensors'}")
    d2ppo(*arguments, f"run_dir={tmp_path / 'whole'}")
    assert kill_until_done(arguments, tmp_path / "killed", seed=2) > 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_resuming_with_other_settings_is_refused(reach_file: Path, tmp_path: Path) -> None:
    arguments = ("pretrain", "task=reach", "experiment=debug", f"data={reach_file}", f"run_dir={tmp_path / 'run'}")
    d2ppo(*arguments)
    again = d2ppo(*arguments, check=False)
    assert again.returncode == 2
    assert "resume=true" in again.stderr
    kept = tmp_path / "run" / "config.yaml"
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(line for line in lines if "bf16" not in line))  # as written before there was such an option
    other = d2ppo(*arguments, "resume=true", "train.batch=16", check=False)
    assert other.returncode == 2
    assert "was started with other settings: train.batch=16 (was 32); resume with the same" in other.stderr
