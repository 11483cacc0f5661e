"""`train.compile=true`: torch.compile makes few fused kernels of a loss and of its gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

TOLERANCE = 0.05  # of the gradient's norm: rounding in bfloat16 brings two ways to compute it 0.003 apart


def compiled(
    function: Callable[..., Any], example: Sequence[Any], total: Callable[[Any], Tensor], weights: Sequence[Tensor]
) -> Callable[..., Any]:
    """`function` compiled: the same numbers but for rounding. Kernels are kept in torch's own cache.

    torch 2.13 compiles some losses wrongly, without a word (on the CPU the gradient of a matrix plus its diagonal,
    which `dispersive=release` and `paper` have, is noise). So the gradient of `total(function(*example))` is computed
    both ways first. A UserError where they differ, or where torch can compile nothing.
    """
    torch._dynamo.reset()  # it compiles one function for eight callers at most, and the jobs of a sweep share a process
    fast = torch.compile(function)
    plain = _gradient(total(function(*example)), weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about torch
            error = float((_gradient(total(fast(*example)), weights) - plain).norm() / plain.norm().clamp(min=1e-12))
    except (torch._dynamo.exc.TorchDynamoException, OSError) as refusal:
        reason = str(refusal).splitlines()[0]
        raise UserError(
            f"train.compile=true: torch cannot compile here ({reason}); install g++ and the headers of Python "
            "(Debian: apt install g++ python3-dev), or leave train.compile out"
        ) from refusal
    if not error <= TOLERANCE:
        raise UserError(
            f"train.compile=true: torch compiles this loss wrongly (its gradient is off by {error:.2g} of its norm); "
            "leave train.compile out"
        )
    return fast


def _gradient(scalar: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, weights, materialize_grads=True)])
