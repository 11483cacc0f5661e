"""What pre-training starts from: checked demonstrations, a contract, a policy with statistics, windows."""

from __future__ import annotations

import numpy as np
import torch

from .conf.schema import Config
from .contract import PolicySpec, Provenance
from .data.robomimic import Demonstrations, read_demonstrations
from .data.windows import ChunkWindows
from .errors import UserError
from .keyed import generator
from .network_specs import MLPSpec, SamplerSpec
from .normalizer import Normalizer
from .observation import dimension_names
from .policies.diffusion import DiffusionPolicy, require_eyes
from .tasks import action_spec, observation_spec, require_task, validated
from .version import code_version


def load_demonstrations(config: Config) -> tuple[Demonstrations, PolicySpec]:
    """Read and check the dataset, and write the contract of the policy that will learn from it."""
    task = require_task(config)
    if not config.data:
        raise UserError(
            "no demonstrations are given; add data=FILE.hdf5 (robomimic's format, or make some with `d2ppo demos`)"
        )
    observation, action = observation_spec(task), action_spec(task)
    network = validated(MLPSpec, config.policy.network, "policy.network")
    sampler = validated(SamplerSpec, config.policy.sampler, "policy.sampler")
    require_eyes(observation, network)
    if config.policy.executed > config.policy.horizon or config.policy.executed < 1:
        raise UserError(
            f"policy.executed is {config.policy.executed}; it must lie between 1 and policy.horizon, "
            f"{config.policy.horizon}"
        )
    demos = read_demonstrations(config.data, task.environment, observation, action, config.train.max_episodes)
    provenance = Provenance(
        stage="pretrain",
        dataset=config.data,
        dataset_digest=demos.digest,
        code_version=code_version(),
        seed=config.seed,
        simulator=demos.simulator,
    )
    spec = PolicySpec(
        task=task.name,
        observation=observation,
        action=action,
        horizon=config.policy.horizon,
        executed=config.policy.executed,
        network=network,
        sampler=sampler,
        provenance=provenance,
    )
    return demos, spec


def build_policy(config: Config, demos: Demonstrations, spec: PolicySpec) -> DiffusionPolicy:
    """A policy with weights named by the seed and statistics of all demonstrations."""
    if config.train.flat_dimensions not in ("refuse", "centre"):
        raise UserError(f"train.flat_dimensions is '{config.train.flat_dimensions}'; choose refuse or centre")
    names = dimension_names(spec.observation) + [f"action[{i}]" for i in range(spec.action.size)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.seed, "weights").initial_seed())
        try:
            policy = DiffusionPolicy(spec)
        except ValueError as error:
            raise UserError(f"policy.network cannot be built: {error}") from error
    policy.normalizer = Normalizer.fit(
        np.concatenate(demos.states),
        np.concatenate(demos.actions),
        config.train.flat_dimensions,
        config.train.observation_clip,
        names,
    )
    return policy


def require_tap(policy: DiffusionPolicy, layer: str) -> None:
    """Refuse a layer that this network does not have, before any training."""
    try:
        policy.network.tap(layer)
    except (KeyError, IndexError) as error:
        raise UserError(f"this network has no feature called '{layer}'; choose another dispersive.layer") from error


def split_windows(
    config: Config, policy: DiffusionPolicy, demos: Demonstrations, device: torch.device
) -> tuple[ChunkWindows, ChunkWindows | None]:
    """Whole episodes are held out, chosen by the seed; actions are normalised once, here."""
    train, count, spec = config.train, len(demos.states), policy.spec
    order = torch.randperm(count, generator=generator(config.seed, "holdout")).tolist()
    held = round(train.holdout * count) if count > 1 else 0
    held = max(1, held) if train.holdout > 0 and count > 1 else held
    if held >= count:
        raise UserError(
            f"train.holdout={train.holdout} leaves none of the {count} demonstrations to train on; lower it"
        )
    normalise = policy.normalizer.cpu().normalize_action

    def windows(chosen: list[int]) -> ChunkWindows:
        states = [demos.states[n] for n in chosen]
        actions = [normalise(torch.from_numpy(demos.actions[n])).numpy() for n in chosen]
        return ChunkWindows(states, actions, spec.observation.history, spec.horizon, train.pad_episode_ends, device)

    used, held_out = windows(sorted(order[held:])), windows(sorted(order[:held])) if held else None
    policy.normalizer.to(device)
    if len(used) == 0:
        raise UserError(
            f"no demonstration is as long as policy.horizon={spec.horizon}; shorten it or set "
            "train.pad_episode_ends=true"
        )
    return used, held_out
