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


def stepper(
    hidden: tuple[int, ...], dispersive: DispersiveConfig, device: torch.device, compile: bool
) -> Callable[[], int]:
    """The product's own training step on synthetic windows, batch 256; logging steps are not among them."""
    config = can_config(hidden)
    config.dispersive, config.train.compile = dispersive, compile
    spec = spec_of(config)
    demos = demonstrations(spec)
    trainer = Pretrainer(config, policy_of(config, demos, spec).to(device), demos, DispersiveLoss(dispersive), device)

    def step() -> int:
        trainer.train_step(trainer.step, log=False)
        trainer.step += 1
        return 1

    return step


def measure(seconds: float, device: torch.device, finish: Finish, compile: bool = False) -> dict[str, Any]:
    """For each network and form: steps per second, and how many times a step without dispersion it takes."""
    report: dict[str, Any] = {}
    for network, hidden in NETWORKS.items():
        report[network] = _in_turns(forms(), hidden, device, False, seconds, finish)
        for variant in VARIANTS if compile else ():
            torch._dynamo.reset()  # what other forms left would be looked through at every call
            found = _in_turns(_of_variant(variant), hidden, device, True, seconds, finish)
            report[network] |= {f"compiled: {name}": row for name, row in found.items()} | report[network]
    return report


def _of_variant(variant: str) -> dict[str, DispersiveConfig]:
    """The normalised forms of one variant, and none."""
    return {name: form for name, form in forms().items() if form.mode == "off" or f"normalised {variant}" in name}


def _in_turns(
    which: dict[str, DispersiveConfig],
    hidden: tuple[int, ...],
    device: torch.device,
    compile: bool,
    seconds: float,
    finish: Finish,
) -> dict[str, Any]:
    """Rates of these forms, taking turns with no dispersion."""
    clocks = take_turns({n: stepper(hidden, form, device, compile) for n, form in which.items()}, seconds, finish)
    return {
        name: clock.report() | {"times_no_dispersion": round(ratio(clocks, name, "none"), 3)}
        for name, clock in clocks.items()
    }
