"""The robot's own watchdog, inside its servo loop: it trusts neither the executor nor the safety node to be alive."""

from __future__ import annotations

from enum import IntEnum

from ..records import Kind, State

_MS = 1_000_000  # ns


class Order(IntEnum):
    """What the servo must do now."""

    GO = 0  # follow the last target
    HOLD = 1  # stay where you are
    STOP = 2  # stay, latched
    DISARMED = 3  # stay, latched; whoever controls the arm may let go of it


class Watchdog:
    """Commands and safety's heartbeat in, what the servo must do out. All times in ns of the servo's steady clock.

    A latched STOP or DISARMED ends only when safety says DISARMED or READY, that is when a person has to arm again;
    after that it takes ARMED and a new command to GO.
    """

    def __init__(self, hold_ms: int = 100, stop_ms: int = 300, disarm_ms: int = 1000, lease_ms: int = 200) -> None:
        self._hold, self._stop, self._disarm, self._lease = (ms * _MS for ms in (hold_ms, stop_ms, disarm_ms, lease_ms))
        self.reason = "not armed yet"
        self._rested = False  # safety has said DISARMED or READY since the last latch: a person was asked
        self._armed = False
        self._latched: Order | None = None
        self._kind: Kind | None = None  # of the last command since arming
        self._fed = self._heard = self._now = 0  # last command or arming; last heartbeat; latest time seen

    def feed(self, kind: Kind, now: int) -> Order:
        """A command came from safety."""
        self.poll(now)  # after a stall of everything: what was silent too long stays so, whatever waits in a queue
        now = self._now
        if kind is Kind.STOP:
            self._latch("safety said stop")
        elif self._armed:
            going = self._kind not in (None, Kind.HOLD)
            self._kind = Kind.HOLD if kind is Kind.KEEP and not going else kind  # nothing to keep going to
            self._fed = now
        return self.poll(now)

    def heartbeat(self, state: State, now: int) -> Order:
        """Safety said how it stands."""
        self.poll(now)  # see `feed`
        self._heard = now = self._now
        if state is State.STOPPED:
            self._latch("safety is stopped")
        elif state in (State.DISARMED, State.READY):
            self._rested, self._armed, self._latched, self.reason = True, False, None, "not armed"
        elif self._rested and not self._armed:
            self._rested, self._armed, self._kind, self._fed, self.reason = False, True, None, now, ""
        elif not self._armed and self._latched is None:  # nothing is under way that would have to stop
            self._latched, self.reason = Order.DISARMED, "safety was armed before it was heard"
        return self.poll(now)

    def trip(self, reason: str, now: int) -> Order:
        """The robot's side itself has a reason to stop: latched like the others."""
        now = self._advance(now)
        if self._armed:
            self._latch(reason)
        return self.poll(now)

    def poll(self, now: int) -> Order:
        """To be called in every cycle of the servo."""
        now = self._advance(now)
        silent = now - self._fed
        if self._armed and now - self._heard > self._lease:
            self._latch("safety is silent")
        elif self._armed and silent > self._stop:
            self._latch("no commands")
        if self._latched is Order.STOP and silent > self._disarm:
            self._latched = Order.DISARMED
        if not self._armed:
            return self._latched or Order.DISARMED
        held = silent > self._hold or self._kind in (None, Kind.HOLD)
        return Order.HOLD if held else Order.GO

    @property
    def fault(self) -> str:
        """Why it has latched a stop; empty: it has not."""
        return "" if self._latched is None else self.reason

    def _latch(self, reason: str) -> None:
        """The first reason stays."""
        if self._latched is None:
            self._latched, self.reason = Order.STOP, reason
        self._armed, self._rested = False, False

    def _advance(self, now: int) -> int:
        """Time never goes back in here: what was silent too long stays so."""
        self._now = max(self._now, now)
        return self._now
