"""The robot's own watchdog: thresholds to the millisecond, what latches, and what does not unlatch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_ros.records import Kind, State
from d2ppo_ros.safety.watchdog import Order, Watchdog

MS = 1_000_000


class Loop:
    """A servo loop with a cycle of 1 ms."""

    def __init__(self, **limits: int) -> None:
        self.dog, self.ms = Watchdog(**limits), 0
        self.beats: State | None = State.READY  # safety's heartbeat, each 50 ms
        self.commands: Kind | None = None  # each 10 ms
        self.order = Order.DISARMED

    def run(self, ms: int) -> Order:
        """Some time."""
        for _ in range(ms):
            self.ms += 1
            if self.beats is not None and self.ms % 50 == 0:
                self.dog.heartbeat(self.beats, self.ms * MS)
            if self.commands is not None and self.ms % 10 == 0:
                self.dog.feed(self.commands, self.ms * MS)
            self.order = self.dog.poll(self.ms * MS)
        return self.order

    def going(self) -> Loop:
        """Armed, and a motion under way."""
        self.run(100)
        self.beats, self.commands = State.ARMED, Kind.DELTA
        assert self.run(100) is Order.GO
        return self

    def until(self, order: Order, most: int = 3000) -> int:
        """ms until the servo must do this."""
        for ms in range(1, most):
            if self.run(1) is order:
                return ms
        raise AssertionError(f"never {order.name}, but {self.order.name}")


def test_it_starts_disarmed_and_needs_arming_and_a_motion() -> None:
    loop = Loop()
    loop.commands = Kind.DELTA
    assert loop.run(100) is Order.DISARMED
    loop.beats, loop.commands = State.ARMED, Kind.KEEP
    assert loop.run(60) is Order.HOLD  # nothing to keep going to
    loop.commands = Kind.POSE
    assert loop.run(10) is Order.GO
    loop.commands = Kind.KEEP
    assert loop.run(500) is Order.GO
    loop.commands = Kind.HOLD
    assert loop.run(10) is Order.HOLD
    loop.commands = Kind.KEEP
    assert loop.run(50) is Order.HOLD


def test_silence_of_commands() -> None:
    loop = Loop().going()
    loop.commands = None
    assert (loop.until(Order.HOLD), loop.until(Order.STOP), loop.until(Order.DISARMED)) == (101, 200, 700)
    assert loop.dog.reason == "no commands"


def test_a_short_silence_heals_and_a_long_one_does_not() -> None:
    loop = Loop().going()
    loop.commands = None
    loop.run(200)
    loop.commands = Kind.DELTA
    assert loop.run(10) is Order.GO
    loop.commands = None
    loop.run(400)
    loop.commands = Kind.DELTA
    assert loop.run(500) is Order.STOP  # though safety says ARMED all the time


def test_silence_of_safety_while_commands_flow() -> None:
    loop = Loop().going()
    loop.beats = None
    assert loop.until(Order.STOP) == 201
    assert loop.dog.reason == "safety is silent"
    loop.beats = State.ARMED
    assert loop.run(500) is Order.STOP
    loop.beats = State.READY  # a person is asked
    assert loop.run(60) is Order.DISARMED
    loop.beats = State.ARMED
    assert loop.run(60) is Order.GO


@pytest.mark.parametrize("way", ["command", "heartbeat"])
def test_stop_is_latched(way: str) -> None:
    loop = Loop().going()
    if way == "command":
        assert loop.dog.feed(Kind.STOP, loop.ms * MS) is Order.STOP
    else:
        assert loop.dog.heartbeat(State.STOPPED, loop.ms * MS) is Order.STOP
    for loop.beats in (State.ARMED, State.HOLD, State.STOPPED):
        assert loop.run(100) is Order.STOP
    loop.beats = State.READY
    assert loop.run(100) is Order.DISARMED


def test_hold_of_safety_holds_through_its_commands() -> None:
    loop = Loop().going()
    loop.beats, loop.commands = State.HOLD, Kind.HOLD
    assert loop.run(1000) is Order.HOLD
    loop.beats, loop.commands = State.ARMED, Kind.DELTA
    assert loop.run(60) is Order.GO


def test_a_new_watchdog_does_not_join_an_armed_safety() -> None:
    loop = Loop()
    loop.beats, loop.commands = State.ARMED, Kind.DELTA
    assert loop.run(1000) is Order.DISARMED
    assert loop.dog.fault == "safety was armed before it was heard"
    loop.beats = State.READY
    assert loop.run(60) is Order.DISARMED and not loop.dog.fault
    loop.going()


@pytest.mark.parametrize("first", ["heartbeat", "command", "poll"])
def test_after_a_stall_of_everything_it_does_not_matter_what_is_served_first(first: str) -> None:
    loop = Loop().going()
    at = (loop.ms + 350) * MS
    calls = {"heartbeat": lambda: loop.dog.heartbeat(State.ARMED, at), "command": lambda: loop.dog.feed(Kind.DELTA, at),
             "poll": lambda: loop.dog.poll(at)}  # fmt: skip
    for call in (calls.pop(first), *calls.values()):
        assert call() is Order.STOP
    assert loop.dog.fault == "safety is silent"


def test_disarming_stops_at_once() -> None:
    loop = Loop().going()
    assert loop.dog.heartbeat(State.READY, loop.ms * MS) is Order.DISARMED


def test_the_first_reason_stays_and_disarmed_does_not_turn_into_stop() -> None:
    loop = Loop().going()
    loop.commands = None
    loop.until(Order.DISARMED)
    loop.beats = State.STOPPED
    assert loop.run(100) is Order.DISARMED
    assert loop.dog.reason == "no commands"


def test_time_that_goes_back_makes_nothing_fresh() -> None:
    loop = Loop().going()
    assert loop.dog.poll((loop.ms + 150) * MS) is Order.HOLD
    assert loop.dog.poll(loop.ms * MS) is Order.HOLD


def test_other_limits() -> None:
    loop = Loop(hold_ms=20, stop_ms=40, disarm_ms=60, lease_ms=1000).going()
    loop.commands = None
    assert (loop.until(Order.HOLD), loop.until(Order.STOP), loop.until(Order.DISARMED)) == (21, 20, 20)


EVENTS = st.one_of(
    st.tuples(st.just("feed"), st.sampled_from(Kind)),
    st.tuples(st.just("beat"), st.sampled_from(State)),
    st.tuples(st.just("poll"), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.integers(-300, 300)), max_size=60))
def test_any_history(history: list) -> None:
    """GO needs arming after a rest, a motion, and fresh words of both; time may go back and forth."""
    dog, now, latest = Watchdog(), 0, 0
    fed = heard = -(10**6)  # ms, last command and heartbeat
    rested = armed = moved = latched = False
    for (what, value), step in history:
        now += step
        latest = max(latest, now)
        if what == "beat":
            order, heard = dog.heartbeat(value, now * MS), latest
            if value in (State.DISARMED, State.READY):
                rested, armed, latched = True, False, False
            elif value is not State.STOPPED and rested and not armed:
                rested, armed, moved = False, True, False
        elif what == "feed":
            order = dog.feed(value, now * MS)
            moved = value in (Kind.DELTA, Kind.POSE) or (moved and value is Kind.KEEP)
            fed = latest
        else:
            order = dog.poll(now * MS)
        if order is Order.GO:
            assert armed and moved and not latched
            assert latest - heard <= 200
            assert latest - fed <= 100
        if latched:
            assert order in (Order.STOP, Order.DISARMED)
        latched = latched or order is Order.STOP
