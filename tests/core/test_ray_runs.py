"""Whole commands on Ray: sweeps, a head that is lost in the middle of a run, and the file a cluster starts from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from d2ppo_core import cli
from ray_support import ray_nodes
from support import assert_same_run, command, d2ppo

ROOT = Path(__file__).resolve().parents[2]
DEBUG = ("task=reach", "experiment=debug", "threads=1")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with ray_nodes() as cluster:
        yield cluster


def test_a_sweep_is_the_same_as_in_one_process(nodes: Any, reach_file: Path, tmp_path: Path) -> None:
    """Folders named by what is swept, the same policies; the path of each summary is printed."""
    sweep = ("pretrain", *DEBUG, f"data={reach_file}", "train.steps=5", "-m", "seed=0,1")
    assert cli.main([*sweep, f"run_dir={tmp_path / 'here'}"]) == 0
    there = d2ppo(*sweep, f"run_dir={tmp_path / 'there'}", "hydra/launcher=ray", f"cluster.address={nodes.address}")
    assert sorted(there.stdout.split()) == [str(tmp_path / "there" / f"seed={n}" / "summary.json") for n in (0, 1)]
    for name in ("seed=0", "seed=1"):
        assert_same_run(tmp_path / "here" / name, tmp_path / "there" / name)


def test_a_job_that_fails_is_one_sentence_and_leaves_the_others_alone(
    nodes: Any, reach_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a worker, and before one is asked for."""
    sweep = ["pretrain", *DEBUG, f"data={reach_file}", "train.steps=5", f"run_dir={tmp_path}", "-m"]
    on_ray = ["hydra/launcher=ray", f"cluster.address={nodes.address}"]
    assert cli.main([*sweep, *on_ray, "train.batch=0,8"]) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("d2ppo: ")]
    assert len(said) == 1 and said[0].startswith("d2ppo: train.batch=0: "), said
    assert (tmp_path / "train.batch=8" / "summary.json").exists()
    assert cli.main([*sweep, *on_ray, "seed=0,1", "cluster.job_gpus=1"]) == 2
    assert "has 0; lower cluster.job_gpus" in capfd.readouterr().err


@pytest.mark.slow
def test_a_sweeps_job_goes_on_when_its_worker_is_killed(nodes: Any, reach_file: Path, tmp_path: Path) -> None:
    """From its resume file, to the same policy as a job that was left alone."""
    options = (*DEBUG, f"data={reach_file}", "train.steps=1500", "train.save_every=20")
    d2ppo("pretrain", *options, f"run_dir={tmp_path / 'alone'}")
    on_ray = ("hydra/launcher=ray", f"cluster.address={nodes.address}")
    sweep = subprocess.Popen(command("pretrain", *options, *on_ray, f"run_dir={tmp_path}", "-m", "seed=0,1"))
    wait_for(tmp_path / "seed=0" / "resume.pt")
    (worker,) = [pid for pid in workers() if str(tmp_path / "seed=0") in open_files(pid)]
    os.kill(worker, signal.SIGKILL)
    assert sweep.wait(timeout=300) == 0
    assert_same_run(tmp_path / "alone", tmp_path / "seed=0")


def workers() -> list[int]:
    """Ray's processes that run a task."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::_work"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def open_files(pid: int) -> str:
    return "\n".join(os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())


def wait_for(path: Path, seconds: float = 120.0) -> None:
    """Until the file is there."""
    since = time.monotonic()
    while not path.exists():
        assert time.monotonic() - since < seconds, path
        time.sleep(0.02)


@pytest.mark.slow
def test_a_lost_head_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    """One sentence and exit code 2 within half a minute; resumed without Ray it ends where the whole run does."""
    options = ("finetune", *DEBUG, "scratch=true", "algorithm.iterations=400", "algorithm.reward_scaling=true")
    d2ppo(*options, f"run_dir={tmp_path / 'whole'}")
    with ray_nodes() as cluster:
        lost = subprocess.Popen(
            command(*options, f"run_dir={tmp_path / 'lost'}", "rollout=ray", "rollout.workers=4",
                    f"cluster.address={cluster.address}"),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(tmp_path / "lost" / "resume.pt")
        time.sleep(0.5)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        since = time.monotonic()
        _, said = lost.communicate(timeout=60)
        assert lost.returncode == 2 and time.monotonic() - since < 30
    sentences = [line for line in said.splitlines() if line.startswith("d2ppo: ")]
    assert len(sentences) == 1 and "the same command with resume=true" in sentences[0]
    assert not (tmp_path / "lost" / "summary.json").exists()
    d2ppo(*options, f"run_dir={tmp_path / 'lost'}", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "lost")
    assert json.loads((tmp_path / "lost" / "summary.json").read_text())["iterations"] == 400


def test_the_cluster_file_is_what_ray_expects() -> None:
    """By Ray's own check of cluster files, for machines that are there already."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "docs" / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    assert config["provider"]["type"] == "local" and config["provider"]["worker_ips"]
