"""Pre-training several seeds at once: their weights stacked, one forward and backward pass for all of them.

On a GPU a small network leaves most of the device idle, so a handful of seeds costs little more than one. Each seed is
a `Pretrainer` of its own with its own batches, noise and run folder; its weights, averages and moments are views of the
stacks, so that validating and saving are the single run's. One resume file holds them all: they go on together.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .checkpoint import load_resume, save_resume
from .conf.schema import Config, Ema
from .contract import PolicySpec
from .data.robomimic import Demonstrations
from .dispersive import DispersiveLoss
from .errors import UserError
from .observation import Observation
from .optim import learning_rate, set_learning_rate, warmed_decay
from .policies.base import PretrainLoss
from .pretrain import Pretrainer
from .pretrain_setup import policy_of, require_taps
from .progress import ProgressBar
from .runs import RESUME_FILE, RunFolder


def pretrain_seeds(config: Config, demos: Demonstrations, spec: PolicySpec, device: torch.device) -> None:
    """`d2ppo pretrain seeds=[0,1,2] run_dir=...`: one run folder for each seed."""
    if config.ema is not Ema.step or not config.run_dir or len(set(config.seeds)) != len(config.seeds):
        raise UserError("seeds= needs run_dir=, ema=step, and no seed twice; or train one seed at a time")
    if config.dispersive.differ:
        raise UserError("dispersive.differ repels other pairs for each seed; train one seed at a time, without seeds=")
    trainers, runs = [], []
    for seed in config.seeds:
        own = copy.deepcopy(config)
        own.seed, own.seeds, own.run_dir = seed, [], str(Path(config.run_dir) / f"seed={seed}")
        about = spec.provenance.model_copy(update={"seed": seed})
        policy = policy_of(own, demos, spec.model_copy(update={"provenance": about})).to(device)
        require_taps(policy, own.dispersive)
        trainers.append(Pretrainer(own, policy, demos, DispersiveLoss(own.dispersive), device))
    resume_file = Path(config.run_dir).absolute() / RESUME_FILE
    _require_free([Path(trainer.config.run_dir) for trainer in trainers], config)
    try:
        for trainer in trainers:
            runs.append(RunFolder(trainer.config, "pretrain", resume_file))
        fit_together(trainers, runs, resume_file)
    finally:
        for run in runs:
            run.__exit__()


def _require_free(folders: list[Path], config: Config) -> None:
    """Refuse before any folder is made."""
    used = [folder for folder in folders if (folder / "config.yaml").exists()]
    if used and not (config.overwrite or config.resume):
        raise UserError(
            f"{used[0]} already holds a run; go on with all seeds by resume=true, replace them by overwrite=true, or "
            "choose another run_dir"
        )


def fit_together(trainers: list[Pretrainer], runs: list[RunFolder], resume_file: Path) -> None:
    """Train to the end, or from the resume file to the end."""
    first, seeds = trainers[0], [str(trainer.config.seed) for trainer in trainers]
    if runs[0].resuming:
        states = load_resume(resume_file)
        if list(states) != seeds:
            raise UserError(f"{resume_file} is of the seeds {', '.join(states)}; resume with the same seeds=")
        for trainer, run, seed in zip(trainers, runs, seeds, strict=True):
            trainer.restore(states[seed])
            run.rewind(states[seed]["position"])
    stack = SeedStack(trainers)
    with ProgressBar(f"pre-training {len(trainers)} seeds", first.steps, first.step) as bar:
        while first.step < first.steps:
            every = stack.train_step(first.step, first.logs(first.step))
            for trainer, metrics, run in zip(trainers, every, runs, strict=True):
                trainer.after_step(metrics, run, bar)
            if first.due(first.train.save_every):
                saved = zip(seeds, trainers, runs, strict=True)
                save_resume(resume_file, {seed: trainer.state(run) for seed, trainer, run in saved})
            bar.advance(1, f"loss {every[0]['train/loss']:.4f}" if "train/loss" in every[0] else "")
    for trainer, run in zip(trainers, runs, strict=True):
        trainer.finish(run)


class SeedStack:
    """The weights of S seeds as tensors (S, ...), and the trainers' own as views of them."""

    def __init__(self, trainers: list[Pretrainer]) -> None:
        self.trainers, one = trainers, trainers[0]
        networks = [trainer.policy.network for trainer in trainers]
        self.weights = {name: p.requires_grad_() for name, p in _stacked(networks).items()}
        self.averages = _stacked([trainer.ema for trainer in trainers])
        train = one.train
        self.optimiser = torch.optim.AdamW(
            self.weights.values(), lr=train.optimiser.lr, weight_decay=train.weight_decay, fused=True
        )
        for name, stack in self.weights.items():
            self._share_moments(name, stack)
        self.loss = _Loss(one)

    def _share_moments(self, name: str, stack: Tensor) -> None:
        """AdamW's moments of all seeds in one tensor, and a view of it in each trainer's optimiser."""
        own = [(t.optimiser, dict(t.policy.network.named_parameters())[name]) for t in self.trainers]
        fresh: dict[str, Any] = {"step": torch.zeros((), device=stack.device)}
        together = dict(own[0][0].state.get(own[0][1]) or fresh)
        for moment in ("exp_avg", "exp_avg_sq"):
            each = [optimiser.state.get(p, {}).get(moment, torch.zeros_like(p)) for optimiser, p in own]
            together[moment] = torch.stack(each).detach()
        self.optimiser.state[stack] = together
        for seed, (optimiser, p) in enumerate(own):
            views = {moment: together[moment][seed] for moment in ("exp_avg", "exp_avg_sq")}
            optimiser.state[p] = {"step": together["step"], **views}

    def train_step(self, step: int, log: bool) -> list[dict[str, Any]]:
        """One gradient step of every seed; what each logs."""
        one, draws = self.trainers[0], [trainer.draw(step) for trainer in self.trainers]
        observation = Observation(
            torch.stack([seen.state for seen, _, _ in draws]),
            None if draws[0][0].images is None else torch.stack([seen.images for seen, _, _ in draws]),
        )
        x0 = torch.stack([x for _, x, _ in draws])  # [S, B, H, Da]
        noise = tuple(torch.stack(each) for each in zip(*(n for _, _, n in draws), strict=True))

        def of_seed(weights: dict[str, Tensor], *batch: Tensor | None) -> Any:
            return functional_call(self.loss, weights, batch)

        images = 0 if observation.images is not None else None
        apply = vmap(of_seed, in_dims=(0, 0, images, 0, *(0 for _ in noise)))
        named = {f"policy.network.{name}": stack for name, stack in self.weights.items()}
        imitation, dispersive, features = apply(named, observation.state, observation.images, x0, *noise)
        losses = [
            PretrainLoss(imitation[s], dispersive[s], {name: z[s] for name, z in features.items()})
            for s in range(len(self.trainers))
        ]
        set_learning_rate(self.optimiser, learning_rate(step, one.train.optimiser, one.steps))
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack([t.total(loss) for t, loss in zip(self.trainers, losses, strict=True)]).sum().backward()
        self.optimiser.step()
        decay = warmed_decay(one.train.ema_decay, step)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), 1 - decay)
        if not log:
            return [{} for _ in self.trainers]
        return [trainer.metrics(step, loss) for trainer, loss in zip(self.trainers, losses, strict=True)]


def _stacked(networks: list[nn.Module]) -> dict[str, Tensor]:
    """Parameters by name (S, ...); the networks' own become views of them."""
    named = [dict(network.named_parameters()) for network in networks]
    stacks = {}
    for name in named[0]:
        stacks[name] = torch.stack([parameters[name].detach() for parameters in named])
        for seed, parameters in enumerate(named):
            parameters[name].data = stacks[name][seed]
    return stacks


class _Loss(nn.Module):
    """A trainer's loss as a module's forward pass, which `functional_call` can give other weights."""

    def __init__(self, trainer: Pretrainer) -> None:
        super().__init__()
        self.policy, self.trainer = trainer.policy, trainer

    def forward(self, state: Tensor, images: Tensor | None, x0: Tensor, *noise: Tensor) -> tuple[Any, ...]:
        loss = self.trainer.loss(Observation(state, images), x0, noise)
        return loss.imitation, loss.dispersive, loss.features
