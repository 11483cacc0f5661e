"""Learning-rate schedule, averaged weights, and the torch set-up that every training command shares."""

from __future__ import annotations

import math
import os

import torch
from torch import nn

from .conf.schema import Config, ScheduleConfig
from .errors import UserError


def setup_torch(config: Config) -> torch.device:
    """Fix the thread count (a part of exact repetition) and choose the device."""
    if config.threads < 0:
        raise UserError(f"threads is {config.threads}; give how many CPU threads torch may use, or 0 for one a core")
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # torchrun's processes share them
    torch.set_num_threads(config.threads or max(1, cores))
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device not in ("cpu", "cuda"):
        raise UserError(f"device is '{config.device}'; choose auto, cpu or cuda")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here; use device=cpu, or see `d2ppo doctor`")
    return torch.device(config.device)


def bfloat16(device: torch.device, wanted: bool) -> torch.autocast:
    """Where wanted, matrix products in bfloat16; weights, losses and what is averaged stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def learning_rate(unit: int, schedule: ScheduleConfig, total: int) -> float:
    """Linear warm-up from lr_min, then cosine down to lr_min, restarting after each cycle.

    unit s of a cycle of C with W warm-up units: s < W: lr_min + (lr - lr_min) s / W;
    else lr_min + (lr - lr_min) (1 + cos(pi (s - W) / (C - W))) / 2.
    """
    cycle = schedule.cycle or total
    s, span = unit % cycle, schedule.lr - schedule.lr_min
    if s < schedule.warmup:
        return schedule.lr_min + span * s / schedule.warmup
    return schedule.lr_min + span * 0.5 * (
        1 + math.cos(math.pi * (s - schedule.warmup) / max(1, cycle - schedule.warmup))
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Apply it to every group."""
    for group in optimiser.param_groups:
        group["lr"] = value


def finite(network: nn.Module) -> bool:
    """Whether every weight is a number. A weight that once is not stays so."""
    return bool(torch.stack([p.detach().isfinite().all() for p in network.parameters()]).all())


@torch.no_grad()
def average_into(ema: nn.Module, network: nn.Module, decay: float) -> None:
    """theta_ema <- decay theta_ema + (1 - decay) theta."""
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)


def warmed_decay(decay: float, updates: int) -> float:
    """Averages over few updates at first, so that the initial weights are soon forgotten."""
    return min(decay, (1 + updates) / (10 + updates))
