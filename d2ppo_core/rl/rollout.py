"""Collecting chunks of experience: T chunks in each of N environments, into buffers allocated once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..envs import RawObservation, VectorEnv
from ..inference import Actor
from ..keyed import action_noise, generator, key
from ..networks.vision import draw_shift, random_shift
from ..observation import Observation, model_observation
from ..policies.base import Sample


@dataclass
class Rollout:
    """One iteration's experience. All tensors start (T, N, ...)."""

    observation: Observation  # (T, N, ...) as the policy saw it, random shift of the images included
    chain: Tensor  # (T, N, K'+1, H, Da) model units
    log_prob: Tensor  # (T, N, K', H, Da) of the behaviour policy, number by number, recorded while acting
    reward: np.ndarray  # (T, N) float64, raw
    first: np.ndarray  # (T, N) this chunk begins an episode
    terminated: np.ndarray  # (T, N) bool
    truncated: np.ndarray  # (T, N) bool
    success: np.ndarray  # (T, N) bool
    value: Tensor  # (T, N) V(s_t)
    next_value: Tensor  # (T, N) V of the state the chunk led to; at an episode's end its final observation
    reset_value: Tensor  # (T, N) V of the next row's state even across an episode's end (truncation=leak only)
    control_steps: int

    def finished_successes(self) -> list[bool]:
        """For each episode that ended inside the window: did it succeed?"""
        ended, outcomes = self.terminated | self.truncated, []
        for n in range(ended.shape[1]):
            begin = 0
            for t in np.flatnonzero(ended[:, n]):
                outcomes.append(bool(self.success[begin : t + 1, n].any()))
                begin = t + 1
        return outcomes


class Collector:
    """Steps the environments with the exploring policy; owns each environment's episode seed and chunk counter.

    Episode seeds are named by (run seed, iteration, environment, episode) and lie above 2**32, where evaluation
    never looks. With `shift`, images are shifted at random before policy and critic look at them, and stay so in the
    rollout: log-probabilities of acting and of the update are of the same pictures.
    """

    def __init__(self, actor: Actor, critic: nn.Module, env: VectorEnv, chunks: int, seed: int, shift: int = 0) -> None:
        self.actor, self.critic, self.env, self.T, self.seed, self.shift = actor, critic, env, chunks, seed, shift
        self.N = env.num_envs
        self.raw: RawObservation = {}
        self.episode, self.episode_seed, self.chunk_index = [0] * self.N, [0] * self.N, [0] * self.N

    def reset(self, iteration: int) -> None:
        """Begin a new episode in every environment."""
        self.episode = [0] * self.N
        self.raw = self._begin(iteration, list(range(self.N)))

    def _begin(self, iteration: int, envs: list[int]) -> RawObservation:
        for e in envs:
            self.episode_seed[e] = (1 << 32) + key(self.seed, "episode", iteration, e, self.episode[e]) % (1 << 62)
            self.episode[e] += 1
            self.chunk_index[e] = 0
        return self.env.reset(envs, [self.episode_seed[e] for e in envs])

    def _buffers(self, seen: Observation) -> Rollout:
        spec, T, N = self.actor.policy.spec, self.T, self.N
        K, chunk = spec.sampler.finetuned_steps, spec.chunk_shape

        def tensor(*shape: int) -> Tensor:
            return torch.zeros(T, N, *shape, device=self.actor.device)

        flags = [np.zeros((T, N), dtype=bool) for _ in range(4)]
        return Rollout(
            seen.map(lambda rows: rows.new_zeros(T, *rows.shape)),
            tensor(K + 1, *chunk),
            tensor(K, *chunk),
            np.zeros((T, N)),
            *flags,
            tensor(),
            tensor(),
            tensor(),
            0,
        )

    @torch.no_grad()
    def collect(self, iteration: int) -> Rollout:
        """T chunks in every environment; episodes that end are followed by new ones."""
        everyone = list(range(self.N))
        seen = self._seen(everyone)
        value, out = self._value(seen), self._buffers(seen)
        for t in range(self.T):
            out.observation.state[t], out.value[t] = seen.state, value
            if out.observation.images is not None:
                out.observation.images[t] = seen.images
            out.first[t] = [index == 0 for index in self.chunk_index]
            sample = self._sample(seen)
            out.chain[t], out.log_prob[t] = sample.chain, sample.log_prob
            step = self.env.step(everyone, self.actor.to_raw(sample.chunk[:, : self.actor.policy.spec.executed]))
            out.reward[t], out.success[t] = step.reward, step.success
            out.terminated[t], out.truncated[t] = step.terminated, step.truncated
            out.control_steps += int(step.control_steps.sum())
            self.raw = step.observation
            self.chunk_index = [index + 1 for index in self.chunk_index]
            seen = self._seen(everyone)
            value = out.next_value[t] = self._value(seen)
            ended = np.flatnonzero(step.terminated | step.truncated).tolist()
            if ended:
                seen, value = self._restart(iteration, ended, seen, value.clone())
            out.reset_value[t] = value
        return out

    def _restart(
        self, iteration: int, ended: list[int], seen: Observation, value: Tensor
    ) -> tuple[Observation, Tensor]:
        """New episodes in the environments whose episode ended: the first observations, and their values."""
        for name, first in self._begin(iteration, ended).items():
            self.raw[name][ended] = first
        fresh = self._seen(ended)
        seen.state[ended], value[ended] = fresh.state, self._value(fresh)
        if seen.images is not None:
            seen.images[ended] = fresh.images
        return seen, value

    def _seen(self, envs: list[int]) -> Observation:
        """What policy and critic look at in `envs` now."""
        spec = self.actor.policy.spec.observation
        seen = model_observation(spec, {name: value[envs] for name, value in self.raw.items()}, self.actor.device)
        if self.shift == 0 or seen.images is None:
            return seen
        draws = [generator(self.seed, "shift", self.episode_seed[e], self.chunk_index[e]) for e in envs]
        offsets = torch.stack([draw_shift(seen.images.shape[1:3], self.shift, draw) for draw in draws])
        return replace(seen, images=random_shift(seen.images, offsets.to(self.actor.device), self.shift))

    def _sample(self, seen: Observation) -> Sample:
        policy = self.actor.policy
        noise = action_noise(self.seed, self.episode_seed, self.chunk_index, policy.noise_shape).to(self.actor.device)
        return policy.sample(seen, noise, explore=True)

    def _value(self, seen: Observation) -> Tensor:
        return self.critic(*self.actor.policy.condition(seen))
