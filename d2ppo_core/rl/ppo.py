"""PPO over pairs of environment step and denoising step (DPPO Sec. 4.2-4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from ..conf.schema import AlgorithmConfig, Minibatch
from ..keyed import generator
from ..observation import Observation
from ..policies.base import Policy
from .importance import denoising_weights, step_sampler
from .rollout import Rollout


def clip_schedule(K: int, clip: float, base: float, rate: float) -> Tensor:
    """eps_i of the K' fine-tuned steps, noisiest first, (K',): from `base` to `clip`, exponentially.

    eps_i = base + (clip - base) (e^{rate u} - 1) / (e^{rate} - 1),  u = i / (K' - 1);  K' = 1: clip.
    """
    if K == 1:
        return torch.tensor([clip])
    u = torch.linspace(0, 1, K, dtype=torch.float64)
    growth = (torch.exp(rate * u) - 1) / (math.exp(rate) - 1) if rate else u
    return (base + (clip - base) * growth).float()


def chunk_log_prob(log_prob: Tensor, steps: int, low: float, high: float) -> Tensor:
    """Mean log-probability of a chunk: each number clamped, the first `steps` of H kept.  (B, H, Da) -> (B,).

    A mean, not a sum: the ratio is the (steps * Da)-th root of the true one, which is why DPPO's clips are so small.
    """
    return log_prob[:, :steps].clamp(low, high).mean((1, 2))


@dataclass(frozen=True)
class PairBatch:
    """B pairs of environment step and fine-tuned denoising step. `advantage` and `target` belong to the chunk."""

    observation: Observation  # (M, ...): of every chunk of the rollout
    chunk: Tensor  # (B,) long: which of them
    x: Tensor  # (B, H, Da) before the denoising step
    x_next: Tensor  # (B, H, Da) after it
    k: Tensor  # (B,) long: which of the K' fine-tuned steps, 0 the noisiest
    weight: Tensor  # (B,) of the pair in the objective: 1 where every step is as likely to be drawn, else 1 / (K' p(k))
    old_log_prob: Tensor  # (B, H, Da)
    advantage: Tensor  # (B,) as estimated
    A: Tensor  # (B,) as it weighs in the objective: standardised over the minibatch, times gamma_denoise^k
    target: Tensor  # (B,) return that the critic should predict
    old_value: Tensor  # (B,)

    def parts(self, size: int) -> Iterator[PairBatch]:
        """The same pairs, `size` at a time."""
        for start in range(0, len(self.chunk), size):
            names = [f.name for f in fields(self) if f.name != "observation"]
            yield replace(self, **{name: getattr(self, name)[start : start + size] for name in names})


@dataclass(frozen=True)
class Losses:
    """Terms of one minibatch, and its diagnostics."""

    policy: Tensor
    value: Tensor
    bc: Tensor
    entropy: Tensor
    total: Tensor
    kl: float
    clip_fraction: float
    ratio_deviation: float


class PPO:
    """The clipped objective and its optimisers."""

    def __init__(self, policy: Policy, critic: nn.Module, config: AlgorithmConfig) -> None:
        self.policy, self.critic, self.config = policy, critic, config
        self.actor_optimiser = torch.optim.AdamW(
            policy.network.parameters(), lr=config.actor.lr, weight_decay=0.0, fused=True
        )
        self.critic_optimiser = torch.optim.AdamW(
            critic.parameters(), lr=config.critic.lr, weight_decay=0.0, fused=True
        )
        self.set_finetuned_steps()

    def set_finetuned_steps(self) -> None:
        """Tables of the K' fine-tuned steps; call again when K' changes."""
        c, device = self.config, next(self.critic.parameters()).device
        self.K = self.policy.spec.sampler.finetuned_steps
        self.clip = clip_schedule(self.K, c.clip, c.clip_base, c.clip_rate).to(device)
        self.weight = denoising_weights(self.K, c.denoising_discount).to(device)
        self.logprob_steps = c.reward_horizon or self.policy.spec.executed

    # --- the objective --------------------------------------------------------------------------------------------

    def losses(self, batch: PairBatch, bc_noise: Tensor | None = None) -> Losses:
        """max(-A rho, -A clip(rho, 1 +- eps_k)) averaged over the pairs, plus critic, entropy and cloning terms."""
        c = self.config
        chunks, row = batch.chunk.unique(return_inverse=True)  # each observation is looked at once
        observation = batch.observation[chunks]
        code = self.policy.encode(observation)[row]  # [U, C] -> [B, C]
        new = self._chunk_log_prob(self.policy.log_prob(code, batch.x, batch.x_next, batch.k))
        log_ratio = new - self._chunk_log_prob(batch.old_log_prob)
        ratio, epsilon, A = log_ratio.exp(), self.clip[batch.k], batch.A
        policy = (batch.weight * torch.maximum(-A * ratio, -A * ratio.clamp(1 - epsilon, 1 + epsilon))).mean()
        value = self._value_loss(batch, self.critic(*self.policy.condition(observation))[row])
        bc = self._bc_loss(observation, bc_noise[: len(chunks)]) if bc_noise is not None else policy.new_zeros(())
        entropy = -self.policy.entropy()
        total = policy + c.value_coef * value + c.bc_coef * bc + c.entropy_coef * entropy
        return Losses(
            policy,
            value,
            bc,
            entropy,
            total,
            self._kl(log_ratio.detach()),
            ((ratio - 1).abs() > epsilon).float().mean().item(),
            (ratio - 1).abs().mean().item(),
        )

    def _chunk_log_prob(self, log_prob: Tensor) -> Tensor:
        return chunk_log_prob(log_prob, self.logprob_steps, self.config.logprob_min, self.config.logprob_max)

    def _advantage(self, A: Tensor, k: Tensor) -> Tensor:
        """Standardised over the minibatch, clamped to quantiles where asked, then times gamma_denoise^k. (B,)."""
        c = self.config
        if c.normalise_advantage:
            A = (A - A.mean()) / (A.std() + 1e-8)
        if c.advantage_clip_low > 0 or c.advantage_clip_high < 1:
            A = A.clamp(torch.quantile(A, c.advantage_clip_low), torch.quantile(A, c.advantage_clip_high))
        return A * self.weight[k]

    def _value_loss(self, batch: PairBatch, value: Tensor) -> Tensor:
        """0.5 E (V(s) - R)^2; with value_clip the worse of it and of the clipped change (PPO2). value: (B,)."""
        error = (value - batch.target).square()
        if self.config.value_clip > 0:
            change = (value - batch.old_value).clamp(-self.config.value_clip, self.config.value_clip)
            error = torch.maximum(error, (batch.old_value + change - batch.target).square())
        return 0.5 * error.mean()

    def _bc_loss(self, observation: Observation, noise: Tensor) -> Tensor:
        """-E log pi_theta of chains drawn from the frozen pre-trained policy (DPPO's BC regularisation)."""
        chain = self.policy.sample_base(observation, noise)  # [U, K'+1, H, Da]
        k = torch.arange(self.K, device=chain.device).repeat(len(chain))  # [K'] -> [U*K']
        code = self.policy.encode(observation).repeat_interleave(self.K, 0)  # [U, C] -> [U*K', C]
        x, x_next = chain[:, :-1].flatten(0, 1), chain[:, 1:].flatten(0, 1)  # [U, K', H, Da] -> [U*K', H, Da]
        return -self._chunk_log_prob(self.policy.log_prob(code, x, x_next, k)).mean()

    def _kl(self, log_ratio: Tensor) -> float:
        """E[(rho - 1) - log rho] (Schulman's k3). kl_per=chunk: of the whole chunk's ratio, the sum of its numbers."""
        if self.config.kl_per == "chunk":
            log_ratio = log_ratio * (self.logprob_steps * self.policy.spec.action.size)
        return (log_ratio.exp() - 1 - log_ratio).mean().item()

    # --- the update -----------------------------------------------------------------------------------------------

    def update(
        self, rollout: Rollout, advantage: Tensor, mode: Minibatch, seed: tuple[int, ...], train_actor: bool
    ) -> dict[str, float]:
        """Several epochs of minibatches over one rollout; stops when the KL exceeds its target.

        Args:
            advantage: (T, N). mode: what a minibatch draws. seed: names this update's shuffles and cloning noise.
            train_actor: False during the critic's warm-up.
        """
        flat = self._flatten(rollout, advantage)
        units = len(flat.advantage) * (self.K if mode is Minibatch.pair else 1)
        per_batch, sums, count, stopped = min(self.config.batch, units), {}, 0, False
        for epoch in range(self.config.epochs):
            order = torch.randperm(units, generator=generator(*seed, "minibatches", epoch))
            for number in range(max(1, units // per_batch)):
                index = order[number * per_batch : (number + 1) * per_batch].to(advantage.device)
                name = (*seed, epoch, number)
                metrics = self._step(self._gather(flat, index, mode, name), train_actor, name)
                count += 1
                for key, value in metrics.items():
                    sums[key] = sums.get(key, 0.0) + value
                stopped = train_actor and 0 < self.config.target_kl < metrics["ppo/kl"]
                if stopped:
                    break
            if stopped:
                break
        return {name: value / count for name, value in sums.items()} | {
            "ppo/gradient_steps": count,
            "ppo/stopped_by_kl": float(stopped),
        }

    def _flatten(self, r: Rollout, advantage: Tensor) -> PairBatch:
        """(T, N, ...) -> (T*N, ...); x and old_log_prob keep their K' axis, and there are no k, weight and A yet."""

        def flat(tensor: Tensor) -> Tensor:
            return tensor.flatten(0, 1)  # [T, N, ...] -> [T*N, ...]

        chain, none = flat(r.chain), torch.empty(0)
        return PairBatch(
            r.observation.map(flat),
            torch.arange(len(chain), device=chain.device),
            chain[:, :-1],
            chain[:, 1:],
            none,
            none,
            flat(r.log_prob),
            flat(advantage),
            none,
            flat(advantage + r.value),
            flat(r.value),
        )

    def _gather(self, flat: PairBatch, index: Tensor, mode: Minibatch, seed: tuple[int, ...] = ()) -> PairBatch:
        """Pairs by number (T*N*K' of them), or all or some steps of the chunks by number (T*N)."""
        weight = flat.advantage.new_ones(())
        if mode is Minibatch.pair:
            b, k = index // self.K, index % self.K
        elif mode is Minibatch.chain:
            b = index.repeat_interleave(self.K)  # [B] -> [B*K']
            k = torch.arange(self.K, device=index.device).repeat(len(index))
        else:
            c = self.config
            steps = step_sampler(self.K, c.importance_steps, c.importance_probability, c.denoising_discount)
            b = index.repeat_interleave(steps.m)  # [B] -> [B*m]
            k = steps.draw(len(index), generator(*seed, "steps")).flatten().to(index.device)  # [B, m] -> [B*m]
            weight = (steps.weight(k) * steps.m / self.K).to(weight.dtype)
        return PairBatch(
            flat.observation,
            b,
            flat.x[b, k],
            flat.x_next[b, k],
            k,
            weight.expand(len(b)),
            flat.old_log_prob[b, k],
            flat.advantage[b],
            self._advantage(flat.advantage[b], k),
            flat.target[b],
            flat.old_value[b],
        )

    def _bc_noise(self, count: int, seed: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Noise for as many cloned chains as there can be observations; None without cloning."""
        if self.config.bc_coef == 0:
            return None
        return torch.randn((count, *self.policy.noise_shape), generator=generator(*seed, "cloning")).to(device)

    def _step(self, batch: PairBatch, train_actor: bool, seed: tuple[int, ...]) -> dict[str, float]:
        """One gradient step on a minibatch, `micro_batch` pairs at a time where memory asks for it."""
        self.actor_optimiser.zero_grad(set_to_none=True)
        self.critic_optimiser.zero_grad(set_to_none=True)
        whole, metrics = len(batch.chunk), {}
        for number, part in enumerate(batch.parts(self.config.micro_batch or whole)):
            losses = self.losses(part, self._bc_noise(len(part.chunk), (*seed, number), part.x.device))
            share = len(part.chunk) / whole
            (losses.total * share).backward()
            for name, value in self._metrics(losses).items():
                metrics[name] = metrics.get(name, 0.0) + share * value
        if train_actor:
            if self.config.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(self.policy.network.parameters(), self.config.max_grad_norm)
            self.actor_optimiser.step()
        self.critic_optimiser.step()
        return metrics

    @staticmethod
    def _metrics(losses: Losses) -> dict[str, float]:
        return {
            "ppo/policy_loss": losses.policy.item(),
            "ppo/value_loss": losses.value.item(),
            "ppo/bc_loss": losses.bc.item(),
            "ppo/kl": losses.kl,
            "ppo/clip_fraction": losses.clip_fraction,
            "ppo/ratio_deviation": losses.ratio_deviation,
        }
