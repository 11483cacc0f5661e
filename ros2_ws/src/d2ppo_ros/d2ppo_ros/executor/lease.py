"""Who runs a trial must keep saying so: a trial that nobody watches any more is stopped."""

from __future__ import annotations


class Lease:
    """One trial's. Times in ns of one steady clock; a length of 0 means that nobody needs to say anything."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._trial, self._heard = "", 0

    def begin(self, trial: str, now: int) -> None:
        """A trial begins: whoever asked for it was alive."""
        self._trial, self._heard = trial, now

    def renew(self, trial: str, now: int) -> None:
        """Somebody says that this trial is being run; of another trial it means nothing."""
        if trial == self._trial:
            self._heard = now

    def over(self, now: int) -> bool:
        """Whether it has been silent for too long."""
        return 0 < self._length < now - self._heard
