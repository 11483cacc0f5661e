"""Which windows a gradient step sees: step s alone decides, so a run resumes anywhere without saved state."""

from __future__ import annotations

import torch
from torch import Tensor

from ..conf.schema import TrainConfig
from ..keyed import generator
from .windows import ChunkWindows

BATCHINGS = ("random", "trajectory", "separated")


def make_batches(windows: ChunkWindows, train: TrainConfig, seed: int) -> KeyedBatches:
    """The batches that `train.batching` names."""
    count = len(windows)
    if train.batching == "trajectory":
        return TrajectoryBatches(count, train.batch, seed, windows.episode_starts.cpu())
    kind = SeparatedBatches if train.batching == "separated" else KeyedBatches
    return kind(count, train.batch, seed)


class KeyedBatches:
    """Shuffled batches. Each epoch is one permutation named by (seed, epoch); what fills no batch is left out of it."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, min(batch, count), seed
        self.per_epoch = max(1, count // self.batch)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """Indices (B,) of gradient step `step`."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = self.order(generator(self.seed, "epoch", epoch))
            self._epoch = epoch
        return self.arranged(self._order[position * self.batch : (position + 1) * self.batch], step)

    def order(self, draw: torch.Generator) -> Tensor:
        """Windows in the order of an epoch, at least per_epoch * batch of them."""
        return torch.randperm(self.count, generator=draw)

    def arranged(self, index: Tensor, step: int) -> Tensor:
        """A batch's windows in the order of its rows, which must be random: `dispersive.pairs` takes the first ones."""
        return index

    def _shuffled(self, index: Tensor, step: int) -> Tensor:
        return index[torch.randperm(len(index), generator=generator(self.seed, "rows", step))]


class TrajectoryBatches(KeyedBatches):
    """Episodes shuffled and laid end to end, then cut: a batch is of as few episodes as fill it."""

    def __init__(self, count: int, batch: int, seed: int, episode_starts: Tensor) -> None:
        """`episode_starts` (count,): equal for the windows of one episode, which follow one another."""
        super().__init__(count, batch, seed)
        _, lengths = torch.unique_consecutive(episode_starts, return_counts=True)
        self._episodes = torch.arange(count).split(lengths.tolist())

    def order(self, draw: torch.Generator) -> Tensor:
        """See `KeyedBatches.order`; cut at a random place, so that no window is left out of every epoch."""
        chosen = torch.randperm(len(self._episodes), generator=draw).tolist()
        order = torch.cat([self._episodes[n] for n in chosen])
        return order.roll(int(torch.randint(self.count, (), generator=draw)))

    def arranged(self, index: Tensor, step: int) -> Tensor:
        return self._shuffled(index, step)


class SeparatedBatches(KeyedBatches):
    """Windows k, k + P, k + 2P, ...: two of one episode in a batch lie at least P = count // batch steps apart."""

    def order(self, draw: torch.Generator) -> Tensor:
        """See `KeyedBatches.order`: from a random first window on, and the batches in random order."""
        first = int(torch.randint(self.count, (), generator=draw))
        phases = torch.randperm(self.per_epoch, generator=draw)
        steps = self.per_epoch * torch.arange(self.batch)
        return ((first + phases[:, None] + steps) % self.count).flatten()  # [P, 1] + [B] -> [P * B]

    def arranged(self, index: Tensor, step: int) -> Tensor:
        return self._shuffled(index, step)
