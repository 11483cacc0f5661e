"""Starts a program that is told to end as soon as whoever started it is gone, even by kill -9.

    python -m d2ppo_ros.trials.leash PARENT PROGRAM ARGUMENT ...

Standard library only, and nothing of our own: it is one more interpreter for each node.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # Linux: prctl(2)


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the program."""
    parent, *command = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it went before we were tied to it
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
