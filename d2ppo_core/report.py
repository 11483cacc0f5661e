"""`d2ppo report RUN [RUN ...]`: one self-contained HTML page about one or more runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import report_sections as sections
from .cli import Parser
from .errors import UserError, explain_os_errors
from .files import atomic_path, write_json, write_text
from .report_figures import result_png
from .report_making import duration, making
from .report_page import element, join, page, section
from .report_runs import Run, read_runs


def main(arguments: list[str]) -> int:
    """Read every run, make the whole page, and only then write."""
    parser = Parser(
        prog="d2ppo report",
        description="One HTML page about one or more runs: success, curves, features, films, how they were made.",
        epilog="example: d2ppo report runs/lift runs/lift-ppo runs/lift-evaluation --run-dir runs/lift-report",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, finished or not")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/report"), help="folder of the report [runs/report]")
    options = parser.parse_args(arguments)
    out = options.run_dir.absolute()
    _require_own_folder(out)
    runs = read_runs(options.runs)
    text = compose(runs)
    picture = result_png(
        sections.evaluated(runs), sections.of_command(runs, "finetune"), sections.of_command(runs, "pretrain")
    )
    write(out, runs, text, picture)
    print(f"report: {out / 'report.html'}")
    print(out / "summary.json", flush=True)
    return 0


def _require_own_folder(out: Path) -> None:
    """Refuse the folder of a run: its summary would be overwritten."""
    with explain_os_errors("looking at", out):
        if (out / "config.yaml").exists() or ((out / "summary.json").exists() and not (out / "report.html").exists()):
            raise UserError(f"{out} holds a run, which a report must not overwrite; choose another --run-dir")


def compose(runs: Sequence[Run]) -> str:
    """The page: headline, curves, features, films, demonstrations, how it was made."""
    figures = sections.Figures()
    tasks = list(dict.fromkeys(str(run.setting("task.name")) for run in runs if run.setting("task.name")))
    title = "D²PPO report" + (f": {', '.join(tasks)}" if tasks else "")
    return page(
        title,
        join(
            [
                element("h1", title),
                element("p", "; ".join(f"{run.name} ({_state(run)})" for run in runs), "muted"),
                section("Success", sections.success(runs, figures)),
                section("Learning curves", sections.curves(runs, figures)),
                section("Features during pre-training", sections.features(runs, figures)),
                section("Films", sections.films(runs)),
                section("Demonstrations", sections.demonstrations(runs, figures)),
                section("How it was made", making(runs)),
            ]
        ),
    )


def _state(run: Run) -> str:
    if run.finished:
        return f"{run.command}, {duration(run.seconds)}"
    step = run.metrics[-1].get("step") if run.metrics else None
    reached = f" at {'iteration' if run.command == 'finetune' else 'step'} {step}" if step is not None else ""
    return f"{run.command or 'a run'}, unfinished{reached}"


def write(out: Path, runs: Sequence[Run], text: str, picture: bytes | None) -> None:
    """report.html, result.png and last summary.json, each whole or not at all."""
    if picture is not None:
        with atomic_path(out / "result.png") as partial:
            partial.write_bytes(picture)
    elif (out / "result.png").exists():
        (out / "result.png").unlink()  # of an earlier report of other runs
    write_text(out / "report.html", text)
    write_json(out / "summary.json", summary(out, runs, picture is not None))


def summary(out: Path, runs: Sequence[Run], has_picture: bool) -> dict[str, Any]:
    """What the page says, for programs."""
    return {
        "command": "report",
        "report": str(out / "report.html"),
        "result": str(out / "result.png") if has_picture else None,
        "runs": [
            {"path": str(run.path), "name": run.name, "command": run.command, "finished": run.finished} for run in runs
        ],
        "policies": [
            {
                "label": label,
                "run": run.name,
                "role": role,
                "success_rate": asdict(run.policies[role].rate),
                "successes": sum(run.policies[role].success),
                "episodes": len(run.policies[role].seeds),
            }
            for label, run, role in sections.evaluated(runs)
        ],
        "differences": [{"run": run.name, **asdict(run.difference)} for run in runs if run.difference is not None],
    }
