"""Stage 1: behaviour cloning of demonstrations, with a dispersive loss (D2PPO Sec. 3.1)."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .checkpoint import load_resume, save_policy, save_resume
from .compiling import compiled
from .conf.schema import Config, Ema
from .data.batches import make_batches
from .data.robomimic import Demonstrations
from .dispersive import DispersiveLoss
from .distributed import ALONE, Ranks, join
from .errors import UserError
from .features import statistics
from .keyed import generator
from .networks.vision import draw_shift, random_shift
from .observation import Observation
from .optim import average_into, bfloat16, finite, learning_rate, set_learning_rate, setup_torch, warmed_decay
from .policies.base import Policy, PretrainLoss
from .pretrain_setup import (
    check_training,
    load_demonstrations,
    policy_of,
    require_same_run,
    require_taps,
    split_windows,
)
from .progress import ProgressBar
from .runs import RunFolder

VALIDATION_WINDOWS = 1024  # held-out windows used for the loss; a quarter of them for sampled actions


def main(config: Config) -> None:
    """`d2ppo pretrain`: everything is checked before the run folder is made."""
    device = setup_torch(config)
    check_training(config.train)
    dispersive = DispersiveLoss(config.dispersive)
    ranks = join(device)
    if config.seeds and ranks.count > 1:
        raise UserError("seeds= trains several policies in one process; leave it out, or start without torchrun")
    if config.train.compile and (config.seeds or ranks.count > 1):
        raise UserError("train.compile=true is for one policy in one process; leave it out, or seeds= (or torchrun)")
    demos, spec = load_demonstrations(config)
    if config.seeds:
        from .pretrain_seeds import pretrain_seeds

        pretrain_seeds(config, demos, spec, device)
        return
    policy = policy_of(config, demos, spec).to(device)
    require_taps(policy, config.dispersive)
    require_same_run(config, demos, ranks)
    trainer = Pretrainer(config, policy, demos, dispersive, device, ranks)
    if ranks.rank > 0:
        trainer.follow()
        return
    with RunFolder(config, "pretrain") as run:
        trainer.fit(run)


class Pretrainer:
    """One pre-training run. Step s alone names its batch and noise, so resuming needs no generator state."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        demos: Demonstrations,
        dispersive: DispersiveLoss,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.train, self.device, self.ranks = config, config.train, device, ranks
        self.policy, self.dispersive = policy, dispersive
        dispersive.whole = ranks.whole
        self.ema = copy.deepcopy(policy.network).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            policy.network.parameters(), lr=self.train.optimiser.lr, weight_decay=self.train.weight_decay, fused=True
        )
        self.windows, self.held_out = split_windows(config, policy, demos, device)
        self.batches = make_batches(self.windows, self.train, config.seed)
        ranks.require_shares(self.batches.batch, len(self.windows))
        self.steps = self._total_steps()
        self.taps = policy.network.tap(config.dispersive.layer)
        self.step, self.best, self.warned = 0, math.inf, False
        self.last_validation: dict[str, float] = {}
        if self.train.compile:
            weights = list(policy.network.parameters())
            self.loss = compiled(self.loss, self.draw(0), self.total, weights)  # type: ignore[method-assign]

    def _total_steps(self) -> int:
        total = self.train.epochs * self.batches.per_epoch if self.train.epochs > 0 else self.train.steps
        if total < 1:
            raise UserError(f"train.steps={self.train.steps} trains nothing; give at least 1, or train.epochs")
        return total

    # --- the loop -------------------------------------------------------------------------------------------------

    def fit(self, run: RunFolder) -> None:
        """Train to the end, or from the resume file to the end."""
        if run.resuming:
            state = load_resume(run.resume_file)
            self.restore(state)
            run.rewind(state["position"])
        self.ranks.from_first(self.state(run))
        with ProgressBar("pre-training", self.steps, self.step) as bar:
            while self.step < self.steps:
                metrics = self.train_step(self.step, self.logs(self.step))
                self.after_step(metrics, run, bar)
                if self.due(self.train.save_every):
                    self.ranks.require_same_weights(self.policy.network, self.step)
                    save_resume(run.resume_file, self.state(run))
                bar.advance(1, f"loss {metrics['train/loss']:.4f}" if "train/loss" in metrics else "")
        self.finish(run)

    def follow(self) -> None:
        """`fit` of the other processes of a run: they learn along, and leave files and validation to the first."""
        self.restore(self.ranks.from_first(None))
        while self.step < self.steps:
            self.train_step(self.step, self.logs(self.step))
            self.step += 1
            if self.due(self.train.save_every):
                self.ranks.require_same_weights(self.policy.network, self.step)

    def after_step(self, metrics: dict[str, Any], run: RunFolder, bar: ProgressBar) -> None:
        """Count the step; check, validate, log and keep policies as they are due."""
        self.step += 1
        keeps = self.train.keep_every and self.step % self.train.keep_every == 0
        if metrics or keeps or self.due(self.train.validate_every) or self.due(self.train.save_every):
            self._require_finite(metrics, run)
        metrics |= self._validate(run) if self.due(self.train.validate_every) else {}
        if metrics:
            run.log(self.step, metrics)
            self._warn(metrics, bar)
        if keeps:
            self.save(run, f"policy-{self.step}.safetensors", metrics)

    def finish(self, run: RunFolder) -> None:
        """The last policy and the summary."""
        policy = self.save(run, "policy.safetensors", self.last_validation)
        print(f"policy: {policy}")
        run.finish(
            {
                "policy": str(policy),
                "steps": self.steps,
                "best_validation_loss": self.best if math.isfinite(self.best) else None,  # JSON knows no infinity
                **self.last_validation,
                "windows": len(self.windows),
                "dataset_digest": self.policy.spec.provenance.dataset_digest,
            }
        )

    def train_step(self, step: int, log: bool) -> dict[str, Any]:
        """One gradient step: imitation + λ · dispersive loss (D2PPO Eq. 6), AdamW, EMA."""
        loss = self.loss(*self.draw(step))
        total = self.total(loss)
        set_learning_rate(self.optimiser, learning_rate(step, self.train.optimiser, self.steps))
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        self.ranks.average_gradients(self.policy.network)
        self.optimiser.step()
        self._update_ema(step)
        return self.metrics(step, loss) if log else {}

    def loss(self, observation: Observation, x0: Tensor, noise: tuple[Tensor, ...]) -> PretrainLoss:
        """What a batch teaches: imitation and dispersion."""
        with bfloat16(self.device, self.train.bf16):
            return self.policy.loss(observation, x0, noise, self.dispersive)

    def draw(self, step: int) -> tuple[Observation, Tensor, tuple[Tensor, ...]]:
        """Observations, chunks (B, H, Da) and noise of a step: this process's rows of them."""
        index = self.batches(step)
        observation, x0 = self.windows.gather(self.ranks.rows(index).to(self.device))
        draw = generator(self.config.seed, "diffusion", step)
        noise = tuple(self.ranks.rows(n).to(self.device) for n in self.policy.training_noise(len(index), draw))
        return self._shifted(observation, len(index), draw), x0, noise

    def total(self, loss: PretrainLoss) -> Tensor:
        """imitation + λ · dispersive loss."""
        if not self.dispersive.active:
            return loss.imitation
        return loss.imitation + self.dispersive.weight_at(self.step, self.steps) * loss.dispersive

    def metrics(self, step: int, loss: PretrainLoss) -> dict[str, Any]:
        """What is logged of a step: of the whole batch."""
        loss = replace(loss, imitation=self.ranks.mean(loss.imitation))
        self.dispersion = self.dispersive.diagnose(loss.features, self.taps, loss.pairs)
        return {
            "train/loss": self.total(loss).item(),
            "train/imitation_loss": loss.imitation.item(),
            "train/lr": learning_rate(step, self.train.optimiser, self.steps),
            "train/epoch": step / self.batches.per_epoch,
            **self.dispersion.metrics(),
            **self._watched(loss.features),
        }

    def _watched(self, features: dict[str, Tensor]) -> dict[str, float]:
        """Statistics of the layers in `dispersive.watch`, the first tap of each."""
        found: dict[str, float] = {}
        for layer in self.config.dispersive.watch:
            z = self.dispersive.whole(features[self.policy.network.tap(layer)[0]].detach().float())
            found |= statistics(z, f"features/{layer}")
        return found

    def _shifted(self, observation: Observation, batch: int, draw: torch.Generator) -> Observation:
        """Images moved by a few pixels at random, each on its own (while training only); drawn for the whole batch."""
        vision = self.policy.spec.network.vision
        if observation.images is None or vision.shift == 0:
            return observation
        offsets = draw_shift((batch, *observation.images.shape[1:3]), vision.shift, draw)
        offsets = self.ranks.rows(offsets).to(self.device)
        return replace(observation, images=random_shift(observation.images, offsets, vision.shift))

    def _update_ema(self, step: int) -> None:
        if self.config.ema is Ema.step:
            average_into(self.ema, self.policy.network, warmed_decay(self.train.ema_decay, step))
            return
        epoch, position = divmod(step + 1, self.batches.per_epoch)  # `epoch` epochs are complete
        if position == 0:
            if epoch < self.train.ema_start_epoch:
                self.ema.load_state_dict(self.policy.network.state_dict())
            elif epoch % self.train.ema_every_epochs == 0:
                average_into(self.ema, self.policy.network, self.train.ema_decay)

    def logs(self, step: int) -> bool:
        """Whether this step is logged."""
        return step % self.train.log_every == 0 or step + 1 == self.steps

    def due(self, period: int) -> bool:
        """Whether what happens every `period` steps, and at the end, happens now."""
        return self.step == self.steps or (period > 0 and self.step % period == 0)

    def _require_finite(self, metrics: dict[str, Any], run: RunFolder) -> None:
        """Stop a diverged run before it logs or saves anything; what it saved before is good."""
        if not math.isfinite(metrics.get("train/loss", 0.0)) or not finite(self.policy.network):
            raise UserError(
                f"the loss is not finite at step {self.step}: training diverged; last good state: {run.saved()}; "
                "lower train.optimiser.lr or dispersive.weight"
            )

    def _warn(self, metrics: dict[str, Any], bar: ProgressBar) -> None:
        """Once, about a dispersive loss that does nothing or does harm."""
        if self.dispersive.active and "train/loss" in metrics and not self.warned:
            text = self.dispersive.warning(self.dispersion)
            if text and self.step > 1:
                bar.warn(text)
                self.warned = True

    # --- validation and files -----------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, run: RunFolder) -> dict[str, float]:
        """Held-out imitation loss and error of sampled actions: the averaged weights, the same noise each time."""
        if self.held_out is None:
            return {}
        count = min(VALIDATION_WINDOWS, len(self.held_out))
        draw = generator(self.config.seed, "validation")
        index = torch.randperm(len(self.held_out), generator=draw)[:count].to(self.device)
        observation, x0 = self.held_out.gather(index)
        noise = tuple(n.to(self.device) for n in self.policy.training_noise(count, draw))
        raw, self.policy.network = self.policy.network, self.ema
        loss = self.policy.loss(observation, x0, noise).imitation.item()
        few = max(1, count // 4)
        chunk_noise = torch.randn((few, *self.policy.noise_shape), generator=draw).to(self.device)
        chunk = self.policy.sample(observation[:few], chunk_noise, explore=False).chunk
        self.policy.network = raw
        raw_units = self.policy.normalizer.denormalize_action  # 1 = 0.05 m or 0.5 rad
        error = (raw_units(chunk) - raw_units(x0[:few])).square().mean().sqrt().item()
        self.last_validation = {"validation/loss": loss, "validation/action_rmse": error}
        if loss < self.best:
            self.best = loss
            self.save(run, "best.safetensors", self.last_validation)
        return self.last_validation

    def save(self, run: RunFolder, name: str, metrics: dict[str, float]) -> Any:
        """Write the policy, raw and averaged weights, with its latest figures."""
        kept = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        spec = self.policy.spec
        spec = spec.model_copy(update={"provenance": spec.provenance.model_copy(update={"metrics": kept})})
        save_policy(
            run.path / name, spec, {"raw": self.policy.network, "ema": self.ema, "normalizer": self.policy.normalizer}
        )
        return run.path / name

    def state(self, run: RunFolder) -> dict[str, Any]:
        """Everything that the remaining steps depend on."""
        return {
            "step": self.step,
            "best": self.best,
            "network": self.policy.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "first_rms": self.dispersive.first_rms,
            "warned": self.warned,
            "validation": self.last_validation,
            "position": run.position(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.step, self.best, self.warned = state["step"], state["best"], state["warned"]
        self.policy.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.dispersive.first_rms, self.last_validation = state["first_rms"], state["validation"]
