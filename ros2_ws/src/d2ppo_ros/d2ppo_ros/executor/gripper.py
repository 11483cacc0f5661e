"""The gripper as a state machine: a policy's noise must not make a real hand chatter."""

from __future__ import annotations

OPEN, CLOSED = -1.0, 1.0


class Gripper:
    """Open or closed; changes at two thresholds, and not before it has stayed for `dwell` ns."""

    def __init__(self, close: float, open_: float, dwell: int) -> None:
        self.close, self.open, self.dwell = close, open_, dwell
        self.reset()

    def reset(self) -> None:
        """Forget its state: the next action decides, whatever was before."""
        self.state: float | None = None
        self.since = 0

    def update(self, value: float, now: int) -> float:
        """The command, OPEN or CLOSED, for the gripper's number in an action at time `now` (ns)."""
        if self.state is None:
            wanted = CLOSED if value > (self.close + self.open) / 2 else OPEN
        elif now - self.since < self.dwell:
            return self.state
        else:
            wanted = CLOSED if value > self.close else OPEN if value < self.open else self.state
        if wanted != self.state:
            self.state, self.since = wanted, now
        return wanted
