"""Keyed randomness: every draw comes from a generator named by what it is for, never from a shared stream.

A result then depends neither on how many workers ran, nor on the batch in which a sample fell, nor on whether the run
was killed and resumed in between: there is no generator state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key(*parts: int | str) -> int:
    """A 63-bit seed named by `parts`, e.g. `key(seed, "action", episode_seed, chunk_index)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded with `key(*parts)`."""
    return torch.Generator(device=device).manual_seed(key(*parts))


@contextmanager
def torch_seeded(*parts: int | str) -> Iterator[None]:
    """torch's shared generator seeded with `key(*parts)` inside, and as it was afterwards: for fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(*parts))
        yield


def action_noise(seed: int, episode_seeds: list[int], chunk_indices: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise for one chunk of each of B episodes.

    Args:
        seed: the run's seed.
        episode_seeds: one per environment, length B.
        chunk_indices: which chunk of its episode each environment is at, length B.
        shape: shape of one episode's noise, `(S + 1, H, Da)` for S denoising steps (see `diffusion.chain`).

    Returns:
        float32 `(B, *shape)`. Row i depends on `(seed, episode_seeds[i], chunk_indices[i])` alone.
    """
    rows = [
        torch.randn(shape, generator=generator(seed, "action", int(episode), int(chunk)))
        for episode, chunk in zip(episode_seeds, chunk_indices, strict=True)
    ]
    return torch.stack(rows)
