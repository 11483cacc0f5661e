"""Milliseconds from raw observations to raw action chunks, as `evaluate` and the robot call it."""

from __future__ import annotations

from typing import Any

import torch

from ..inference import Actor
from ..pretrain_setup import fresh_policy
from .slices import Finish, Work, take_turns
from .synthetic import can_config, raw_observation, spec_of

HIDDEN = (512, 512, 512)
POLICIES: dict[str, dict[str, Any]] = {
    "state 512x3, 20 DDPM steps": {"train_steps": 20, "steps": 20},
    "state 512x3, 5 DDIM steps": {"kind": "ddim", "train_steps": 20, "steps": 5},
    "ViT 512x3, 5 DDIM steps": {"kind": "ddim", "train_steps": 100, "steps": 5, "images": True},
}
BATCHES = (1, 50)


def worker(options: dict[str, Any], batch: int, device: torch.device) -> Work:
    """One call makes a chunk for each of `batch` observations; counted as one."""
    config = can_config(HIDDEN, **options)
    policy = fresh_policy(config, spec_of(config)).to(device).eval()
    actor, raw = Actor(policy, config.seed), raw_observation(policy.spec, batch)
    seeds, chunk = list(range(batch)), 0

    def act() -> int:
        nonlocal chunk
        actor.act(raw, seeds, [chunk] * batch)
        chunk += 1
        return 1

    return act


def measure(seconds: float, device: torch.device, finish: Finish, threads: int) -> dict[str, Any]:
    """For each policy and batch: milliseconds a call, median and best slice. One observation is given one thread."""
    report: dict[str, Any] = {}
    for batch in BATCHES:
        torch.set_num_threads(1 if batch == 1 else threads)
        workers = {name: worker(options, batch, device) for name, options in POLICIES.items()}
        for name, clock in take_turns(workers, seconds, finish).items():
            rates = clock.report()
            report[f"{name}, batch {batch}"] = rates | {
                "threads": torch.get_num_threads(),
                "milliseconds": round(1e3 / rates["median_slice_per_second"], 3),
                "milliseconds_best_slice": round(1e3 / rates["best_slice_per_second"], 3),
            }
    torch.set_num_threads(threads)
    return report
