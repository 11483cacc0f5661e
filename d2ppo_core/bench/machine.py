"""What every benchmark says of the machine it ran on, and how its command line is read."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..files import write_json
from ..machine import cores, installed


class Parser(cli.Parser):
    """Of a benchmark."""

    def add_output(self, name: str) -> None:
        """Where the numbers go: a file, or `name` in a folder."""
        self.add_argument("--json", metavar="OUT", help="write the numbers to this file")
        self.add_argument("--run-dir", metavar="DIR", help=f"write them to DIR/{name}")


def write_report(report: dict[str, Any], options: argparse.Namespace, name: str) -> None:
    """Write the numbers where the options of `Parser.add_output` say, if anywhere, and print the path."""
    out = options.json or (Path(options.run_dir) / name if options.run_dir else None)
    if out:
        write_json(out, report)
        print(Path(out).absolute())


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
