"""Which code wrote a file."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import __version__


def code_version() -> str:
    """Package version, with the commit (and `+changes`) where the package runs from a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({text})"
