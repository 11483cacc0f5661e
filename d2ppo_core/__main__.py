"""`python -m d2ppo_core` is `d2ppo`: what torchrun starts in each process."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
