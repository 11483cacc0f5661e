"""Running the policy again on a recorded trial: the same observations must give the same actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2ppo_core.envs import RawObservation
from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256
from d2ppo_core.inference import Actor, load_policy
from d2ppo_core.observation import model_observation
from d2ppo_core.progress import ProgressBar

from ..records import SECOND, Chunk, ChunkRequest
from .observations import Observations
from .reader import Trial


@dataclass(frozen=True)
class PolicyOptions:
    """The policy node's parameters that its actions depend on; a trial's metadata may hold them as `policy_node`."""

    checkpoint: str = ""
    seed: int = 0
    steps: int = 0
    weights: str = ""
    threads: int = 1
    device: str = "cpu"
    max_age: float = 0.1  # s


@dataclass
class Replay:
    """How far the actions of each chunk are from the recorded ones."""

    differences: dict[int, float] = field(default_factory=dict)  # by chunk: largest |difference|, raw action units
    missing: dict[int, str] = field(default_factory=dict)  # by chunk: what the record lacks
    unseen: list[int] = field(default_factory=list)  # chunks whose tensors are not those that the policy saw
    digests_differ: bool = False

    @property
    def largest(self) -> float:
        return max(self.differences.values(), default=0.0)

    def same(self, tolerance: float) -> bool:
        """Whether every chunk was compared and found equal."""
        return bool(self.differences) and not self.missing and self.largest <= tolerance

    def summary(self) -> dict[str, Any]:
        """For people and as JSON."""
        worst = max(self.differences, key=self.differences.__getitem__) if self.differences else None
        return {
            "chunks": len(self.differences) + len(self.missing),
            "compared": len(self.differences),
            "identical": sum(difference == 0 for difference in self.differences.values()),
            "largest_difference": self.largest,
            "worst_chunk": worst,
            "another_policy": self.digests_differ,
            "other_observations": self.unseen,
            "missing": {str(index): why for index, why in self.missing.items()},
            "differences": {str(index): value for index, value in self.differences.items()},
        }


def replay(trial: Trial, options: PolicyOptions, any_policy: bool = False) -> Replay:
    """Predict every recorded chunk again.

    Args:
        any_policy: compare another policy than the one that ran, instead of refusing it.
    """
    requests = {request.index: request for request in trial.records(ChunkRequest, "policy/request")}
    chunks = [(r.value, r.received) for r in trial.messages("policy/chunk")]
    if not chunks:
        raise UserError(f"{trial.folder} holds no action chunks; there is nothing to compare")
    if not options.checkpoint:
        raise UserError(f"{trial.folder} does not say which file its policy came from; give --checkpoint FILE")
    ran, given = chunks[0][0].checkpoint, sha256(options.checkpoint)
    if ran != given and not any_policy:
        raise UserError(
            f"{options.checkpoint} is not the policy that ran: its sha256 is {given[:12]}…, the trial's {ran[:12]}…; "
            "give the right --checkpoint, or compare another one by --any-policy"
        )
    torch.set_num_threads(options.threads)
    actor = Actor(load_policy(options.checkpoint, options.device, options.weights, options.steps), options.seed)
    spec, result = actor.policy.spec, Replay(digests_differ=ran != given)
    step = SECOND // spec.action.control_hz
    observations = Observations(trial, spec.observation, step, int(options.max_age * SECOND))
    with ProgressBar("replaying", len(chunks)) as bar:
        for chunk, received in sorted(chunks, key=lambda pair: pair[0].stamp):
            _compare(actor, observations, requests.get(chunk.index), chunk, received, result)
            bar.advance(1, f"largest difference {result.largest:.3g}")
    return result


def _compare(
    actor: Actor, observations: Observations, request: ChunkRequest | None, chunk: Chunk, received: int, result: Replay
) -> None:
    if request is None:
        result.missing[chunk.index] = "its request was not recorded"
        return
    candidates, lacking = observations.at(chunk.stamp, request.start, received - chunk.inference)
    if lacking:
        result.missing[chunk.index] = lacking
        return
    raw = _seen(actor, candidates, chunk.seen)
    if raw is None:
        result.unseen.append(chunk.index)
        raw = candidates[0]
    again = actor.predict(raw, [request.seed], [request.index], request.prefix, request.frozen)[0]  # [1, H, Da]
    if again.shape != chunk.actions.shape:
        raise UserError(
            f"the policy predicts {again.shape[0]} steps of {again.shape[1]} numbers, the recorded chunk holds "
            f"{chunk.actions.shape[0]} of {chunk.actions.shape[1]}; give the policy that ran"
        )
    difference = np.abs(again - chunk.actions).max()
    result.differences[chunk.index] = float("inf") if np.isnan(difference) else float(difference)


def _seen(actor: Actor, candidates: list[RawObservation], digest: str) -> RawObservation | None:
    """The observation whose tensors have the digest that the policy noted; without one the likeliest."""
    spec = actor.policy.spec.observation
    fitting = (raw for raw in candidates if digest in ("", model_observation(spec, raw, actor.device).digest()))
    return next(fitting, None)


def options_of(trial: Trial, **given: Any) -> PolicyOptions:
    """What the trial says of its policy node, and what the command line says instead (None: nothing)."""
    stated = {k: v for k, v in trial.metadata.get("policy_node", {}).items() if k in PolicyOptions.__dataclass_fields__}
    options = PolicyOptions(**{**stated, **{name: value for name, value in given.items() if value is not None}})
    if options.checkpoint and not Path(options.checkpoint).exists():
        raise UserError(f"{options.checkpoint}, the policy that ran, is not here any more; give --checkpoint FILE")
    return options
