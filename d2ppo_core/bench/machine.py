"""What every benchmark says of the machine it ran on, and how its command line is read."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError
from ..machine import cores, installed


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one sentence like any other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def machine(shown: Sequence[str]) -> dict[str, Any]:
    """What the numbers are measured on, with the versions of the distributions `shown`."""
    have = installed()
    return {
        "processor": processor(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: have.get(name, "") for name in shown},
        "load_before": load(),
    }


def processor() -> str:
    """The processor's name, or at least its kind."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def load() -> list[float]:
    """Load averages of 1, 5 and 15 minutes: more than the number of cores means that others compete for them."""
    return [round(value, 2) for value in os.getloadavg()]
