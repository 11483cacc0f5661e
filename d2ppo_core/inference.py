"""Checkpoint in, action chunk out: what evaluation and the robot both call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .action import apply_limits
from .checkpoint import load_part, read_policy
from .contract import explain_validation
from .diffusion.guide import Guide, rtc_weights
from .envs import RawObservation
from .errors import UserError
from .keyed import action_noise
from .network_specs import GaussianSpec, SamplerSpec
from .observation import Observation, model_observation
from .policies.base import Policy
from .policies.build import build_policy


def load_policy(
    path: str | Path, device: torch.device | str = "cpu", weights: str = "", steps: int = 0
) -> Policy:
    """Rebuild a policy from its file alone.

    Args:
        weights: "ema" or "raw" instead of what the contract says; empty: what it says.
        steps: number of DDIM steps instead of the contract's sampler; 0: the contract's.
    """
    spec, parts = read_policy(path)
    if steps and isinstance(spec.sampler, GaussianSpec):
        raise UserError(f"{path} does not denoise: it draws a chunk in one step; leave evaluation.steps out")
    if steps and spec.sampler.finetuned_steps and "base" in parts:
        raise UserError(
            f"{path} was fine-tuned on {spec.sampler.steps} denoising steps, some taken by its frozen base; "
            "leave evaluation.steps out"
        )
    if steps:
        values = spec.sampler.model_dump() | {
            "kind": "ddim",
            "steps": steps,
            "finetuned_steps": min(steps, spec.sampler.finetuned_steps),
        }
        try:
            spec = spec.model_copy(update={"sampler": SamplerSpec.model_validate(values)})
        except ValueError as error:
            raise UserError(f"evaluation.steps={steps}: {explain_validation(error)}") from error  # type: ignore[arg-type]
    chosen = weights or spec.weights
    if chosen not in parts:
        raise UserError(f"{path} has no '{chosen}' weights, only {', '.join(p for p in parts if p in ('raw', 'ema'))}")
    policy = build_policy(spec)
    load_part(policy.network, parts, chosen, path)
    load_part(policy.normalizer, parts, "normalizer", path)
    if "base" in parts:
        policy.freeze_base()
        load_part(policy.base, parts, "base", path)  # type: ignore[arg-type]
    return policy.to(device).eval()


class Actor:
    """A policy that acts: raw observations of n environments in, raw action chunks out.

    Its randomness is named by (seed, episode seed, chunk index), so a chunk depends neither on the batch it was
    computed in nor on what was computed before.
    """

    def __init__(self, policy: Policy, seed: int, explore: bool = False) -> None:
        self.policy, self.seed, self.explore = policy, seed, explore
        self.device = next(policy.parameters()).device
        self.watch: Callable[[Observation], None] | None = None  # called with what goes into the network

    def act(self, raw: RawObservation, episode_seeds: list[int], chunk_indices: list[int]) -> np.ndarray:
        """Keys (n, To, size) -> (n, Ta, Da) float64: the steps of `predict` that are executed."""
        return self.predict(raw, episode_seeds, chunk_indices)[:, : self.policy.spec.executed]  # [n, H, Da]

    @torch.inference_mode()
    def predict(
        self,
        raw: RawObservation,
        episode_seeds: list[int],
        chunk_indices: list[int],
        prefix: np.ndarray | None = None,
        frozen: int = 0,
    ) -> np.ndarray:
        """Keys (n, To, size) -> the whole horizon (n, H, Da) float64, denormalised and inside the contract's limits.

        Args:
            prefix: (steps, Da) raw actions that the running chunk holds for these and the next control steps; the
                prediction goes on from them (see `diffusion.guide`).
            frozen: how many of them will be executed before the prediction is there.
        """
        spec = self.policy.spec
        observation = model_observation(spec.observation, raw, self.device)
        if self.watch:
            self.watch(observation)
        noise = action_noise(self.seed, episode_seeds, chunk_indices, self.policy.noise_shape).to(self.device)
        guide = None if prefix is None else self._guide(np.asarray(prefix, dtype=np.float64), frozen)
        return self.to_raw(self.policy.sample(observation, noise, self.explore, guide).chunk)

    def _guide(self, prefix: np.ndarray, frozen: int) -> Guide:
        """Towards the prefix (steps, Da); beyond it, where nothing is held, its last action fills the shape."""
        horizon, size = self.policy.spec.chunk_shape
        if prefix.ndim != 2 or prefix.shape[1] != size or not len(prefix) or not np.isfinite(prefix).all():
            raise UserError(
                f"the prefix of a chunk is {prefix.shape} or holds NaN; it must be (steps, {size}) finite raw actions"
            )
        steps = np.minimum(np.arange(horizon), len(prefix) - 1)
        held = torch.as_tensor(prefix[steps], dtype=torch.float32, device=self.device)  # [steps, Da] -> [H, Da]
        chunk = self.policy.normalizer.normalize_action(held)
        weight = torch.as_tensor(rtc_weights(horizon, frozen, min(len(prefix), horizon))).to(chunk)
        return Guide(chunk[None], weight)

    def to_raw(self, chunk: torch.Tensor) -> np.ndarray:
        """Model units (n, steps, Da) -> raw policy actions, float64."""
        raw = self.policy.normalizer.denormalize_action(chunk).cpu().numpy().astype(np.float64)
        return apply_limits(raw, self.policy.spec.action)
