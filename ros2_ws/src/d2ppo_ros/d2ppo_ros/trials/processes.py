"""The node processes of a session: all stay up but the policy's, which is started anew for every trial.

All are started by one thread that lives as long as this program: Linux ends a leashed process with the *thread* that
started it. What they print goes to a file, without what would tell which policy runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import graph
from ..up import ended_in_time, kill
from . import leash
from .policies import Curtain

LAST = 30  # lines of a process that are kept to say why it ended


class Processes:
    """Processes by name."""

    def __init__(self, system: graph.System, log: Path, curtain: Curtain, lock: int) -> None:
        self.wanted = {process.name: process for process in system.processes}
        self._files, self._environment = system.files, system.environment
        self._curtain, self._lock_file, self._log_path = curtain, lock, log
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._said: dict[str, list[str]] = {}
        self._expected: set[str] = set()  # whose end is no failure
        self._starter = ThreadPoolExecutor(1, "starter")
        self._writing = threading.Lock()

    def start(self, name: str, files: list[Path] | None = None) -> None:
        """Start one of them; `files`: of parameters, over the system's."""
        self._starter.submit(self._start, name, files or []).result()

    def _start(self, name: str, files: list[Path]) -> None:
        command = graph.command(self.wanted[name], [*self._files, *files])
        leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]
        process = subprocess.Popen(
            leashed, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True, pass_fds=(self._lock_file,),
        )  # fmt: skip
        self._running[name], self._said[name] = process, []
        self._expected.discard(name)
        threading.Thread(target=self._keep, args=(name, process), daemon=True).start()

    def _keep(self, name: str, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:  # type: ignore[union-attr]
            text = self._curtain.hide(line.rstrip("\n"))
            self._said[name] = [*self._said[name][1 - LAST :], text]
            with self._writing, open(self._log_path, "a", encoding="utf-8") as log:
                log.write(f"[{name}] {text}\n")

    def ended(self) -> tuple[str, str] | None:
        """One that ended by itself and that the others need, and what it said last; None: all is well."""
        for name, process in list(self._running.items()):
            code = process.poll()
            if code is not None and name not in self._expected and name not in graph.SPARE:
                said = (self._said[name] or [""])[-1]
                return name, f"exit code {code}" + (f": {said}" if said else "")
        return None

    def end(self, name: str) -> None:
        """Ask one to end, and wait until it has; nothing where it does not run."""
        self._expected.add(name)
        process = self._running.pop(name, None)
        if process is None:
            return
        if not ended_in_time(process):
            kill(process)

    def stop(self) -> None:
        """End all, the last started first: whoever commands before whoever must still hear the last stop."""
        for name in reversed(self.wanted):
            self.end(name)
        self._starter.shutdown(wait=False)
