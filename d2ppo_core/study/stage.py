"""One command of a study in a process of its own, which ends when the runner does: `kill -9` leaves no orphans."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Be killed when the parent dies; end at once if it has died already. Only Linux offers this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> int:
    """python -m d2ppo_core.study.stage RUNNER COMMAND [key=value ...]"""
    die_with(int(sys.argv[1]))
    from ..cli import main as command

    return command(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
