"""`train.bf16=true`: matrix products are rounded, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from d2ppo_core import cli
from d2ppo_core.bench.synthetic import can_config, demonstrations, spec_of
from d2ppo_core.checkpoint import load_resume, read_policy
from d2ppo_core.conf.schema import DispersiveConfig
from d2ppo_core.dispersive import VARIANTS, DispersiveLoss
from d2ppo_core.pretrain import Pretrainer
from d2ppo_core.pretrain_setup import policy_of
from painted import painted_demonstrations, seeing_spec
from support import SMALL_POLICIES, interrupted_at

OPTIONS = ("task=reach", "train.steps=6", "train.batch=16", "threads=1", "train.log_every=1", "train.save_every=3")


def trainer_of(form: DispersiveConfig, bf16: bool, images: bool = False) -> Pretrainer:
    config = can_config((64,) * 3)
    config.dispersive, config.train.batch, config.train.bf16 = form, 64, bf16
    if images:
        spec, demos = seeing_spec(), painted_demonstrations((40, 40, 40))
        config.policy.horizon = spec.chunk_shape[0]
    else:
        spec = spec_of(config)
        demos = demonstrations(spec)
    return Pretrainer(config, policy_of(config, demos, spec), demos, DispersiveLoss(form), torch.device("cpu"))


def gradient(trainer: Pretrainer) -> torch.Tensor:
    trainer.total(trainer.loss(*trainer.draw(0))).backward()
    return torch.cat([p.grad.flatten() for p in trainer.policy.network.parameters()])


@pytest.mark.parametrize("images", [False, True], ids=["state", "images"])
@pytest.mark.parametrize("variant", ["none", *VARIANTS])
def test_the_gradient_is_that_of_float32_but_for_rounding(variant: str, images: bool) -> None:
    form = DispersiveConfig(mode="off") if variant == "none" else DispersiveConfig(variant=variant)
    exact, rounded = (gradient(trainer_of(form, bf16, images)) for bf16 in (False, True))
    assert rounded.dtype == torch.float32
    error = float((exact - rounded).norm() / exact.norm())
    assert 1e-5 < error < 0.1, "nothing was rounded, or too much"


def test_the_dispersive_loss_is_computed_in_float32() -> None:
    """Of features that are rounded: their squared distances, differences of large numbers, would not bear it."""
    trainer = trainer_of(DispersiveConfig(), bf16=True)
    loss = trainer.loss(*trainer.draw(0))
    (tap,) = trainer.taps
    assert loss.features[tap].dtype == torch.bfloat16
    assert torch.equal(loss.dispersive, trainer.dispersive.of_feature(loss.features[tap].float()))


@pytest.mark.parametrize("kind", SMALL_POLICIES)
def test_every_policy_trains_so_and_goes_on_bit_for_bit(
    kind: str, reach_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, *options: str) -> int:
        command = ("pretrain", *OPTIONS, f"data={reach_file}", *SMALL_POLICIES[kind], f"run_dir={tmp_path / name}")
        return cli.main([*command, *options])

    def losses(name: str) -> list[float]:
        return [json.loads(line)["train/loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    assert train("exact") == 0
    assert train("rounded", "train.bf16=true") == 0
    assert losses("rounded") == pytest.approx(losses("exact"), rel=0.02, abs=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "train_step", interrupted_at(4, Pretrainer))
        assert train("stopped", "train.bf16=true") == 130
    assert train("stopped", "train.bf16=true", "resume=true") == 0
    rounded, stopped = (read_policy(tmp_path / n / "policy.safetensors")[1]["raw"] for n in ("rounded", "stopped"))
    for name, value in rounded.items():
        assert value.dtype == torch.float32
        assert torch.equal(stopped[name], value), name
    moments = load_resume(tmp_path / "rounded" / "resume.pt")["optimiser"]["state"].values()
    assert all(state["exp_avg"].dtype == torch.float32 for state in moments)


def test_several_seeds_are_rounded_too(reach_file: Path, tmp_path: Path) -> None:
    command = ("pretrain", *OPTIONS, f"data={reach_file}", *SMALL_POLICIES["mlp"], "train.bf16=true")
    assert cli.main([*command, "seeds=[3,7]", f"run_dir={tmp_path / 'both'}"]) == 0
    assert cli.main([*command, "seed=7", f"run_dir={tmp_path / 'alone'}"]) == 0
    together, alone = (read_policy(tmp_path / n / "policy.safetensors")[1]["raw"] for n in ("both/seed=7", "alone"))
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-2, atol=5e-3, msg=name)
