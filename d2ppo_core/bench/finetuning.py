"""What a PPO iteration at the papers' sizes costs besides the simulator: acting with values, then the update."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..conf.schema import Config, Minibatch
from ..inference import Actor
from ..policies.base import Policy
from ..pretrain_setup import fresh_policy
from ..rl.advantage import gae
from ..rl.ppo import PPO
from ..rl.rollout import Collector, Rollout
from ..rl.setup import fresh_critic
from .slices import Clock, Finish
from .synthetic import StillEnv, can_config, spec_of

ENVS, CHUNKS, EPOCHS, BATCH = 50, 300, 10, 7500  # of an iteration in both papers
HIDDEN = (512, 512, 512)
SAMPLER = {"train_steps": 20, "steps": 20, "finetuned_steps": 10}


def measure(chunks: int, device: torch.device, finish: Finish) -> dict[str, Any]:
    """One rollout of `chunks` without a simulator and one epoch of its update, each timed as a whole.

    The rate of the update depends on `chunks`: observations that occur twice in a minibatch are looked at once.
    """
    config = can_config(HIDDEN, **SAMPLER)
    config.algorithm.epochs, config.algorithm.batch, config.algorithm.target_kl = 1, BATCH, 0.0
    policy = fresh_policy(config, spec_of(config)).to(device)
    policy.freeze_base()
    critic = fresh_critic(policy, config).to(device)
    _once(config, policy, critic, 1, finish)  # warms up
    acting, update = _once(config, policy, critic, chunks, finish)
    whole = (
        ENVS * CHUNKS * acting.wall / acting.units,
        ENVS * CHUNKS * SAMPLER["finetuned_steps"] * EPOCHS * update.wall / update.units,
    )
    return {
        "update_pairs_per_second": round(update.units / update.wall, 1),
        "update_pairs_per_cpu_second": round(update.units / update.cpu, 1),
        "acting_chunks_per_second": round(acting.units / acting.wall, 1),
        "acting_chunks_per_cpu_second": round(acting.units / acting.cpu, 1),
        "iteration_seconds_estimated": round(sum(whole), 2),
        "of_which_acting": round(whole[0], 2),
        "of_which_update": round(whole[1], 2),
        "iteration": f"{ENVS} environments x {CHUNKS} chunks, {EPOCHS} epochs of pairs, without the simulator's time",
        "measured": {"chunks": chunks, "pairs": update.units, "minibatch": min(BATCH, update.units)},
    }


def _once(config: Config, policy: Policy, critic: nn.Module, chunks: int, finish: Finish) -> tuple[Clock, Clock]:
    """A rollout, counted in chunks, and an epoch of its update, counted in pairs."""
    env = StillEnv(policy.spec, ENVS)
    collector = Collector(Actor(policy, config.seed, explore=True), critic, env, chunks, config.seed)
    ppo, rollouts = PPO(policy, critic, config.algorithm), []

    def act() -> int:
        rollouts.append(collector.collect(0))
        return ENVS * chunks

    def learn() -> int:
        (rollout,) = rollouts
        done = ppo.update(rollout, _advantage(rollout), Minibatch.pair, (config.seed, 0), train_actor=True)
        return min(BATCH, ENVS * chunks * ppo.K) * int(done["ppo/gradient_steps"])

    collector.reset(0)
    acting, update = Clock(), Clock()
    acting.run(act, 0, finish)
    update.run(learn, 0, finish)
    return acting, update


def _advantage(r: Rollout) -> torch.Tensor:
    """GAE of whatever rewards there were, (T, N)."""
    reward = torch.as_tensor(r.reward, dtype=torch.float32, device=r.value.device)
    never = torch.zeros_like(reward)
    return gae(reward, r.value, r.next_value, never, never, discount=0.999, lambda_=0.95)
