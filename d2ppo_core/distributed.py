"""Pre-training by several processes under torchrun, each taking its rows of every batch (data parallel).

Batch and noise of a step are named by the step alone, so every process draws them whole and takes its share: together
they do the arithmetic of one, but for the order in which numbers are added up. torchrun says in the environment which
process this is (RANK, LOCAL_RANK) and how many there are (WORLD_SIZE). The first owns the run folder.
"""

from __future__ import annotations

import atexit
import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from .errors import UserError


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: which of `count` this is, and what they do together. One alone needs nothing of it."""

    rank: int = 0
    count: int = 1

    def rows(self, whole: Tensor) -> Tensor:
        """This process's rows, (B, ...) -> (B / count, ...)."""
        return whole.tensor_split(self.count)[self.rank]

    def whole(self, rows: Tensor) -> Tensor:
        """The rows of all processes in their order, (B / count, ...) -> (B, ...); differentiable."""
        return rows if self.count == 1 else _Gather.apply(rows, self)

    def mean(self, value: Tensor) -> Tensor:
        """Over the processes, detached; any shape."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        with _others_alive():
            dist.all_reduce(total)
        return total / self.count

    def average_gradients(self, network: nn.Module) -> None:
        """Every gradient becomes its mean over the processes: one message for all of them."""
        if self.count == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        means = self.mean(torch.cat([g.flatten() for g in gradients])).split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [mean.view_as(g) for mean, g in zip(means, gradients, strict=True)])

    def from_first(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """The state (tensors, numbers, strings) that the first process gives, on the CPU; the others give None."""
        if self.count == 1:
            return state  # type: ignore[return-value]
        file = io.BytesIO()
        torch.save(state, file)
        sent = [file.getvalue()]
        with _others_alive():
            dist.broadcast_object_list(sent, device=torch.device("cpu"))
        return state or torch.load(io.BytesIO(sent[0]), map_location="cpu", weights_only=True)

    def require_same(self, value: Any, otherwise: str) -> None:
        """Refuse, with the sentence `otherwise`, when a process has another value."""
        if self.count == 1:
            return
        values = [None] * self.count
        with _others_alive():
            dist.all_gather_object(values, value)
        if values != values[:1] * self.count:
            raise UserError(otherwise)

    def require_same_weights(self, network: nn.Module, step: int) -> None:
        """The processes' weights must not drift apart."""
        if self.count == 1:
            return
        total = torch.stack([p.detach().double().sum() for p in network.parameters()]).sum().item()
        self.require_same(
            repr(total),  # NaN, too, equals itself so
            f"the processes' weights differ at step {step}; give them machines (and GPUs) of one kind, or train with "
            "one process",
        )

    def require_shares(self, batch: int, windows: int) -> None:
        """A step's batch must split into equal shares, for a mean of means to be the mean."""
        if batch % self.count == 0:
            return
        lower = batch - batch % self.count
        sizes = " or ".join(str(size) for size in (lower, lower + self.count) if 0 < size <= windows)
        fix = f"give train.batch={sizes}" if sizes else "start fewer"
        raise UserError(f"{self.count} processes cannot share the {batch} windows of a batch equally; {fix}")


ALONE = Ranks()


class _Gather(torch.autograd.Function):
    """Rows (B / W, ...) of each of W processes -> (B, ...) on all of them.

    Every process computes the same loss of the same gathered rows, so it knows the gradient by its own without asking.
    Times W: gradients by the weights are averaged over the processes, and that of this loss is the sum of what each
    one's rows contribute.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        whole = rows.new_empty((ranks.count * len(rows), *rows.shape[1:]))
        with _others_alive():
            dist.all_gather(list(whole.chunk(ranks.count)), rows.detach().contiguous())
        return whole

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.rows(gradient) * ctx.ranks.count, None


@contextmanager
def _others_alive() -> Iterator[None]:
    """Say what it means when the others no longer answer."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"another process of this run does not answer ({str(error).splitlines()[0].split('. ')[0]}); see what it "
            "said, then go on by the same command with resume=true"
        ) from error


# --- torchrun ---------------------------------------------------------------------------------------------------------


def join(device: torch.device) -> Ranks:
    """Meet the other processes that torchrun started; alone without it. A CUDA device becomes this process's own."""
    if world_size() == 1:
        return ALONE
    board = _board()
    cuda, local = device.type == "cuda", int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"there are more processes than the {torch.cuda.device_count()} GPU(s) of this machine; lower "
            "--nproc-per-node, or add device=cpu"
        )
    if cuda:
        torch.cuda.set_device(local)
    ranks = Ranks(int(os.environ["RANK"]), world_size())
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        with _others_alive():
            dist.init_process_group(backend, store=board, rank=ranks.rank, world_size=ranks.count)
        atexit.register(dist.destroy_process_group)
    return ranks


def world_size() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def first_to_fail() -> bool:
    """Whether no other process has failed before: the one that says why the run ends."""
    try:
        return _board().add("d2ppo failures", 1) == 1
    except (UserError, RuntimeError, ValueError):  # nobody to ask
        return True


@functools.cache
def _board() -> dist.Store:
    """The key-value store that the processes of a run share, fresh for each time that torchrun starts them again."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set, but not {', '.join(missing)}; start by torchrun, or unset WORLD_SIZE")
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), next(dist.rendezvous("env://"))[0])
