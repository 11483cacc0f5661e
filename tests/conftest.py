"""Fixtures shared by the houses' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2ppo_core.data.robomimic import write_demonstrations
from d2ppo_core.opengl import choose_backend
from support import ENV_ARGS, reach_episodes

choose_backend()  # whichever test imports MuJoCo first, those that paint come later in the same process


@pytest.fixture(scope="session")
def reach_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A robomimic file of the toy task."""
    path = tmp_path_factory.mktemp("data") / "reach.hdf5"
    write_demonstrations(path, reach_episodes(), ENV_ARGS, {})
    return path
