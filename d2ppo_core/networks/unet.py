"""UNet1D: predicts the noise in an action chunk by convolutions over its time steps (Diffusion Policy's, as in DPPO).

Letters here: C channels of a block, L time steps at its level, G size of the condition (time embedding and code).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..contract import Camera
from ..network_specs import UNetSpec
from .blocks import TimeEmbedding
from .encoder import Network, StateEncoder
from .taps import chosen


class ConvBlock(nn.Sequential):
    """Convolution over time that keeps L, GroupNorm, Mish. (B, C_in, L) -> (B, C_out, L)."""

    def __init__(self, channels_in: int, channels_out: int, spec: UNetSpec) -> None:
        super().__init__(
            nn.Conv1d(channels_in, channels_out, spec.kernel, padding=spec.kernel // 2),
            nn.GroupNorm(spec.groups, channels_out, eps=spec.norm_epsilon),
            nn.Mish(),
        )


class ConditionalBlock(nn.Module):
    """Two ConvBlocks around a scale and a shift that come from the condition (FiLM), added to the input."""

    def __init__(self, channels_in: int, channels_out: int, condition: int, spec: UNetSpec) -> None:
        super().__init__()
        self.first, self.second = (
            ConvBlock(channels_in, channels_out, spec),
            ConvBlock(channels_out, channels_out, spec),
        )
        film = 2 * channels_out
        if spec.condition_hidden:  # the condition was already processed: the published net has one layer here
            self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, film))
        else:
            layers = nn.Linear(condition, film), nn.Mish(), nn.Linear(film, film), nn.Mish(), nn.Linear(film, film)
            self.film = nn.Sequential(*layers)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C_in, L), condition (B, G) -> (B, C_out, L)."""
        scale, shift = self.film(condition).unsqueeze(-1).chunk(2, 1)  # [B, 2 C_out] -> 2 of [B, C_out, 1]
        return self.second(torch.addcmul(shift, scale, self.first(x))) + self.skip(x)


class Level(nn.Module):
    """Two conditional blocks at one L. (B, C_in, L) -> (B, C_out, L)."""

    def __init__(self, channels_in: int, channels_out: int, condition: int, spec: UNetSpec) -> None:
        super().__init__()
        self.first = ConditionalBlock(channels_in, channels_out, condition, spec)
        self.second = ConditionalBlock(channels_out, channels_out, condition, spec)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.second(self.first(x, condition), condition)


def require_fit(spec: UNetSpec, horizon: int) -> None:
    """ValueError for sizes that cannot be."""
    halvings = len(spec.multipliers) - 1
    if horizon % 2**halvings:
        raise ValueError(
            f"a UNet of {halvings + 1} levels halves the chunk {halvings} times, so the horizon must be a multiple of "
            f"{2**halvings}, not {horizon}; choose such a horizon or fewer multipliers"
        )
    if spec.kernel % 2 == 0:
        raise ValueError(f"a UNet's kernel must be odd, not {spec.kernel}, so that a convolution keeps the length")
    for multiplier in spec.multipliers:
        if spec.width * multiplier % spec.groups:
            raise ValueError(
                f"a level of {spec.width * multiplier} channels cannot be normalised in {spec.groups} groups; choose a "
                "width that is a multiple of groups"
            )


class UNet1D(Network):
    """eps_theta(x_t, t, s) (parameter counts: tests/core/test_networks.py).

    Each level down but the last halves L; each level up takes what its level gave on the way down beside what comes
    from below, and doubles L. The first level's own output skips nowhere, as published.
    """

    def __init__(
        self,
        spec: UNetSpec,
        chunk_shape: tuple[int, int],
        state_size: int,
        cameras: Sequence[Camera] = (),
        history: int = 1,
    ) -> None:
        """`chunk_shape` is (H, Da); `state_size` is To * Do."""
        require_fit(spec, chunk_shape[0])
        state_encoder = StateEncoder(state_size, spec.condition_hidden, residual=True)
        super().__init__(chunk_shape, state_encoder, spec.vision, state_size, cameras, history)
        self.time = TimeEmbedding(spec.time_size, growth=4)
        G, Da = spec.time_size + self.encoder.size, chunk_shape[1]
        channels = [spec.width * multiplier for multiplier in spec.multipliers]
        first, deepest = channels[0], channels[-1]
        self.down = nn.ModuleList(Level(a, b, G, spec) for a, b in pairwise([Da, *channels]))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = Level(deepest, deepest, G, spec)
        self.up = nn.ModuleList(Level(2 * below, c, G, spec) for below, c in pairwise(reversed(channels)))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) for c in reversed(channels[:-1]))
        self.last = nn.Sequential(ConvBlock(first, first, spec), nn.Conv1d(first, Da, 1))

    def forward(self, x: Tensor, t: Tensor, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, H, Da), t (B,) long, code (B, C) -> predicted noise (B, H, Da), features by name, each (B, C, L)."""
        condition = torch.cat([self.time(t), code], -1)
        h, skipped, features = x.transpose(1, 2), [], {}  # [B, H, Da] -> [B, Da, H]
        for n, level in enumerate(self.down):
            h = self.shrink[n - 1](h) if n else h
            h = features[f"down{n}"] = level(h, condition)
            skipped.append(h)
        h = features["middle"] = self.middle(h, condition)
        for n, (level, grow) in enumerate(zip(self.up, self.grow, strict=True)):
            h = features[f"up{n}"] = grow(level(torch.cat([h, skipped.pop()], 1), condition))
        out = features["output"] = self.last(h)
        return out.transpose(1, 2), self.with_code(code, features)  # [B, Da, H] -> [B, H, Da]

    def tap(self, layer: str) -> tuple[str, ...]:
        """Early: the end of the way down; mid: the middle; late: the end of the way up.

        The D2PPO release has no definition for this network: there is no `released_*`.
        """
        late = f"up{len(self.up) - 1}" if len(self.up) else "middle"
        return chosen({"early": f"down{len(self.down) - 1}", "mid": "middle", "late": late}, layer)
