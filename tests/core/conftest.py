"""Small tensors: one torch thread, so that test processes in parallel do not fight over the cores."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
