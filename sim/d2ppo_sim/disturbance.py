"""What stands between the world and the policy in one episode: noise on what is seen and done, and delay.

Drawn in the order of control steps, so that it does not matter how many of them are handled at a time.
"""

from __future__ import annotations

import numpy as np

from .randomise import Randomisation, generator

Seen = dict[str, np.ndarray]


class Disturbance:
    """One episode's noise and delay."""

    def __init__(self, settings: Randomisation, deviations: dict[str, np.ndarray], seed: int) -> None:
        self._std, self._slip_std = deviations, settings.action_noise.std
        self._noise, self._slip = generator(seed, "observation_noise"), generator(seed, "action_noise")
        latency = settings.latency
        self.delay = int(generator(seed, "latency").integers(latency.least, latency.most, endpoint=True))  # steps

    def seen(self, truth: Seen, steps: int) -> Seen:
        """What is seen after `steps` more control steps, of the last k of which `truth` (k, size) is at hand."""
        noise = self._noise.standard_normal((steps, sum(map(len, self._std.values()))))
        seen, start = dict(truth), 0
        for name, std in self._std.items():
            kept = noise[steps - len(truth[name]) :, start : start + len(std)]
            seen[name], start = truth[name] + std * kept, start + len(std)
            if name.endswith("_quat"):
                seen[name] /= np.linalg.norm(seen[name], axis=-1, keepdims=True)
        return seen

    def done(self, actions: np.ndarray) -> np.ndarray:
        """What is executed (n, Da) where the policy wants `actions`."""
        if self._slip_std == 0:
            return actions
        slip = self._slip_std * self._slip.standard_normal(actions.shape)
        slip[:, 6::7] = 0.0  # the gripper only knows open and closed
        return np.clip(actions + slip, -1.0, 1.0)
