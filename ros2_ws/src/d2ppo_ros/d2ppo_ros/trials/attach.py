"""A person's word on a trial, put into its record, where `d2ppo trials show` and `export` look for it."""

from __future__ import annotations

import json
from pathlib import Path

from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import write_json

from ..recording.writer import SIDECAR
from .session import SUCCESS, Trial


def attach(trial: Trial, session: Path) -> None:
    """Write outcome, reason and notes into the record's trial.json; nothing where none was made."""
    record = str((trial.ended or {}).get("record", ""))
    if not record:
        return
    path = Path(record) / SIDECAR
    with explain_os_errors("reading", path):
        text = path.read_text(encoding="utf-8")
    try:
        about = json.loads(text)
        judged = {"success": trial.outcome == SUCCESS, "judged": trial.outcome, "notes": trial.notes,
                  "session": str(session)}  # fmt: skip
        about["outcome"] = {**about.get("outcome", {}), **judged, **({"void": trial.reason} if trial.reason else {})}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); the outcome is in {session} alone") from error
    write_json(path, about)
