"""Collecting chunks of experience: T chunks in each of N environments, into buffers allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..envs import RawObservation, VectorEnv
from ..inference import Actor
from ..keyed import action_noise, key
from ..observation import model_state
from ..policies.diffusion import Sample


@dataclass
class Rollout:
    """One iteration's experience. All tensors start (T, N, ...)."""

    state: Tensor  # (T, N, To, Do) SI units
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
    never looks.
    """

    def __init__(self, actor: Actor, critic: nn.Module, env: VectorEnv, chunks: int, seed: int) -> None:
        self.actor, self.critic, self.env, self.T, self.seed = actor, critic, env, chunks, seed
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

    def _buffers(self) -> Rollout:
        spec, T, N = self.actor.policy.spec, self.T, self.N
        device, K, chunk = self.actor.device, spec.sampler.finetuned_steps, spec.chunk_shape

        def tensor(*shape: int) -> Tensor:
            return torch.zeros(T, N, *shape, device=device)

        flags = [np.zeros((T, N), dtype=bool) for _ in range(4)]
        return Rollout(
            tensor(spec.observation.history, spec.observation.state_size),
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
        out, observation, everyone = self._buffers(), self.actor.policy.spec.observation, list(range(self.N))
        for t in range(self.T):
            state = model_state(observation, self.raw, self.actor.device)
            out.state[t], out.value[t] = state, self._value(state)
            out.first[t] = [index == 0 for index in self.chunk_index]
            sample = self._sample(state)
            out.chain[t], out.log_prob[t] = sample.chain, sample.log_prob
            step = self.env.step(everyone, self.actor.to_raw(sample.chunk[:, : self.actor.policy.spec.executed]))
            out.reward[t], out.success[t] = step.reward, step.success
            out.terminated[t], out.truncated[t] = step.terminated, step.truncated
            out.control_steps += int(step.control_steps.sum())
            self.raw = step.observation
            self.chunk_index = [index + 1 for index in self.chunk_index]
            out.next_value[t] = self._value(model_state(observation, self.raw, self.actor.device))
            ended = np.flatnonzero(step.terminated | step.truncated).tolist()
            if ended:
                for name, value in self._begin(iteration, ended).items():
                    self.raw[name][ended] = value
        last = self._value(model_state(observation, self.raw, self.actor.device))
        out.reset_value.copy_(torch.cat([out.value[1:], last[None]]))  # V of row t+1, or of what follows the window
        return out

    def _sample(self, state: Tensor) -> Sample:
        policy = self.actor.policy
        noise = action_noise(self.seed, self.episode_seed, self.chunk_index, policy.noise_shape).to(self.actor.device)
        return policy.sample(state, noise, explore=True)

    def _value(self, state: Tensor) -> Tensor:
        return self.critic(self.actor.policy.condition(state))
