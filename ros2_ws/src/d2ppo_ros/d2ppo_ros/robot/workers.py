"""Calls that may never return, made in threads that somebody watches. The caller's loop never waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


class Call:
    """One call in a thread of its own.

    A call that hangs cannot be ended: its thread stays behind, and whoever made it must not make another one until it
    has come back or the process ends.
    """

    def __init__(self, work: Callable[[], Any], name: str) -> None:
        self.name, self._work = name, work
        self.begun = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True, name=name).start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:  # whatever it was, the watcher must know
            self.error = error.with_traceback(None)
        del self._work  # it, like a traceback, may hold a connection that must end
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether it has come back."""
        return self._done.is_set()

    @property
    def age(self) -> float:
        """s since it was made."""
        return time.monotonic() - self.begun

    def wait(self, seconds: float) -> bool:
        """Whether it comes back within so long."""
        return self._done.wait(seconds)


class OneAtATime:
    """Makes calls one after the other; while one is under way another is refused."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._call: Call | None = None
        self._lock = threading.Lock()  # callers may be several threads

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._call is not None and not self._call.done

    @property
    def age(self) -> float:
        """s that the call under way has taken so far; 0: there is none."""
        return self._call.age if self._call is not None and self.busy else 0.0

    def start(self, work: Callable[[], Any]) -> bool:
        """Make this call now; False: one is under way."""
        with self._lock:
            if self.busy:
                return False
            self._call = Call(work, self._name)
            return True

    def outcome(self) -> BaseException | None:
        """The error of the last call that came back, once."""
        if self._call is None or not self._call.done:
            return None
        error, self._call.error = self._call.error, None
        return error

    def wait(self, seconds: float) -> bool:
        """Whether the call under way comes back within so long."""
        return self._call is None or self._call.wait(seconds)
