"""A diverging run stops before it saves anything broken, and names what it saved while all was well."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from d2ppo_core import cli
from d2ppo_core.checkpoint import load_resume, read_policy
from d2ppo_core.conf.schema import ScheduleConfig
from d2ppo_core.optim import finite

BASE = ("task=reach", "experiment=debug", "threads=1")


def broken_at(unit: int, lr: float = 1e-3) -> Callable[..., float]:
    """A learning rate that is no number at one unit of the schedule with that `lr`."""

    def rate(now: int, schedule: ScheduleConfig, total: int) -> float:
        return math.nan if (now, schedule.lr) == (unit, lr) else 1e-3

    return rate


def stopped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("d2ppo: ")]
    assert len(lines) == 1
    return lines[0]


def assert_all_good(run: Path, message: str) -> dict:
    """Every file that is there can be used, the named ones exist; the resume file's state."""
    named = [Path(word) for word in re.findall(r"/\S+\.(?:safetensors|pt)", message)]
    assert run / "resume.pt" in named
    for path in named:
        assert path.is_file()
    for path in run.glob("*.safetensors"):
        for tensors in read_policy(path)[1].values():
            assert all(t.isfinite().all() for t in tensors.values()), path
    state = load_resume(run / "resume.pt")
    for name in ("network", "ema", "critic"):
        assert all(t.isfinite().all() for t in state.get(name, {}).values())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert not (run / "summary.json").exists()
    return state


@pytest.mark.parametrize(
    ("options", "broken", "noticed"),
    [
        ((), 13, 16),  # by the next line of metrics
        (("train.log_every=1000",), 13, 20),  # before a validation and the next resume file
        (("train.log_every=1000", "train.validate_every=1000"), 11, 20),  # before the next resume file
        (("train.log_every=1000", "train.validate_every=1000", "train.keep_every=3"), 13, 15),  # before a numbered one
        (("ema=epoch", "train.ema_start_epoch=0"), 13, 16),  # the average is still whole then
        ((), 19, 20),  # by the very last step: its loss was finite, its weights are not
    ],
)
def test_pretraining(
    options: tuple[str, ...],
    broken: int,
    noticed: int,
    reach_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("d2ppo_core.pretrain.learning_rate", broken_at(broken))
    run = tmp_path / "run"
    message = stopped(capsys, "pretrain", *BASE, f"data={reach_file}", f"run_dir={run}", *options)
    assert f"not finite at step {noticed}: training diverged" in message
    assert assert_all_good(run, message)["step"] == 10
    assert not (run / "policy.safetensors").exists()


@pytest.mark.parametrize(("unit", "lr"), [(1, 1e-4), (2, 1e-3)], ids=["actor", "critic"])
@pytest.mark.parametrize("epochs", [3, 1])
def test_finetuning(
    epochs: int,
    unit: int,
    lr: float,
    reach_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one step in an iteration (one epoch, one minibatch) the losses are finite and only the weights are not."""
    assert cli.main(["pretrain", *BASE, f"data={reach_file}", f"run_dir={tmp_path / 'base'}"]) == 0
    monkeypatch.setattr("d2ppo_core.rl.finetune.learning_rate", broken_at(unit, lr))
    run = tmp_path / "run"
    options = ("algorithm.iterations=4", f"algorithm.epochs={epochs}", "algorithm.batch=100000")
    checkpoint = f"checkpoint={tmp_path / 'base' / 'policy.safetensors'}"
    message = stopped(capsys, "finetune", *BASE, checkpoint, f"run_dir={run}", *options)
    assert "not finite in iteration 3: training diverged" in message
    assert assert_all_good(run, message)["iteration"] == 2
    assert str(run / "best.safetensors") in message


def test_a_run_that_saved_nothing_says_so(
    reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2ppo_core.pretrain.learning_rate", broken_at(0))
    message = stopped(capsys, "pretrain", *BASE, f"data={reach_file}", f"run_dir={tmp_path / 'run'}")
    assert "last good state: nothing was saved yet" in message
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_finite_looks_at_every_weight() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert finite(network)
    for value in (math.nan, math.inf):
        for p in network.parameters():
            with torch.no_grad():
                before, p.flatten()[0] = p.flatten()[0].item(), value
            assert not finite(network)
            with torch.no_grad():
                p.flatten()[0] = before
    assert finite(network)
