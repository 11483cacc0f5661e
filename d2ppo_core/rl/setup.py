"""What fine-tuning starts from: checked settings, a policy that denoises as it will be tuned, a critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..action import under_limits
from ..conf.schema import AlgorithmConfig, Config, Minibatch, RolloutConfig, TaskConfig
from ..contract import Provenance, SimulatorSpec
from ..envs import EnvRequest
from ..errors import UserError, too_small
from ..inference import load_policy
from ..keyed import torch_seeded
from ..network_specs import AnySamplerSpec, GaussianSpec
from ..networks.build import build_critic
from ..policies.base import Policy
from ..pretrain_setup import contract_of, fresh_policy, load_demonstrations, policy_of
from ..randomise import randomisation
from ..tasks import task_of_checkpoint, validated
from ..version import code_version
from .importance import step_sampler


def check_algorithm(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> None:
    """Refuse numbers that make no sense before anything is allocated."""
    wrong = too_small(
        ("algorithm.iterations", algorithm.iterations, 1),
        ("algorithm.epochs", algorithm.epochs, 1),
        ("algorithm.batch", algorithm.batch, 2),
        ("algorithm.micro_batch", algorithm.micro_batch, 0),
        ("rollout.envs", rollout.envs, 1),
        ("rollout.chunks", rollout.chunks, 1),
        ("rollout.envs times rollout.chunks", rollout.envs * rollout.chunks, 2),
        ("algorithm.clip", algorithm.clip, 1e-9),
        ("algorithm.clip_base", algorithm.clip_base, 0),
    )
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


def check_minibatch(config: Config, finetuned_steps: int) -> None:
    """Refuse settings of minibatch=importance that do not fit K'."""
    a = config.algorithm
    if config.minibatch is Minibatch.importance:
        if a.finetuned_steps_every > 0 and a.importance_probability not in ("uniform", "discount"):
            raise UserError("algorithm.importance_probability cannot be numbers while K' is annealed; choose discount")
        step_sampler(finetuned_steps, a.importance_steps, a.importance_probability, a.denoising_discount)


def starting_policy(config: Config, device: torch.device) -> tuple[Policy, TaskConfig]:
    """The checkpoint's policy, or with `scratch=true` one with fresh weights; and the task."""
    if config.checkpoint and config.scratch:
        raise UserError("checkpoint= and scratch=true exclude each other; leave one out")
    if config.checkpoint:
        policy = load_policy(config.checkpoint, device)
        return policy, task_of_checkpoint(config, policy.spec, config.checkpoint)
    if not config.scratch:
        raise UserError(
            "no policy is given; add checkpoint=FILE (a policy.safetensors of `d2ppo pretrain`), or scratch=true to "
            "learn from nothing"
        )
    if config.data:  # for the statistics of states and actions
        demos, spec = load_demonstrations(config)
        about = {"stage": "finetune", "dataset": f"{config.data} (statistics only)"}
        spec = spec.model_copy(update={"provenance": spec.provenance.model_copy(update=about)})
        policy = policy_of(config, demos, spec)
    else:
        nowhere = SimulatorSpec(name="", version="", environment=config.task.environment, controller="")
        about = Provenance(
            stage="finetune",
            dataset="",
            dataset_digest="",
            code_version=code_version(),
            seed=config.seed,
            simulator=nowhere,
        )
        policy = fresh_policy(config, contract_of(config, about))
    return policy.to(device).eval(), task_of_checkpoint(config, policy.spec, "the new policy")


def prepare_policy(policy: Policy, config: Config) -> None:
    """Set limits and sampler of fine-tuning, and keep the frozen pre-trained network where it is still needed."""
    policy.spec = under_limits(policy.spec, config.limits)
    before, algorithm = policy.spec.sampler, config.algorithm
    sampler = finetuning_sampler(policy, algorithm)
    if policy.base is not None and any(
        getattr(sampler, name) != getattr(before, name) for name in ("kind", "steps", "finetuned_steps")
    ):
        raise UserError(
            f"the checkpoint's frozen base takes the first of its {before.kind} {before.steps} steps "
            f"({before.finetuned_steps} fine-tuned); go on with the same algorithm.sampler, or start from the "
            "pre-trained policy"
        )
    policy.set_sampler(sampler)
    if algorithm.reward_horizon > policy.spec.horizon:
        raise UserError(
            f"algorithm.reward_horizon={algorithm.reward_horizon} exceeds the predicted horizon "
            f"{policy.spec.horizon}; lower it"
        )
    if policy.base is None and (
        sampler.finetuned_steps < sampler.steps or algorithm.bc_coef > 0 or algorithm.finetuned_steps_every > 0
    ):
        policy.freeze_base()
    policy.network.requires_grad_(True)


def finetuning_sampler(policy: Policy, algorithm: AlgorithmConfig) -> Any:
    """The checkpoint's sampler with what `algorithm.sampler` changes, checked."""
    before = policy.spec.sampler
    kind, denoises = algorithm.sampler.get("kind", before.kind), not isinstance(before, GaussianSpec)
    if (kind in ("ddpm", "ddim")) != denoises or (not denoises and kind != before.kind):
        fitting = "dppo or dppo_ddim" if denoises else f"ppo_{before.kind}"
        raise UserError(
            f"algorithm.sampler.kind={kind} does not fit the policy, which draws by {before.kind}; choose "
            f"algorithm={fitting}"
        )
    values = before.model_dump() | algorithm.sampler
    sampler = validated(AnySamplerSpec, values, "algorithm.sampler (with the checkpoint's own sampler)")
    if not denoises:
        if algorithm.sampling_std_final >= 0 or algorithm.finetuned_steps_every > 0:
            raise UserError(
                f"a {kind} policy has no denoising steps to anneal; leave algorithm.sampling_std_final and "
                "finetuned_steps_every out"
            )
        return sampler
    if sampler.train_steps != before.train_steps:
        raise UserError(
            f"algorithm.sampler.train_steps cannot differ from the checkpoint's {before.train_steps}; leave it out"
        )
    if sampler.finetuned_steps < 1:
        raise UserError(
            "algorithm.sampler.finetuned_steps is 0: nothing would be learned; set it between 1 and the sampler's steps"
        )
    return sampler


def fresh_critic(policy: Policy, config: Config) -> nn.Module:
    """V(s), from images where the policy sees some, with weights named by the seed."""
    seen = policy.spec.observation
    with torch_seeded(config.seed, "critic"):
        return build_critic(
            policy.spec.network.vision,
            seen.history * seen.state_size,
            seen.cameras,
            seen.history,
            config.algorithm.critic_hidden,
        )


def rollout_request(config: Config, task: TaskConfig, policy: Policy) -> EnvRequest:
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
        limits=policy.spec.action.limits,
    )
