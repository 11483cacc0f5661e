"""The transformer layer of the ViT and of the transformer policies."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention of x (B, N, width) to memory (B, P, width), with no mask and no dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split into {heads} attention heads; choose a divisor of it")
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query, (key, value) = self.query(x), self.key_value(memory).chunk(2, -1)
        mixed = functional.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value))
        return self.out(mixed.transpose(1, 2).flatten(2))  # [B, heads, N, width/heads] -> [B, N, width]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, N, width] -> [B, heads, N, width/heads]


class TransformerLayer(nn.Module):
    """Normalise, then attend to itself, to a memory (where `cross`), and feed forward; each added to its input."""

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.norm_attention, self.attention = nn.LayerNorm(width), Attention(width, heads)
        if cross:
            self.norm_cross, self.cross = nn.LayerNorm(width), Attention(width, heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x (B, N, width), memory (B, P, width) -> (B, N, width)."""
        normed = self.norm_attention(x)
        x = x + self.attention(normed, normed)
        if memory is not None:
            x = x + self.cross(self.norm_cross(x), memory)
        return x + self.feed(self.norm_feed(x))
