"""A session's file: JSON lines that are only ever appended, each on the disk before anything follows from it.

What a killed program had begun to write is an unfinished last line: it never happened, and is cut off when the file is
opened again. One program at a time: the file is locked, and the lock is handed on to the node processes, so that a
session is not resumed while those of a killed program are still there.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from d2ppo_core.errors import UserError, explain_os_errors

NAME = "session.jsonl"
Event = dict[str, Any]


def read(path: Path) -> tuple[list[Event], int]:
    """Every whole event of a session's file, and how many bytes they take; nothing of a file that is not there."""
    if not path.exists():
        return [], 0
    with explain_os_errors("reading", path):
        content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    events = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise _damaged(path, number, str(error)) from error
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise _damaged(path, number, "it is no event")
        events.append(event)
    return events, whole


def _damaged(path: Path, line: int, why: str) -> UserError:
    return UserError(f"{path}: line {line} cannot be read ({why}); restore the file, or begin in another run_dir")


class Journal:
    """The file, open and locked. `events` is what it holds."""

    def __init__(self, path: Path, patience: float = 10.0) -> None:
        self.path = path
        with explain_os_errors("opening", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # of its own, for the nodes to hold
        try:
            self._locked(patience)
            self.events, self._size = read(path)
            os.ftruncate(self._file, self._size)
            _sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def _locked(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self.path} is in use by another `d2ppo trials run`, or by nodes that one has left behind; "
                        "end those first"
                    ) from error
                time.sleep(0.1)
            else:
                return

    def append(self, event: str, **about: Any) -> Event:
        """Write one event, and return when it is on the disk."""
        made: Event = {"event": event, "at": round(time.time(), 3), **about}
        line = json.dumps(made, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        with explain_os_errors("writing", self.path):
            try:
                written = os.pwrite(self._file, line, self._size)
                if written < len(line):
                    os.pwrite(self._file, line[written:], self._size + written)
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)  # nothing half-written stays
                raise
        self._size += len(line)
        self.events.append(made)
        return made

    def close(self) -> None:
        """Let others have it."""
        for file in (self._file, self.lock):
            os.close(file)


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
