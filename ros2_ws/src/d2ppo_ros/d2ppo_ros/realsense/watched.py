"""Calls that may never return, each in a thread of its own: opening and stopping a camera hangs now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Watched(Generic[Result]):
    """One call: done within the patience, or given up. What it returns later goes to `late`, so that nothing leaks."""

    def __init__(self, work: Callable[[], Result], late: Callable[[Result], None] = lambda _: None) -> None:
        self.error: Exception | None = None
        self._work, self._late = work, late
        self._lock, self._over, self._abandoned = threading.Lock(), threading.Event(), False
        self._found: list[Result] = []
        threading.Thread(target=self._run, daemon=True, name="watched").start()

    def _run(self) -> None:
        try:
            result = self._work()
        except Exception as error:  # whatever the library raises belongs to who waits
            self.error = error
            self._over.set()
            return
        with self._lock:
            self._found.append(result)
            abandoned = self._abandoned
            self._over.set()
        if abandoned:
            self._late(result)

    def wait(self, seconds: float) -> bool:
        """Whether it has returned or failed by then; if not it is given up."""
        if self._over.wait(seconds):
            return True
        with self._lock:
            self._abandoned = not self._found and self.error is None
        return not self._abandoned

    @property
    def result(self) -> Result:
        """What was returned; raises what was raised."""
        if self.error is not None:
            raise self.error
        return self._found[0]
