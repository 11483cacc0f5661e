"""`compile=true`: torch.compile makes few fused kernels of a loss and of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .errors import UserError


def compiled(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    """`function`, compiled where it is wanted: the same numbers but for rounding.

    Kernels are made at the first call and kept in torch's own cache. A UserError where no kernel can be made at all,
    at once: before a run has written anything.
    """
    if not wanted:
        return function
    try:
        torch.compile(torch.sin)(torch.zeros(2))
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"compile=true: torch cannot compile here ({reason}); install g++ and the headers of Python "
            "(Debian: apt install g++ python3-dev), or leave compile out"
        ) from error
    return torch.compile(function)
