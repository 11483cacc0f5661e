"""Small demonstrations of the toy task, a way to run commands as a user does, and the comparison of two runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2ppo_core.checkpoint import read_policy
from d2ppo_core.data.robomimic import Episode

ENV_ARGS = {"env_name": "Reach", "env_version": "1", "type": 1, "env_kwargs": {"control_freq": 20, "simulator": "toy"}}


SMALL_POLICIES = {  # of each kind of network, for the toy task
    "mlp": ("policy.network.hidden=[16,16,16]",),
    "unet": ("policy=diffusion_unet", "policy.network.width=8", "policy.network.groups=4"),
    "gmm": ("policy=gmm_mlp", "policy.network.hidden=[16,16,16]", "policy.sampler.learn_std=true"),
    "transformer": ("policy=gaussian_transformer", "policy.network.width=16"),
}


def interrupted_at(step: int, trainer: type) -> Callable[..., Any]:
    """`train_step` of this class, interrupted by Ctrl-C before one gradient step; for `monkeypatch`."""
    original = trainer.train_step

    def train_step(self: Any, now: int, log: bool) -> Any:
        if now == step:
            raise KeyboardInterrupt
        return original(self, now, log)

    return train_step


def reach_episodes(count: int = 12, length: int = 20, seed: int = 0) -> list[Episode]:
    """Noisy straight walks to a goal in the plane."""
    rng, episodes = np.random.default_rng(seed), []
    for _ in range(count):
        position, goal = rng.uniform(-1, 1, 2), rng.uniform(-1, 1, 2)
        positions, actions = [], []
        for _ in range(length):
            action = np.clip((goal - position) / 0.1 + rng.normal(0, 0.2, 2), -1, 1)
            positions.append(position)
            actions.append(action)
            position = position + 0.1 * action
        episodes.append(
            Episode(
                obs={"position": np.array(positions), "goal": np.tile(goal, (length, 1))},
                actions=np.array(actions),
                rewards=np.zeros(length),
                dones=np.zeros(length, dtype=int),
            )
        )
    return episodes


def command(*arguments: str) -> list[str]:
    """The command line of `d2ppo` in this interpreter."""
    return [sys.executable, "-m", "d2ppo_core.cli", *arguments]


def d2ppo(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `d2ppo ARGUMENTS` in a process of its own."""
    result = subprocess.run(
        command(*arguments),
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def assert_same_run(left: Path, right: Path) -> None:
    """Same contract but for the metrics' wall-clock, same tensors bit for bit, same metrics."""
    (spec_left, parts_left), (spec_right, parts_right) = (
        read_policy(left / "policy.safetensors"),
        read_policy(right / "policy.safetensors"),
    )
    specs = [spec.model_dump() for spec in (spec_left, spec_right)]
    for spec in specs:
        spec["provenance"].pop("code_version")  # says whether the checkout has changed meanwhile
        spec["provenance"].pop("dataset")
    assert specs[0] == specs[1]
    for part, tensors in parts_left.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, parts_right[part][name]), f"{part}.{name} differs"
    lines = [
        [
            {k: v for k, v in line.items() if k != "seconds"}
            for line in map(json.loads, (p / "metrics.jsonl").read_text().splitlines())
        ]
        for p in (left, right)
    ]
    assert lines[0] == lines[1]
