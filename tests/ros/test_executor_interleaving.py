"""Whatever comes in whatever order: nothing old, nothing twice, nothing early, one command for each tick."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_ros.executor.executor import Executor
from d2ppo_ros.records import SECOND, Chunk, ChunkRequest, Command, Kind
from executor_support import BEGIN, STEP, TA, H, answer, arm, executor, state

MS = 1_000_000
MODES = ["receding", "async", "ensemble", "rtc"]


class World:
    """Feeds an executor, and keeps what it is allowed to execute."""

    def __init__(self, mode: str) -> None:
        self.tested = executor(mode, starve_after=0.2, request_timeout=0.3)
        self.poses = mode != "receding"
        self.now, self.trial, self.serial = BEGIN, "", 0
        self.requests: list[ChunkRequest] = []
        self.allowed: dict[int, Chunk] = {}  # by index: good answers since the last start, stop or reset
        self.delivered: list[Chunk] = []
        self.sent: list[Command] = []
        self.sequence = 0

    def rows(self) -> np.ndarray:
        """(H, 7) small numbers that no other chunk has."""
        self.serial += 1
        return 0.1 * self.serial / 1000 + np.arange(7 * H).reshape(H, 7) * 1e-6

    def do(self, name: str, value: int) -> None:
        """One event; `value` says which or how much."""
        getattr(self, name)(value)

    def tick(self, value: int) -> None:
        self.now += (1, 10, 10, 10, 30, 60, 150)[value % 7] * MS
        in_flight = self.tested.in_flight
        command, request = self.tested.tick(self.now)
        assert command is not None
        self.check(command)
        if request is not None:
            self.requests.append(request)
            assert (request.trial, request.start <= request.stamp <= self.now) == (self.trial, True)
            assert in_flight is None or request.index == in_flight.index
            assert request.prefix is None or request.frozen <= len(request.prefix) <= H

    def check(self, command: Command) -> None:
        self.sequence += 1
        assert (command.sequence, command.stamp, command.trial) == (self.sequence, self.now, self.trial)
        assert command.kind in (Kind.HOLD, Kind.KEEP, Kind.POSE if self.poses else Kind.DELTA)
        if not self.trial:
            assert command.kind is Kind.HOLD and command.reason
        if command.kind is Kind.HOLD:
            assert command.reason
        if command.kind not in (Kind.POSE, Kind.DELTA):
            return
        chunk = self.allowed[command.chunk]
        assert command.observation == chunk.stamp
        assert chunk.stamp + command.step * STEP <= self.now + STEP // 2  # chunks are put on the nearest step
        if command.kind is Kind.DELTA:
            assert command.action.tobytes() == chunk.actions[command.step].tobytes()
            assert all((c.chunk, c.step) < (command.chunk, command.step) for c in self.sent)
            first = next((c for c in self.sent if c.chunk == command.chunk and c.step == 0), None)
            assert command.step == 0 if first is None else self.now >= first.stamp + command.step * STEP
            self.sent.append(command)

    def start(self, value: int) -> None:
        self.trial, self.requests, self.allowed, self.sent = f"t{value % 2}", [], {}, []
        self.tested.start(self.trial, value, state(self.now, self.trial), self.now)

    def stop(self, value: int) -> None:
        self.tested.stop("stopped" if value % 2 else "done")
        self.trial, self.allowed, self.sent = "", {}, []

    def reset(self, value: int) -> None:
        self.tested.reset("held")
        self.allowed = {}

    def state(self, value: int) -> None:
        self.tested.on_state(state(self.now - value * MS, self.trial))

    def arm(self, value: int) -> None:
        self.tested.on_arm(0, arm(self.now, (0.4 + 0.001 * value, 0.0, 0.3)))

    def chunk(self, value: int) -> None:
        """A good answer to the request in flight."""
        request = self.tested.in_flight
        if request is not None:
            late = min(self.now, request.stamp + (value % 3) * 20 * MS)
            self.deliver(answer(request, actions=self.rows(), stamp=late))
            self.allowed[request.index] = self.delivered[-1]
            assert self.tested.in_flight is None

    def again(self, value: int) -> None:
        """Any chunk of the past once more."""
        if self.delivered:
            self.deliver(self.delivered[value % len(self.delivered)], good=False)

    def bad(self, value: int) -> None:
        """An answer that is no good, in one of many ways."""
        request = self.tested.in_flight or ChunkRequest(self.now, "t0", 0, 0, 0)
        rows = self.rows()
        nan = np.where(np.arange(rows.size).reshape(rows.shape) == value, np.nan, rows)
        changes = [
            {"actions": nan if value < rows.size else rows[:2]},
            {"actions": rows[:, :6]},
            {"trial": "t0" if self.trial == "t1" else "t1"},
            {"index": request.index + 1},
            {"stamp": request.start - 1},
            {"stamp": self.now + 1},
            {"executed": TA + 1},
            {"step": STEP + 1},
            {"delta_reference": "commanded"},
        ][value % 9]
        self.deliver(answer(request, **{"actions": rows, **changes}), good=False)

    def deliver(self, chunk: Chunk, good: bool = True) -> None:
        counts = self.tested.counts
        before = counts.ignored + counts.refused, counts.answers
        self.tested.on_chunk(chunk, self.now)
        assert (counts.ignored + counts.refused, counts.answers) == (before[0] + (not good), before[1] + good)
        if good:
            self.delivered.append(chunk)


often = ["tick"] * 16 + ["chunk"] * 5 + ["arm"] * 2 + ["state", "again", "bad", "bad", "start"]
events = st.tuples(st.sampled_from([*often, "stop", "reset"]), st.integers(0, 70))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None)
@given(found=st.lists(events, min_size=30, max_size=120))
def test_any_interleaving(mode: str, found: list[tuple[str, int]]) -> None:
    world = World(mode)
    world.start(0)
    world.arm(0)
    for name, value in found:
        world.do(name, value)
    counts = world.tested.counts
    assert counts.late + counts.steps <= (H if world.poses else TA) * counts.answers
    assert len(world.tested.schedule.slots) <= H + 1


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None)
@given(delay=st.integers(0, 90), ticks=st.integers(5, 60), how=st.sampled_from(["stop", "reset", "start"]))
def test_no_old_action_comes_out_after_a_stop_a_reset_or_a_new_trial(
    mode: str, delay: int, ticks: int, how: str
) -> None:
    """At any moment of a running trial, an answer being under way: only HOLD until a chunk asked for afterwards."""
    world = World(mode)
    world.start(0)
    for n in range(ticks):
        world.arm(0)
        world.tick(1)
        if n % 10 == delay // 10:
            world.chunk(0)
    under_way = world.tested.in_flight
    world.do(how, 0)
    for n in range(40):
        if n == delay % 5 and under_way is not None:
            world.deliver(answer(under_way, actions=world.rows()), good=False)
        world.arm(0)
        world.tick(1)
        assert world.tested.hold and not world.tested.schedule.slots


@pytest.mark.parametrize("mode", MODES)
def test_in_lockstep_an_answer_from_before_a_reset_is_not_taken_for_the_new_one(mode: str) -> None:
    """Both requests are for the same state: only their index tells them apart."""
    tested = executor(mode, lockstep=True)
    tested.start("t", 0, state(BEGIN), BEGIN)
    tested.on_arm(0, arm(BEGIN))
    _, before = tested.tick(BEGIN)
    tested.reset("held")
    _, after = tested.tick(BEGIN)
    tested.on_chunk(answer(before), BEGIN)
    assert tested.tick(BEGIN) == (None, None) and tested.counts.ignored == 1
    tested.on_chunk(answer(after), BEGIN)
    assert running(tested, BEGIN).chunk == after.index == before.index + 1


def test_counted_steps_add_up() -> None:
    """Every step of every chunk is begun, late, or still to come; ticks at any pace."""
    tested, rng = executor("receding"), np.random.default_rng(1)
    tested.start("t", 0, state(BEGIN), BEGIN)
    now = BEGIN
    for _ in range(600):
        now += int(rng.choice([10, 10, 10, 40, 170])) * MS
        tested.tick(now)
        if tested.in_flight is not None and rng.random() < 0.5:
            tested.on_chunk(answer(tested.in_flight), now)
    while tested.in_flight is None:
        tested.tick(now := now + 10 * MS)
    tested.on_chunk(answer(tested.in_flight), now)
    tested.tick(now)  # takes the last one: what was missed of the one before is known
    counts = tested.counts
    assert counts.late > 5 and counts.answers > 50
    assert counts.steps + counts.late + TA - 1 == TA * counts.answers


@pytest.mark.parametrize("mode", MODES)
def test_a_clock_that_jumps_holds_the_robot_until_a_new_chunk(mode: str) -> None:
    for jump in (-SECOND, 10 * SECOND):
        world = World(mode)
        world.start(0)
        for n in range(12):
            world.arm(0)
            world.tick(1)
            if n == 1:
                world.chunk(0)
        world.now += jump
        held = running(world.tested, world.now)
        assert held.kind is Kind.HOLD and held.reason in ("the clock went back", "starved")


def running(tested: Executor, now: int) -> Command:
    """The command of one tick in real time, where there always is one."""
    command, _ = tested.tick(now)
    assert command is not None
    return command


def test_a_state_of_another_trial_ends_this_one_and_another_checkpoint_is_refused() -> None:
    tested = executor("receding")
    tested.start("t", 0, state(BEGIN), BEGIN)
    tested.on_chunk(answer(tested.tick(BEGIN)[1]), BEGIN)
    tested.on_state(state(BEGIN - 1, "before"))  # one that was still under way
    assert running(tested, BEGIN + 1).kind is Kind.DELTA
    _, request = tested.tick(BEGIN + TA * STEP + 1)
    tested.on_chunk(answer(request, checkpoint="other"), request.stamp)
    assert "another checkpoint" in tested.refusal and tested.counts.refused == 1
    tested.on_state(state(BEGIN + 2 * TA * STEP, "after"))
    held = running(tested, BEGIN + 2 * TA * STEP)
    assert held.kind is Kind.HOLD and "in trial 'after'" in held.reason
