"""Puts the faults table into docs/safety.md: what is expected (`ros_faults.FAULTS`), and what was measured.

    PYTHONPATH=tests python -m ros_faults_table runs/faults.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fault_files import put_table
from ros_faults import FAULTS, SLACK, Fault

PAGE = Path(__file__).resolve().parents[1] / "docs" / "safety.md"
BEGIN = "<!-- faults: python -m ros_faults_table -->"
HEAD = ["| fault | who reacts | at rest within | measured | latched within | measured | as | times |",
        "|---|---|---|---|---|---|---|---|"]  # fmt: skip


def spread(values: list[float | None]) -> str:
    """Median and largest of what was measured."""
    found = np.array([value for value in values if value is not None])
    return f"{np.median(found):.2f} s, at most {found.max():.2f} s" if len(found) else "–"


def line(fault: Fault, measured: dict[str, Any]) -> str:
    """One fault's row of the table."""
    rows = measured.get("rows", [])
    rest = spread([row["rest"] for row in rows])
    latched = spread([row["latched"] for row in rows])
    goes_on = fault.noticed < 0
    where = fault.check.replace("|", " or ") or ("–" if goes_on else "the robot's `fault`")
    counts = f"{len(rows)}" if rows else "–"
    expected = ("goes on", "–") if goes_on else (f"{fault.rest:.2f} s", f"{fault.latched + SLACK:.2f} s")
    cells = [fault.name, fault.reaction, expected[0], "went on" if goes_on and rows else rest, expected[1], latched,
             where, counts]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def table(measured: dict[str, Any]) -> str:
    """The whole table, and under what load it came about."""
    loads = [entry["load"] for entry in measured.values()]
    lines = [*HEAD, *(line(fault, measured.get(fault.name, {})) for fault in FAULTS)]
    again = sum(row["not_counted"] for entry in measured.values() for row in entry["rows"])
    if loads:
        cores = max(entry["cores"] for entry in measured.values())
        lines += [
            "",
            f"Measured on {cores} cores under a load of {min(loads):.0f} to {max(loads):.0f} (mean of a minute); "
            f"{again} more tries were not counted, because the machine itself stood still or starved another node.",
        ]
    return "\n".join(lines)


def main() -> None:
    measured = json.loads(Path(sys.argv[1]).read_text())
    put_table(PAGE, BEGIN, table(measured))


if __name__ == "__main__":
    main()
