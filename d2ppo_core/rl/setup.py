"""What fine-tuning starts from: checked settings, a policy that denoises as it will be tuned, a critic."""

from __future__ import annotations

import torch

from ..conf.schema import AlgorithmConfig, Config, RolloutConfig, TaskConfig
from ..envs import EnvRequest
from ..errors import UserError
from ..keyed import key
from ..network_specs import SamplerSpec
from ..networks.critics import StateCritic
from ..policies.diffusion import DiffusionPolicy
from ..randomise import randomisation
from ..tasks import validated


def check_algorithm(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> None:
    """Refuse numbers that make no sense before anything is allocated."""
    wrong = [
        f"{name}={value} must be at least {least}"
        for name, value, least in (
            ("algorithm.iterations", algorithm.iterations, 1),
            ("algorithm.epochs", algorithm.epochs, 1),
            ("algorithm.batch", algorithm.batch, 2),
            ("rollout.envs", rollout.envs, 1),
            ("rollout.chunks", rollout.chunks, 1),
            ("algorithm.clip", algorithm.clip, 1e-9),
            ("algorithm.clip_base", algorithm.clip_base, 0),
        )
        if value < least
    ]
    wrong += [
        f"{name}={value} must lie in [0, 1]"
        for name, value in (
            ("algorithm.discount", algorithm.discount),
            ("algorithm.gae_lambda", algorithm.gae_lambda),
            ("algorithm.denoising_discount", algorithm.denoising_discount),
            ("algorithm.advantage_clip_low", algorithm.advantage_clip_low),
            ("algorithm.advantage_clip_high", algorithm.advantage_clip_high),
        )
        if not 0 <= value <= 1
    ]
    if algorithm.kl_per not in ("chunk", "dimension"):
        wrong.append(f"algorithm.kl_per={algorithm.kl_per} must be chunk or dimension")
    if len(algorithm.critic_hidden) % 2 == 0 or len(set(algorithm.critic_hidden)) != 1:
        wrong.append(f"algorithm.critic_hidden={algorithm.critic_hidden} must be an odd number of equal widths")
    if wrong:
        raise UserError("; ".join(wrong) + "; change these options")


def prepare_policy(policy: DiffusionPolicy, config: Config) -> None:
    """Set the fine-tuning sampler, and keep the frozen pre-trained network where it is still needed."""
    values = policy.spec.sampler.model_dump() | config.algorithm.sampler
    sampler: SamplerSpec = validated(SamplerSpec, values, "algorithm.sampler (with the checkpoint's own sampler)")
    if sampler.train_steps != policy.spec.sampler.train_steps:
        raise UserError(
            f"algorithm.sampler.train_steps cannot differ from the checkpoint's {policy.spec.sampler.train_steps}; "
            "leave it out"
        )
    if sampler.finetuned_steps < 1:
        raise UserError(
            "algorithm.sampler.finetuned_steps is 0: nothing would be learned; set it between 1 and the sampler's steps"
        )
    before = policy.spec.sampler
    if policy.base is not None and any(
        getattr(sampler, name) != getattr(before, name) for name in ("kind", "steps", "finetuned_steps")
    ):
        raise UserError(
            f"the checkpoint's frozen base takes the first of its {before.kind} {before.steps} steps "
            f"({before.finetuned_steps} fine-tuned); go on with the same algorithm.sampler, or start from the "
            "pre-trained policy"
        )
    policy.set_sampler(sampler)
    steps = config.algorithm.reward_horizon
    if steps > policy.spec.horizon:
        raise UserError(
            f"algorithm.reward_horizon={steps} exceeds the predicted horizon {policy.spec.horizon}; lower it"
        )
    if policy.base is None and (
        sampler.finetuned_steps < sampler.steps
        or config.algorithm.bc_coef > 0
        or config.algorithm.finetuned_steps_every > 0
    ):
        policy.freeze_base()
    policy.network.requires_grad_(True)


def build_critic(policy: DiffusionPolicy, config: Config) -> StateCritic:
    """V(s) with weights named by the seed."""
    spec = policy.spec.observation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(config.seed, "critic"))
        return StateCritic(spec.history * spec.state_size, config.algorithm.critic_hidden)


def rollout_request(config: Config, task: TaskConfig, policy: DiffusionPolicy) -> EnvRequest:
    """The training environments."""
    rollout = config.rollout
    return EnvRequest(
        task=task.environment,
        num_envs=rollout.envs,
        history=policy.spec.observation.history,
        workers=rollout.workers,
        max_episode_steps=rollout.max_episode_steps or task.max_episode_steps,
        terminate_at_success=rollout.terminate_at_success,
        cameras=policy.spec.observation.cameras,
        randomise=randomisation(config.randomise, rollout.randomise),
    )
