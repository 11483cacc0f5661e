"""Seeds trained together become what each becomes alone, and leave the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from d2ppo_core import cli
from d2ppo_core.checkpoint import load_resume, read_policy
from d2ppo_core.pretrain_seeds import SeedStack
from support import SMALL_POLICIES, interrupted_at

OPTIONS = ("task=reach", "train.steps=12", "train.batch=16", "threads=1", "train.log_every=1")


def pretrain(*options: str) -> int:
    return cli.main(["pretrain", *OPTIONS, *options])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": value for part, rest in read_policy(path)[1].items() for name, value in rest.items()}


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", SMALL_POLICIES)
def test_seeds_together_are_the_seeds_alone(kind: str, reach_file: Path, tmp_path: Path) -> None:
    """Up to the rounding of batched products: weights, averages, metrics."""
    data = (f"data={reach_file}", *SMALL_POLICIES[kind])
    assert pretrain(*data, "seeds=[3,7]", f"run_dir={tmp_path / 'both'}") == 0
    for seed in (3, 7):
        alone, together = tmp_path / f"alone{seed}", tmp_path / "both" / f"seed={seed}"
        assert pretrain(*data, f"seed={seed}", f"run_dir={alone}") == 0
        expected = weights(alone / "policy.safetensors")
        for name, value in weights(together / "policy.safetensors").items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-4, msg=name)
        for ours, theirs in zip(lines(together), lines(alone), strict=True):
            assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3, abs=1e-4)
        assert read_policy(together / "policy.safetensors")[0].provenance.seed == seed
    other = weights(tmp_path / "both" / "seed=3" / "policy.safetensors")
    assert any(not torch.allclose(other[name], value, atol=1e-2) for name, value in expected.items())


def test_seeds_resume_bit_for_bit(reach_file: Path, tmp_path: Path) -> None:
    data = (f"data={reach_file}", *SMALL_POLICIES["mlp"], "seeds=[1,2]", "train.save_every=4")
    assert pretrain(*data, f"run_dir={tmp_path / 'whole'}") == 0
    whole = weights(tmp_path / "whole" / "seed=2" / "policy.safetensors")
    broken = tmp_path / "broken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedStack, "train_step", interrupted_at(6, SeedStack))
        assert pretrain(*data, f"run_dir={broken}") == 130
    states = load_resume(broken / "resume.pt")
    assert [state["step"] for state in states.values()] == [4, 4]
    held = states["2"]["network"]["trunk.first.weight"]
    assert held.untyped_storage().nbytes() == held.nbytes, "a view would be saved with the whole stack"
    assert pretrain(*data[:-2], "seeds=[1]", "train.save_every=4", f"run_dir={broken}", "resume=true") == 2
    assert pretrain(*data, f"run_dir={broken}", "resume=true") == 0
    for name, value in weights(broken / "seed=2" / "policy.safetensors").items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize("options", [("seeds=[1,1]",), ("seeds=[1,2]", "ema=epoch"), ("seeds=[1,2]", "run_dir=")])
def test_what_cannot_be_trained_together_is_refused(
    options: tuple[str, ...], reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(f"data={reach_file}", f"run_dir={tmp_path / 'run'}", *options) == 2
    assert "seeds= needs run_dir=" in capsys.readouterr().err
