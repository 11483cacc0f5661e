"""What a study's folder remembers: its file's digest, every command's cost, and one append-only table of results."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError, explain_os_errors
from ..files import write_json
from ..version import code_version
from .schema import Study, read_study

ROW_TIMES = ("cpu_seconds", "wall_seconds", "finished")  # what differs between two runs of the same study


class Store:
    """`study.json`, `study.yaml`, `ledger.jsonl` and `results.jsonl` in a folder. Only one process may run a study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.results, self.ledger = self.folder / "results.jsonl", self.folder / "ledger.jsonl"
        self._lock: int | None = None

    def open(self, study: Study, file: Path, digest: str) -> None:
        """Begin the study in this folder, or go on with the one there if its file is the same."""
        with explain_os_errors("making the study's folder", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        before = self.begun()
        if before and before["digest"] != digest:
            raise UserError(
                f"{file} has changed since the study in {self.folder} was begun; restore it (its copy is "
                f"{self.folder / 'study.yaml'}), or begin another study in another --run-dir"
            )
        if not before:
            if any(path.name != ".lock" for path in self.folder.iterdir()):
                raise UserError(f"{self.folder} holds something else than a study; choose another --run-dir")
            shutil.copyfile(file, self.folder / "study.yaml")
            about = {"command": "study", "name": study.name, "digest": digest}
            write_json(self.folder / "study.json", about | {"code_version": code_version(), "begun": _now()})
        for path in (self.results, self.ledger):
            _drop_torn_line(path)

    def begun(self) -> dict[str, Any]:
        """What was written when the study began; {} before."""
        path = self.folder / "study.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            return value if not value else {"digest": str(value["digest"]), **value}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); restore it, or begin another study") from error

    def study(self) -> tuple[Study, dict[str, Any]]:
        """The study that was begun here, from its copy, for a report."""
        about = self.begun()
        if not about:
            raise UserError(f"{self.folder} holds no study; give the --run-dir of `d2ppo study run`")
        study, digest = read_study(self.folder / "study.yaml")
        if digest != about["digest"]:
            raise UserError(f"{self.folder / 'study.yaml'} has changed since the study was begun; restore it")
        return study, about

    def _take_lock(self) -> None:
        """Held by this process and, through inheritance, by every command that it started and that still lives."""
        self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        os.set_inheritable(self._lock, True)
        for last in (False,) * 15 + (True,):  # the commands of a killed runner are ending
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if not last:
                    time.sleep(0.2)
        self.close()
        raise UserError(f"another `d2ppo study run` works in {self.folder}; wait for it, or stop it")

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors that a started command keeps open."""
        return () if self._lock is None else (self._lock,)

    def close(self) -> None:
        """Let others run the study."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- lines ------------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """The latest row of each (run, policy), in the order in which they were first written."""
        latest: dict[tuple[str, str], dict[str, Any]] = {}
        for row in read_lines(self.results):
            latest[row["run"], row["policy"]] = row
        return list(latest.values())

    def add(self, row: dict[str, Any]) -> None:
        """Append one result; it is on the disk when this returns."""
        _append(self.results, row | {"finished": _now()})

    def charge(self, owner: str, stage: str, cpu: float, wall: float, code: int) -> None:
        """Note what one command cost."""
        _append(
            self.ledger,
            {"run": owner, "stage": stage, "cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2), "exit": code},
        )

    def cost(self, owner: str = "") -> tuple[float, float]:
        """CPU and wall-clock seconds of all commands, or of one run's."""
        lines = [line for line in read_lines(self.ledger) if owner in ("", line["run"])]
        return sum(line["cpu_seconds"] for line in lines), sum(line["wall_seconds"] for line in lines)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a last one cut off by a kill is left out, damage elsewhere is refused."""
    with explain_os_errors("reading", path):
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for n, line in enumerate(lines[:-1]):
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or not isinstance(value.get("run"), str):
                raise ValueError("no object that names a run")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged (line {n + 1}: {error}); restore it from a copy") from error
        yield value


def _append(path: Path, value: dict[str, Any]) -> None:
    with explain_os_errors("writing", path), open(path, "ab") as file:
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n") and content:
            os.truncate(path, content.rfind(b"\n") + 1)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
