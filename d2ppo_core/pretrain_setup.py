"""What pre-training starts from: checked demonstrations, a contract, a policy with statistics, windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .conf.schema import Config, DispersiveConfig, TrainConfig
from .contract import Camera, PolicySpec, Provenance, SimulatorSpec
from .data.batches import BATCHINGS
from .data.robomimic import Demonstrations, read_demonstrations
from .data.windows import ChunkWindows
from .distributed import Ranks
from .errors import UserError, too_small
from .keyed import generator, torch_seeded
from .network_specs import AnySamplerSpec, NetworkSpec
from .normalizer import Normalizer
from .observation import camera_images, dimension_names
from .policies.base import Policy
from .policies.build import build_policy, require_fit
from .tasks import action_spec, observation_spec, require_task, validated
from .version import code_version


def check_training(train: TrainConfig) -> None:
    """Refuse numbers that make no sense before anything is read."""
    wrong = too_small(
        ("train.batch", train.batch, 1),
        ("train.epochs", train.epochs, 0),
        ("train.log_every", train.log_every, 1),
        ("train.validate_every", train.validate_every, 0),
        ("train.save_every", train.save_every, 0),
        ("train.keep_every", train.keep_every, 0),
        ("train.optimiser.lr", train.optimiser.lr, 0),
        ("train.optimiser.lr_min", train.optimiser.lr_min, 0),
        ("train.weight_decay", train.weight_decay, 0),
    )
    if wrong:
        raise UserError("; ".join(wrong) + "; change these options")
    if train.batching not in BATCHINGS:
        raise UserError(f"train.batching is '{train.batching}'; choose one of {', '.join(BATCHINGS)}")


def contract_of(config: Config, provenance: Provenance) -> PolicySpec:
    """The contract that the task's and the policy's settings state."""
    task, policy = require_task(config), config.policy
    if policy.executed > policy.horizon or policy.executed < 1:
        raise UserError(
            f"policy.executed is {policy.executed}; it must lie between 1 and policy.horizon, {policy.horizon}"
        )
    return PolicySpec(
        task=task.name,
        observation=observation_spec(task),
        action=action_spec(task),
        horizon=policy.horizon,
        executed=policy.executed,
        network=validated(NetworkSpec, policy.network, "policy.network"),
        sampler=validated(AnySamplerSpec, policy.sampler, "policy.sampler"),
        provenance=provenance,
    )


def load_demonstrations(config: Config) -> tuple[Demonstrations, PolicySpec]:
    """Read and check the dataset, and write the contract of the policy that will learn from it."""
    task = require_task(config)
    if not config.data:
        raise UserError(
            "no demonstrations are given; add data=FILE.hdf5 (robomimic's format, or make some with `d2ppo demos`)"
        )
    unknown = SimulatorSpec(name="", version="", environment=task.environment, controller="")
    about = Provenance(
        stage="pretrain",
        dataset=config.data,
        dataset_digest="",
        code_version=code_version(),
        seed=config.seed,
        simulator=unknown,
    )
    spec = contract_of(config, about)
    require_fit(spec)
    demos = read_demonstrations(config.data, task.environment, spec.observation, spec.action, config.train.max_episodes)
    about = about.model_copy(update={"dataset_digest": demos.digest, "simulator": demos.simulator})
    return demos, spec.model_copy(update={"provenance": about})


def fresh_policy(config: Config, spec: PolicySpec) -> Policy:
    """A policy with weights named by the seed, and identity statistics."""
    with torch_seeded(config.seed, "weights"):
        return build_policy(spec)


def policy_of(config: Config, demos: Demonstrations, spec: PolicySpec) -> Policy:
    """A fresh policy with statistics of all demonstrations."""
    if config.train.flat_dimensions not in ("refuse", "centre"):
        raise UserError(f"train.flat_dimensions is '{config.train.flat_dimensions}'; choose refuse or centre")
    names = dimension_names(spec.observation) + [f"action[{i}]" for i in range(spec.action.size)]
    policy = fresh_policy(config, spec)
    policy.normalizer = Normalizer.fit(
        np.concatenate(demos.states),
        np.concatenate(demos.actions),
        config.train.flat_dimensions,
        config.train.observation_clip,
        names,
    )
    return policy


def require_taps(policy: Policy, dispersive: DispersiveConfig) -> None:
    """Refuse a layer that this network does not have, before any training."""
    for layer, option in ((dispersive.layer, "layer"), *((name, "watch") for name in dispersive.watch)):
        try:
            policy.network.tap(layer)
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"this network has no feature called '{layer}'; choose another dispersive.{option}"
            ) from error


def require_same_run(config: Config, demos: Demonstrations, ranks: Ranks) -> None:
    """The processes of a run learn from the same demonstrations with the same options, wherever their files are."""
    options = replace(config, data="", run_dir="", resume=False, overwrite=False, wandb="", threads=0)
    ranks.require_same(
        (demos.digest, repr(options)),
        "the processes of this run were given different options or other demonstrations; start each with the same "
        "command and a copy of the same file",
    )


def split_windows(
    config: Config, policy: Policy, demos: Demonstrations, device: torch.device
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
        images = episode_images(demos, spec.observation.cameras, chosen)
        return ChunkWindows(
            states, actions, spec.observation.history, spec.horizon, train.pad_episode_ends, device, images
        )

    used, held_out = windows(sorted(order[held:])), windows(sorted(order[:held])) if held else None
    policy.normalizer.to(device)
    if len(used) == 0:
        raise UserError(
            f"no demonstration is as long as policy.horizon={spec.horizon}; shorten it or set "
            "train.pad_episode_ends=true"
        )
    return used, held_out


def episode_images(demos: Demonstrations, cameras: tuple[Camera, ...], chosen: list[int]) -> list[torch.Tensor] | None:
    """For each chosen episode (T, cameras, 3, H, W) uint8; None for a policy without cameras."""
    if not cameras:
        return None
    return [
        camera_images(cameras, {c.key: demos.images[c.name][n][None] for c in cameras})[0]  # type: ignore[index]
        for n in chosen
    ]
