"""`d2ppo study report DIR`: one page, tables as CSV, figures as PNG. Works on what there is."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_path, write_json, write_text
from ..report_page import page
from .pages import Material, content
from .store import Store
from .table import cells_table, comparisons_table, on_the_way_table, runs_table


def write_report(folder: Path, out: Path) -> Path:
    """Everything is made before anything is written; returns the path of the summary."""
    store = Store(folder)
    study, about = store.study()
    rows, out = store.rows(), out.absolute()
    known = [row for row in rows if row["task"] in study.tasks]
    material = Material(study, about, known, store.cost(), _planned(study, store))
    text = page(f"Study {study.name}", content(material))
    tables = {
        "cells.csv": cells_table(material.cells),
        "comparisons.csv": comparisons_table(material.comparisons),
        "finetuning.csv": on_the_way_table(material.on_the_way),
        "runs.csv": runs_table(known),
    }
    for name, table in tables.items():
        if not table:
            (out / name).unlink(missing_ok=True)  # of an earlier report
            continue
        write_text(out / name, as_csv(table))
    for path in out.glob("*.png"):
        path.unlink()  # of an earlier report
    for name, picture in material.pictures.items():
        with atomic_path(out / f"{name}.png") as partial:
            partial.write_bytes(picture)
    write_text(out / "report.html", text)
    summary = {"command": "study report", "report": str(out / "report.html"), "study": study.name}
    summary |= {"digest": about["digest"], "runs": len({r["run"] for r in known}), "planned": material.planned}
    summary |= {"cpu_hours": round(store.cost()[0] / 3600, 3), "comparisons": tables["comparisons.csv"]}
    write_json(out / "summary.json", summary)
    return out / "summary.json"


def _planned(study: Any, store: Store) -> int:
    from .plan import Plan

    return len(Plan(study, store.folder / "study.yaml", store.folder).runs)


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    """Comma-separated, with a head."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()
