"""Pre-training steps per second, without a dispersive loss and with each form of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..conf.schema import DispersiveConfig
from ..dispersive import VARIANTS, DispersiveLoss
from ..pretrain import Pretrainer
from ..pretrain_setup import policy_of
from .slices import Finish, Work, ratio, take_turns
from .synthetic import can_config, demonstrations, spec_of

NETWORKS = {"512x3": (512,) * 3, "768x3": (768,) * 3}
PAIRS = 64  # rows of the batch whose pairs the sampled form uses
ROUNDED = ("none", "normalised infonce_l2", f"normalised infonce_l2, pairs={PAIRS}")  # measured in bfloat16, too


def forms() -> dict[str, DispersiveConfig]:
    """Every dispersive loss that is measured, by its name in the table."""
    found = {"none": DispersiveConfig(mode="off")}
    for variant in VARIANTS:
        found[f"normalised {variant}"] = DispersiveConfig(variant=variant)
        found[f"normalised {variant}, pairs={PAIRS}"] = DispersiveConfig(variant=variant, pairs=PAIRS)
    return found | {f"{mode} infonce_l2": DispersiveConfig(mode=mode) for mode in ("release", "paper")}


def stepper(
    hidden: tuple[int, ...], dispersive: DispersiveConfig, device: torch.device, **train: bool
) -> Callable[[], int]:
    """The product's own training step on synthetic windows, batch 256; logging steps are not among them."""
    config = can_config(hidden)
    config.dispersive, config.train = dispersive, replace(config.train, **train)
    spec = spec_of(config)
    demos = demonstrations(spec)
    trainer = Pretrainer(config, policy_of(config, demos, spec).to(device), demos, DispersiveLoss(dispersive), device)

    def step() -> int:
        trainer.train_step(trainer.step, log=False)
        trainer.step += 1
        return 1

    return step


def measure(seconds: float, device: torch.device, finish: Finish, compile: bool = False) -> dict[str, Any]:
    """For each network and form: steps per second, and how many times a step without dispersion it takes.

    Compiled forms are told against a compiled step without dispersion, those in bfloat16 against one in float32.
    """
    report: dict[str, Any] = {}
    for network, hidden in NETWORKS.items():
        rivals = {name: stepper(hidden, form, device) for name, form in forms().items()}
        rivals |= {f"bf16: {name}": stepper(hidden, forms()[name], device, bf16=True) for name in ROUNDED}
        report[network] = _in_turns(rivals, seconds, finish)
        for variant in VARIANTS if compile else ():
            chosen = {n: form for n, form in forms().items() if n == "none" or n.startswith(f"normalised {variant}")}
            rivals = {name: stepper(hidden, form, device, compile=True) for name, form in chosen.items()}
            for name, row in _in_turns(rivals, seconds, finish).items():
                report[network].setdefault(f"compiled: {name}", row)
    return report


def _in_turns(rivals: dict[str, Work], seconds: float, finish: Finish) -> dict[str, Any]:
    clocks = take_turns(rivals, seconds, finish)
    return {
        name: clock.report() | {"times_no_dispersion": round(ratio(clocks, name, "none"), 3)}
        for name, clock in clocks.items()
    }
