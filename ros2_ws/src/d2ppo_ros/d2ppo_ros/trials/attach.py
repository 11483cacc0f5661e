"""A person's word on a trial, put into its record, where `d2ppo trials show` and `export` look for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import write_json

from ..recording.writer import SIDECAR
from .session import SUCCESS, Trial


def attach_all(trials: Sequence[Trial], session: Path) -> None:
    """After a kill: those outcomes that are in the session's file and not in their records yet."""
    for trial in trials:
        if trial.outcome:
            with suppress(UserError):  # the session's file has it, and a record may have been moved away
                attach(trial, session)


def attach(trial: Trial, session: Path) -> None:
    """Write outcome, reason and notes into the record's trial.json; nothing where none was made."""
    record = str((trial.ended or {}).get("record", "")) or session.parent / "records" / trial.name
    path = Path(record) / SIDECAR
    if not path.exists():
        return
    with explain_os_errors("reading", path):
        text = path.read_text(encoding="utf-8")
    try:
        about = json.loads(text)
        judged = {"success": trial.outcome == SUCCESS, "judged": trial.outcome, "notes": trial.notes,
                  "session": str(session)}  # fmt: skip
        told = {**about.get("outcome", {}), **judged, **({"void": trial.reason} if trial.reason else {})}
        if not trial.reason:  # a correction takes it back
            told.pop("void", None)
        same, about["outcome"] = about.get("outcome") == told, told
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); the outcome is in {session} alone") from error
    if not same:
        write_json(path, about)
