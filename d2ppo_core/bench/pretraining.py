"""Pre-training steps per second, without a dispersive loss and with each form of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..conf.schema import DispersiveConfig
from ..dispersive import VARIANTS, DispersiveLoss
from ..pretrain import Pretrainer
from ..pretrain_setup import policy_of
from .slices import Finish, ratio, take_turns
from .synthetic import can_config, demonstrations, spec_of

NETWORKS = {"512x3": (512,) * 3, "768x3": (768,) * 3}
PAIRS = 64  # rows of the batch whose pairs the sampled form uses


def forms() -> dict[str, DispersiveConfig]:
    """Every dispersive loss that is measured, by its name in the table."""
    found = {"none": DispersiveConfig(mode="off")}
    for variant in VARIANTS:
        found[f"normalised {variant}"] = DispersiveConfig(variant=variant)
        found[f"normalised {variant}, pairs={PAIRS}"] = DispersiveConfig(variant=variant, pairs=PAIRS)
    return found | {f"{mode} infonce_l2": DispersiveConfig(mode=mode) for mode in ("release", "paper")}


def stepper(hidden: tuple[int, ...], dispersive: DispersiveConfig, device: torch.device) -> Callable[[], int]:
    """The product's own training step on synthetic windows, batch 256; logging steps are not among them."""
    config = can_config(hidden)
    config.dispersive = dispersive
    spec = spec_of(config)
    demos = demonstrations(spec)
    trainer = Pretrainer(config, policy_of(config, demos, spec).to(device), demos, DispersiveLoss(dispersive), device)

    def step() -> int:
        trainer.train_step(trainer.step, log=False)
        trainer.step += 1
        return 1

    return step


def measure(seconds: float, device: torch.device, finish: Finish) -> dict[str, Any]:
    """For each network and form: steps per second, and how many times a step without dispersion it takes."""
    report: dict[str, Any] = {}
    for network, hidden in NETWORKS.items():
        clocks = take_turns({name: stepper(hidden, form, device) for name, form in forms().items()}, seconds, finish)
        report[network] = {
            name: clock.report() | {"times_no_dispersion": round(ratio(clocks, name, "none"), 3)}
            for name, clock in clocks.items()
        }
    return report
