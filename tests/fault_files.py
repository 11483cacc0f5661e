"""What the 20-fold fault tests measured, as JSON by the fault's name, and the tables in docs/ made of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from d2ppo_core.files import write_json

END = "<!-- end of faults -->"


def write_down(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Add what was measured of one fault to the file, with the load of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, known | {name: {"load": os.getloadavg()[0], "cores": os.cpu_count(), "rows": rows}})


def put_table(page: Path, begin: str, table: str) -> None:
    """Replace what stands in a page between the line `begin` and the line `END`."""
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{table}\n{END}{rest.partition(END)[2]}")
