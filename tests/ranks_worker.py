"""What one process and two must agree on, and the script that each of the two runs: `ranks_worker.py DATA FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from d2ppo_core import cli
from d2ppo_core.conf.schema import Config, DispersiveConfig, PolicyConfig, ScheduleConfig, TrainConfig
from d2ppo_core.dispersive import VARIANTS, DispersiveLoss
from d2ppo_core.distributed import Ranks, join
from d2ppo_core.pretrain import Pretrainer
from d2ppo_core.pretrain_setup import policy_of
from d2ppo_core.runs import RunFolder
from painted import painted_demonstrations, seeing_spec

MLP = "policy.network.hidden=[16,16,16]"
OPTIONS = ("task=reach", "train.steps=12", "train.batch=16", "threads=1", "train.log_every=1")
RUNS: dict[str, tuple[str, ...]] = {
    "imitation": (MLP, "dispersive=off", "dispersive.watch=[early,late]"),
    "pairs": (MLP, "dispersive.differ=0.3", "dispersive.pairs=10", "dispersive.anneal=true"),
    "paper": (MLP, "dispersive=paper", "dispersive.layer=all", "ema=epoch"),
    "unet": (
        "policy=diffusion_unet",
        "policy.network.width=8",
        "policy.network.groups=4",
        "dispersive.shared_step=true",
        "train.batching=trajectory",
    ),
    "transformer": (
        "policy=gaussian_transformer",
        "policy.network.width=16",
        "dispersive.variant=hinge",
        "dispersive.layer=late",
    ),
}
KILLED = (MLP, "train.steps=400", "train.save_every=20")
LOSSES = [
    *(DispersiveConfig(mode=m, variant=v) for m in ("normalised", "release") for v in VARIANTS),
    *(DispersiveConfig(mode="paper", variant=v) for v in VARIANTS if v != "covariance"),
    *(DispersiveConfig(variant=v, differ=0.4) for v in VARIANTS if v != "covariance"),
    *(DispersiveConfig(variant=v, pairs=9) for v in VARIANTS),
]


def gradients(ranks: Ranks) -> list[Tensor]:
    """By the weights of a small network, float64: a mean over the rows, and each dispersive loss of the whole batch."""
    draw, found = torch.Generator().manual_seed(0), []
    x, chunks = torch.randn(12, 6, generator=draw).double(), torch.randn(12, 3, 2, generator=draw)
    for config in LOSSES:
        network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10)).double()
        for p in network.parameters():
            nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
        loss = DispersiveLoss(config)
        loss.whole = ranks.whole
        features = {"early": network(ranks.rows(x))}
        dispersion = loss(features, ("early",), loss.pairs_of(ranks.rows(chunks)))
        (features["early"].exp().mean() + dispersion).backward()
        ranks.average_gradients(network)
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))  # type: ignore[union-attr]
    return found


def train_on_images(folder: Path, ranks: Ranks) -> None:
    """A policy that sees, with randomly shifted images, into `folder`."""
    train = TrainConfig(steps=12, batch=6, holdout=0.3, log_every=3, validate_every=4)
    config = Config(seed=3, policy=PolicyConfig(horizon=3), train=train, run_dir=str(folder))
    config.train.optimiser = ScheduleConfig(lr=1e-2, lr_min=1e-3)
    demos, loss = painted_demonstrations(), DispersiveLoss(config.dispersive)
    policy = policy_of(config, demos, seeing_spec())
    trainer = Pretrainer(config, policy, demos, loss, torch.device("cpu"), ranks)
    if ranks.rank > 0:
        trainer.follow()
        return
    with RunFolder(config, "pretrain") as run:
        trainer.fit(run)


def everything(data: str, folder: Path, ranks: Ranks) -> list[Tensor]:
    """Every run into a folder of its own; returns the gradients."""
    for name, options in RUNS.items():
        code = cli.main(["pretrain", f"data={data}", f"run_dir={folder / name}", *OPTIONS, *options])
        assert code == 0, name
    train_on_images(folder / "images", ranks)
    return gradients(ranks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder = sys.argv[1], Path(sys.argv[2])
    ranks = join(torch.device("cpu"))
    torch.save(everything(data, folder, ranks), folder / f"gradients-{ranks.rank}.pt")
    again = ["pretrain", f"data={data}", f"run_dir={folder / 'whole'}", *OPTIONS, *KILLED]
    assert cli.main(again) == 0
    sys.exit(cli.main(again))  # the folder is taken, as the first process finds
