"""Milliseconds from raw observations to raw action chunks, as `evaluate` and the robot call it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ..inference import Actor
from ..pretrain_setup import fresh_policy
from .slices import Work, take_turns
from .synthetic import can_config, raw_observation, spec_of

HIDDEN = (512, 512, 512)
POLICIES: dict[str, dict[str, Any]] = {
    "state 512x3, 20 DDPM steps": {"train_steps": 20, "steps": 20},
    "state 512x3, 5 DDIM steps": {"kind": "ddim", "train_steps": 20, "steps": 5},
    "ViT 512x3, 5 DDIM steps": {"kind": "ddim", "train_steps": 100, "steps": 5, "images": True},
}
BATCHES = (1, 50)


def worker(options: dict[str, Any], batch: int, device: torch.device) -> tuple[Work, list[float]]:
    """A call that makes a chunk for each of `batch` observations, and the list to which it adds its milliseconds."""
    config = can_config(HIDDEN, **options)
    policy = fresh_policy(config, spec_of(config)).to(device).eval()
    actor, raw = Actor(policy, config.seed), raw_observation(policy.spec, batch)
    seeds, calls = list(range(batch)), []

    def act() -> int:
        start = time.perf_counter()
        actor.act(raw, seeds, [len(calls)] * batch)  # waits for the device: it returns NumPy arrays
        calls.append(1e3 * (time.perf_counter() - start))
        return 1

    return act, calls


def measure(seconds: float, device: torch.device, threads: int) -> dict[str, Any]:
    """For each policy and batch: milliseconds a call. One observation is given one thread."""
    report: dict[str, Any] = {}
    for batch in BATCHES:
        torch.set_num_threads(1 if batch == 1 else threads)
        workers = {name: worker(options, batch, device) for name, options in POLICIES.items()}
        take_turns({name: act for name, (act, _) in workers.items()}, seconds)
        for name, (_, calls) in workers.items():
            best, median, late = np.percentile(calls[1:], (0, 50, 95)).round(3).tolist()
            report[f"{name}, batch {batch}"] = {
                "threads": torch.get_num_threads(),
                "best_ms": best,
                "median_ms": median,
                "percentile_95_ms": late,
                "calls": len(calls) - 1,
            }
    torch.set_num_threads(threads)
    return report
