"""`d2ppo finetune`: rollout, advantage, PPO, again and again (DPPO Algorithm 1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..checkpoint import load_resume, save_policy, save_resume
from ..conf.schema import Config, TaskConfig, Truncation
from ..contract import require_match
from ..envs import VectorEnv
from ..errors import UserError
from ..evaluate import evaluate, evaluation_env, evaluation_seeds
from ..inference import Actor
from ..network_specs import AnySamplerSpec
from ..optim import finite, learning_rate, set_learning_rate, setup_torch
from ..policies.base import Policy
from ..progress import ProgressBar
from ..runs import RunFolder
from ..scale.ray_env import environments
from ..statistics import wilson
from ..tasks import validated
from ..version import code_version
from .advantage import RewardScaler, gae
from .ppo import PPO
from .rollout import Collector, Rollout
from .setup import check_algorithm, check_minibatch, fresh_critic, prepare_policy, rollout_request, starting_policy


def main(config: Config) -> None:
    """Everything is checked before the run folder is made and before a simulator starts."""
    device = setup_torch(config)
    policy, task = starting_policy(config, device)
    check_algorithm(config.algorithm, config.rollout)
    prepare_policy(policy, config)
    check_minibatch(config, policy.spec.sampler.finetuned_steps)
    critic = fresh_critic(policy, config).to(device)
    with RunFolder(config, "finetune") as run:
        env = environments(config.cluster, task.simulator, rollout_request(config, task, policy))
        try:
            require_match(policy.spec, env.observation, env.action, "simulator")
            if config.scratch:
                about = policy.spec.provenance.model_copy(update={"simulator": env.simulator})
                policy.spec = policy.spec.model_copy(update={"provenance": about})
            Finetuner(config, task, policy, critic, env).fit(run)
        finally:
            env.close()


class Finetuner:
    """One fine-tuning run. An iteration is named by its number, so resuming needs weights and counters only."""

    def __init__(
        self, config: Config, task: TaskConfig, policy: Policy, critic: nn.Module, env: VectorEnv
    ) -> None:
        self.config, self.algorithm, self.task = config, config.algorithm, task
        self.policy, self.critic = policy, critic
        self.ppo = PPO(policy, critic, config.algorithm)
        vision = policy.spec.network.vision
        shift = vision.shift if vision and self.algorithm.augment else 0
        actor = Actor(policy, config.seed, explore=True)
        self.collector = Collector(actor, critic, env, config.rollout.chunks, config.seed, shift)
        self.scaler = RewardScaler(env.num_envs)
        self.first_sampler = policy.spec.sampler
        self.iteration, self.control_steps, self.best = 0, 0, -math.inf
        self.must_reset, self.evaluation_env = True, None
        self.metrics: dict[str, Any] = {}  # of the latest iteration
        self.last_success: dict[str, float] = {}

    # --- the loop -------------------------------------------------------------------------------------------------

    def fit(self, run: RunFolder) -> None:
        """Fine-tune to the end, or from the resume file to the end."""
        if run.resuming:
            self.restore(load_resume(run.resume_file), run)
        total = self.algorithm.iterations
        try:
            with ProgressBar("fine-tuning", total, self.iteration) as bar:
                while self.iteration < total:
                    self.metrics = metrics = self._require_finite(self.train_iteration(), run)
                    self._keep(run, metrics)
                    run.log(self.iteration, metrics)
                    if self._every(self.algorithm.save_every):
                        save_resume(run.resume_file, self.state(run))
                        self.must_reset = True  # a resumed run starts with new episodes; so does this one
                    bar.advance(1, f"success {metrics['rollout/success_rate']:.2f}")
        finally:
            if self.evaluation_env is not None:
                self.evaluation_env.close()
        path = self.save(run, "policy.safetensors", self.metrics)
        print(f"policy: {path}")
        run.finish(
            {
                "policy": str(path),
                "iterations": total,
                "control_steps": self.control_steps,
                "last_rollout_success": self.last_success,
            }
        )

    def train_iteration(self) -> dict[str, Any]:
        """Rollout, advantage, update."""
        self._anneal()
        if self.must_reset or self.config.rollout.reset_each_iteration:
            self.collector.reset(self.iteration)
            self.must_reset = False
        self.critic.eval()
        rollout = self.collector.collect(self.iteration)
        advantage = self._advantage(rollout)
        actor_rate, critic_rate = self._learning_rates()
        update = self.ppo.update(
            rollout,
            advantage,
            self.config.minibatch,
            (self.config.seed, self.iteration),
            train_actor=self.iteration >= self.algorithm.critic_warmup,
        )
        self.iteration += 1
        self.control_steps += rollout.control_steps
        return {
            **self._rollout_metrics(rollout, advantage),
            **update,
            "train/actor_lr": actor_rate,
            "train/critic_lr": critic_rate,
        }

    def _require_finite(self, metrics: dict[str, Any], run: RunFolder) -> dict[str, Any]:
        """The metrics, or a stop to a diverged run before it logs or saves anything; what it saved before is good."""
        numbers = all(math.isfinite(v) for v in metrics.values())
        if not (numbers and finite(self.policy.network) and finite(self.critic)):
            raise UserError(
                f"a loss is not finite in iteration {self.iteration}: training diverged; last good state: "
                f"{run.saved()}; lower algorithm.actor.lr or algorithm.critic.lr"
            )
        return metrics

    def _advantage(self, r: Rollout) -> torch.Tensor:
        """GAE of the scaled rewards under the chosen treatment of time-outs, (T, N)."""
        reward = self.scaler(r.reward, r.first) if self.algorithm.reward_scaling else r.reward
        reward = torch.as_tensor(reward * self.algorithm.reward_const, dtype=torch.float32, device=r.value.device)
        terminated, ended, next_value = r.terminated, r.terminated | r.truncated, r.next_value
        if self.config.truncation is Truncation.leak:  # as released: the next episode's value, and no cut
            ended, next_value = (
                r.terminated,
                torch.where(torch.as_tensor(r.truncated, device=r.value.device), r.reset_value, r.next_value),
            )
        elif self.config.truncation is Truncation.terminal:
            terminated = ended
        flags = [torch.as_tensor(f, dtype=torch.float32, device=r.value.device) for f in (terminated, ended)]
        return gae(reward, r.value, next_value, *flags, self.algorithm.discount, self.algorithm.gae_lambda)

    def _learning_rates(self) -> tuple[float, float]:
        """The critic's schedule counts every iteration, the actor's those after the critic's warm-up."""
        a, total = self.algorithm, self.algorithm.iterations
        actor = learning_rate(max(0, self.iteration - a.critic_warmup), a.actor, max(1, total - a.critic_warmup))
        critic = learning_rate(self.iteration, a.critic, total)
        set_learning_rate(self.ppo.actor_optimiser, actor)
        set_learning_rate(self.ppo.critic_optimiser, critic)
        return actor, critic

    def _anneal(self) -> None:
        """Lower the exploration floor and K' as asked (DPPO's options; off by default)."""
        a, first, now = self.algorithm, self.first_sampler, self.policy.spec.sampler
        changes: dict[str, Any] = {}
        if a.sampling_std_final >= 0:
            share = self.iteration / max(1, a.iterations - 1)
            changes["min_sampling_std"] = first.min_sampling_std + share * (
                a.sampling_std_final - first.min_sampling_std
            )
        if a.finetuned_steps_every > 0:
            drops = self.iteration // a.finetuned_steps_every
            changes["finetuned_steps"] = max(1, first.finetuned_steps - a.finetuned_steps_drop * drops)
        if not changes:
            return
        if changes.get("finetuned_steps", now.finetuned_steps) < now.finetuned_steps:
            self.policy.freeze_base()  # the steps given up keep what was learned so far
        self.policy.set_sampler(now.model_copy(update=changes))
        self.ppo.set_finetuned_steps()

    def _rollout_metrics(self, r: Rollout, advantage: torch.Tensor) -> dict[str, float]:
        """Success of the episodes that ended in the window (with exploration noise), and the critic's quality."""
        outcomes = r.finished_successes()
        rate = wilson(sum(outcomes), len(outcomes)) if outcomes else None
        self.last_success = (
            {"rate": rate.value, "low": rate.low, "high": rate.high, "episodes": len(outcomes)} if rate else {}
        )
        returns = advantage + r.value
        explained = 1 - advantage.var() / returns.var().clamp(min=1e-12)  # 1: the critic predicts every return
        return {
            "rollout/success_rate": rate.value if rate else 0.0,
            "rollout/success_low": rate.low if rate else 0.0,
            "rollout/success_high": rate.high if rate else 1.0,
            "rollout/episodes": len(outcomes),
            "rollout/mean_chunk_reward": float(r.reward.mean()),
            "rollout/control_steps": self.control_steps,
            "rollout/value": float(r.value.mean()),
            "rollout/explained_variance": float(explained),
        }

    def _every(self, period: int) -> bool:
        return self.iteration == self.algorithm.iterations or (period > 0 and self.iteration % period == 0)

    # --- evaluation and files -------------------------------------------------------------------------------------

    def _keep(self, run: RunFolder, metrics: dict[str, Any]) -> None:
        """Evaluate where asked; keep the best policy and the numbered ones."""
        a, score = self.algorithm, metrics["rollout/success_rate"]
        if a.evaluate_every and self._every(a.evaluate_every):
            rate = self._evaluate()
            metrics.update(
                {
                    "evaluation/success_rate": rate.value,
                    "evaluation/success_low": rate.low,
                    "evaluation/success_high": rate.high,
                }
            )
            score = rate.value
        if (not a.evaluate_every or "evaluation/success_rate" in metrics) and score > self.best:
            self.best = score
            self.save(run, "best.safetensors", metrics)
        if a.keep_every and self.iteration % a.keep_every == 0:
            self.save(run, f"policy-{self.iteration}.safetensors", metrics)

    def _evaluate(self) -> Any:
        options, seeds = self.config.evaluation, evaluation_seeds(self.config.evaluation)
        if self.evaluation_env is None:
            envs = min(options.envs, len(seeds))
            self.evaluation_env = evaluation_env(self.config, self.task, self.policy.spec, envs)
        actor = Actor(self.policy, self.config.seed, options.stochastic)
        return evaluate(actor, self.evaluation_env, seeds, options.success).rate

    def save(self, run: RunFolder, name: str, metrics: dict[str, Any]) -> Any:
        """Write the policy; the frozen network goes along where the sampler still uses it."""
        spec, sampler = self.policy.spec, self.policy.spec.sampler
        provenance = spec.provenance.model_copy(
            update={
                "stage": "finetune",
                "seed": self.config.seed,
                "code_version": code_version(),
                "metrics": {k: float(v) for k, v in metrics.items()},
            }
        )
        spec = spec.model_copy(update={"provenance": provenance, "weights": "raw"})
        base = self.policy.base if sampler.finetuned_steps < sampler.steps else None
        save_policy(
            run.path / name, spec, {"raw": self.policy.network, "base": base, "normalizer": self.policy.normalizer}
        )
        return run.path / name

    def state(self, run: RunFolder) -> dict[str, Any]:
        """Everything that the remaining iterations depend on."""
        return {
            "iteration": self.iteration,
            "control_steps": self.control_steps,
            "best": self.best,
            "network": self.policy.network.state_dict(),
            "critic": self.critic.state_dict(),
            "base": self.policy.base.state_dict() if self.policy.base is not None else None,
            "sampler": self.policy.spec.sampler.model_dump(),
            "actor_optimiser": self.ppo.actor_optimiser.state_dict(),
            "critic_optimiser": self.ppo.critic_optimiser.state_dict(),
            "scaler": self.scaler.state(),
            "last_success": self.last_success,
            "metrics": self.metrics,
            "position": run.position(),
        }

    def restore(self, state: dict[str, Any], run: RunFolder) -> None:
        """The inverse of `state`."""
        self.iteration, self.control_steps, self.best = state["iteration"], state["control_steps"], state["best"]
        self.policy.set_sampler(validated(AnySamplerSpec, state["sampler"], "the resume file's sampler"))
        self.policy.network.load_state_dict(state["network"])
        self.critic.load_state_dict(state["critic"])
        if state["base"] is not None:
            self.policy.base.load_state_dict(state["base"])  # type: ignore[union-attr]
        self.ppo.set_finetuned_steps()
        self.ppo.actor_optimiser.load_state_dict(state["actor_optimiser"])
        self.ppo.critic_optimiser.load_state_dict(state["critic_optimiser"])
        self.scaler.restore(state["scaler"])
        self.last_success = state["last_success"]
        self.metrics = state["metrics"]
        run.rewind(state["position"])
