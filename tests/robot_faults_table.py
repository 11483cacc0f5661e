"""Puts the table of `robot_rows` into docs/robot.md: what is expected, and what was measured.

PYTHONPATH=tests python -m robot_faults_table runs/robot-faults.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fault_files import put_table
from robot_rows import CAMERA_ROWS, DIES, OTHERS, ROWS, Row

PAGE = Path(__file__).resolve().parents[1] / "docs" / "robot.md"
BEGIN = "<!-- faults: python -m robot_faults_table -->"
HEAD = ["| what happens | who reacts | said after (wall) | at rest within | measured (robot time) | way | times |",
        "|---|---|---|---|---|---|---|"]  # fmt: skip


def spread(rows: list[dict[str, float]], name: str, scale: float, unit: str) -> str:
    """Median, and the largest in brackets."""
    values = scale * np.array([found[name] for found in rows if name in found])
    return f"{np.median(values):.3g} ({values.max():.3g}) {unit}" if len(values) else "–"


def line(row: Row, rows: list[dict[str, float]]) -> str:
    """One row of `ROWS`."""
    rest = ("goes on", "went on", "–") if not row.rest else (
        f"{row.rest:.1f} s", spread(rows, "rest", 1, "s"), spread(rows, "distance", 1000, "mm"))  # fmt: skip
    return "| " + " | ".join([row.name, row.reaction, spread(rows, "said", 1, "s"), *rest, str(len(rows))]) + " |"


def other_line(name: str, rows: list[dict[str, float]]) -> str:
    """One row of `OTHERS`."""
    back = f"back after {spread(rows, 'back', 1, 's')}" if name == DIES else spread(rows, "rest", 1, "s")
    said, way = spread(rows, "said", 1, "s") if name == DIES else "–", spread(rows, "distance", 1000, "mm")
    return "| " + " | ".join([name, OTHERS[name], said, "–", back, way, str(len(rows))]) + " |"


def table(measured: dict[str, Any]) -> str:
    """The whole table, and under what load it came about."""
    lines = [*HEAD, *(line(row, measured.get(row.name, {"rows": []})["rows"]) for row in (*ROWS, *CAMERA_ROWS))]
    lines += [other_line(name, measured.get(name, {"rows": []})["rows"]) for name in OTHERS]
    loads = [entry["load"] for entry in measured.values()]
    if loads:
        again = sum(int(found["not_counted"]) for entry in measured.values() for found in entry["rows"])
        struck = [measured[row.name] for row in (*ROWS, *CAMERA_ROWS) if row.name in measured]
        speeds = [found["speed"] for entry in struck for found in entry["rows"]]
        lines += [
            "",
            f"Struck at {1000 * min(speeds):.0f} to {1000 * max(speeds):.0f} mm/s; two cores, load {min(loads):.1f} to "
            f"{max(loads):.1f} (mean of a minute); {again} more tries not counted, the machine stood still.",
        ]
    return "\n".join(lines)


def main() -> None:
    measured = json.loads(Path(sys.argv[1]).read_text())
    put_table(PAGE, BEGIN, table(measured))


if __name__ == "__main__":
    main()
