"""Images: the ViT and the spatial embedding of DPPO's pixel policies (both from IBRL, Hu et al. 2024), and DrQ's shift.

One ViT looks through all cameras, and at all time steps; each camera has a spatial embedding of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..contract import Camera
from ..network_specs import VisionSpec
from .attention import TransformerLayer

SMALLEST = 16  # pixels a side that give the two convolutions one token


def patches(pixels: int) -> int:
    """Tokens along one side of an image: what a convolution of kernel 8, stride 4, then of 3, stride 2, leaves."""
    return ((pixels - 8) // 4 + 1 - 3) // 2 + 1


class ViT(nn.Module):
    """Images (N, 3, H, W) uint8 -> tokens (N, P, width): two convolutions, positions, transformer layers, LayerNorm.

    96 x 96 pixels are 11 x 11 tokens.
    """

    def __init__(self, spec: VisionSpec, height: int, width: int) -> None:
        super().__init__()
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"an image of {height} x {width} pixels is too small: the ViT needs at least {SMALLEST} a side"
            )
        self.embed = nn.Sequential(
            nn.Conv2d(3, spec.width, 8, stride=4), nn.ReLU(), nn.Conv2d(spec.width, spec.width, 3, stride=2)
        )
        self.position = nn.Parameter(torch.empty(patches(height) * patches(width), spec.width))
        self.layers = nn.ModuleList(TransformerLayer(spec.width, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        # Channels last is what convolutions are fastest in, and it makes the tokens below contiguous for nothing. Said
        # by moving axes, since `memory_format` has no meaning under vmap (several seeds trained at once).
        last = images.movedim(1, -1).contiguous().to(self.position.dtype)  # [N, 3, H, W] -> [N, H, W, 3]
        pixels = last.movedim(-1, 1) / 255 - 0.5
        x = self.embed(pixels).flatten(2).transpose(1, 2) + self.position  # [N, width, h, w] -> [N, P, width]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class SpatialEmbedding(nn.Module):
    """Tokens (..., P, width) and the state (..., S) -> features (..., size).

    Each channel, with the state appended, is projected along its P places; the channels are then summed, weighted.
    """

    def __init__(self, tokens: int, width: int, state_size: int, size: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(tokens + state_size, size), nn.LayerNorm(size), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(width, size))

    def forward(self, tokens: Tensor, state: Tensor) -> Tensor:
        channels = tokens.transpose(-1, -2)  # [..., P, width] -> [..., width, P]
        repeated = state.unsqueeze(-2).expand(*channels.shape[:-1], -1)  # [..., S] -> [..., width, S]
        return (self.project(torch.cat([channels, repeated], -1)) * self.weight).sum(-2)


class VisionEncoder(nn.Module):
    """State (B, To*Do) and images (B, To, cameras, 3, H, W) uint8 -> (B, size): features, then the state itself.

    There are `spec.features` for each time step and camera, in this order.
    """

    def __init__(self, spec: VisionSpec, state_size: int, cameras: Sequence[Camera], history: int) -> None:
        super().__init__()
        sizes = {(camera.height, camera.width) for camera in cameras}
        if not sizes:
            raise ValueError("a network with `vision` needs a camera, and the observation has none; leave `vision` out")
        if len(sizes) > 1:
            listed = ", ".join(f"{camera.name} {camera.height} x {camera.width}" for camera in cameras)
            raise ValueError(f"one ViT sees all cameras, so they must be of one size, not {listed}")
        height, width = sizes.pop()
        self.vit = ViT(spec, height, width)
        embedding = SpatialEmbedding(len(self.vit.position), spec.width, state_size, spec.features)
        self.embeddings = nn.ModuleList(copy.deepcopy(embedding) for _ in cameras)  # all start alike, as published
        self.size = history * len(cameras) * spec.features + state_size

    def forward(self, state: Tensor, images: Tensor) -> Tensor:
        tokens = self.vit(images.flatten(0, 2)).unflatten(0, images.shape[:3])  # [B*To*cameras, ...] -> [B, To, ...]
        each_step = state.unsqueeze(1).expand(-1, images.shape[1], -1)  # [B, To*Do] -> [B, To, To*Do]
        features = [embed(tokens[:, :, n], each_step) for n, embed in enumerate(self.embeddings)]
        return torch.cat([torch.stack(features, 2).flatten(1), state], -1)  # [B, To, cameras, F] -> [B, To*cameras*F]


def draw_shift(shape: Sequence[int], pad: int, generator: torch.Generator) -> Tensor:
    """Offsets (*shape, 2) for `random_shift`, each uniform in 0..2*pad, on the generator's device."""
    return torch.randint(2 * pad + 1, (*shape, 2), generator=generator, device=generator.device)


def random_shift(images: Tensor, offsets: Tensor, pad: int) -> Tensor:
    """Pad each image by repeating its edge, and cut a window of its old size (DrQ, Kostrikov et al. 2020).

    Args:
        images: (..., 3, H, W), any type. offsets: (..., 2) long, the window's row and column in 0..2*pad.
        pad: pixels on each side; offsets of `pad` shift nothing.
    """
    *batch, _, H, W = images.shape
    flat, first = images.flatten(0, len(batch) - 1), offsets.flatten(0, len(batch) - 1) - pad  # [..., 2] -> [N, 2]
    rows = (first[:, :1] + torch.arange(H, device=images.device)).clamp(0, H - 1)  # [N, H]: where each comes from
    columns = (first[:, 1:] + torch.arange(W, device=images.device)).clamp(0, W - 1)  # [N, W]
    source = (rows[:, :, None] * W + columns[:, None, :]).flatten(1)  # [N, H, W] -> [N, H*W]
    shifted = flat.flatten(2).gather(2, source[:, None].expand(-1, 3, -1))  # of [N, 3, H*W]
    return shifted.view(images.shape)
