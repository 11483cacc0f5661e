"""Mode `receding`: the policy's own deltas, in lockstep exactly as an evaluation sends them."""

from __future__ import annotations

import numpy as np
import pytest

from d2ppo_core.errors import UserError
from d2ppo_ros.records import Kind
from executor_support import BEGIN, SPEC, STEP, TA, answer, executor, run, state

MS = 1_000_000


def test_lockstep_sends_every_row_unchanged_and_asks_as_an_evaluation_does() -> None:
    """Step n is row n % Ta of chunk n // Ta, bit for bit; the chunk's observation is the state it was asked at."""
    tested, rng = executor("receding", lockstep=True), np.random.default_rng(0)
    tested.start("t", 3, state(BEGIN), BEGIN)
    chunks = []
    for n in range(3 * TA + 1):
        now = BEGIN + n * STEP
        tested.on_state(state(now))
        command, request = tested.tick(now)
        if n % TA == 0:
            assert command is None and request is not None
            assert (request.stamp, request.trial, request.seed, request.index) == (now, "t", 3, n // TA)
            assert request.start == BEGIN and request.prefix is None
            assert tested.tick(now) == (None, None) and tested.in_flight is request
            chunks.append(answer(request, actions=rng.uniform(-2, 2, (8, 7))))
            tested.on_chunk(chunks[-1], 0)
            command, request = tested.tick(now)
        assert command is not None and request is None
        assert (command.kind, command.stamp, command.sequence) == (Kind.DELTA, now, n + 1)
        assert (command.chunk, command.step) == (n // TA, n % TA)
        assert command.observation == BEGIN + n // TA * TA * STEP
        assert command.action.tobytes() == chunks[-1].actions[n % TA].tobytes()
    assert tested.counts.late == tested.counts.starved == 0
    assert tested.tick(tested.now)[0].kind is Kind.KEEP  # the same state again: no step twice


def test_lockstep_latency_lets_states_pass_until_the_chunk_is_used() -> None:
    commands = run(executor("receding", lockstep=True, lockstep_latency=0.12), 3 * (TA + 3), STEP, 0)
    once = [Kind.KEEP] * 3 + [Kind.DELTA] * TA
    assert [c.kind for c in commands] == [Kind.HOLD] * 3 + once[3:] + 2 * once
    assert [c.stamp - c.observation for c in commands if c.kind is Kind.DELTA][:TA] == [
        (3 + i) * STEP for i in range(TA)
    ]


def test_real_time_sends_each_step_when_it_is_due() -> None:
    commands = run(executor("receding"), 100, 10 * MS, 73 * MS)
    deltas = [c for c in commands if c.kind is Kind.DELTA]
    assert [(c.chunk, c.step) for c in deltas[: 2 * TA]] == [(k, i) for k in range(2) for i in range(TA)]
    first = deltas[0].stamp
    assert first == BEGIN + 80 * MS  # asked at once, answered after 73 ms, sent at the next tick
    assert [c.stamp - first for c in deltas[:TA]] == [i * STEP for i in range(TA)]
    assert deltas[TA].observation == first + TA * STEP  # looked only after the last step was over
    assert deltas[TA].stamp == first + TA * STEP + 80 * MS
    assert all(c.kind in (Kind.KEEP, Kind.DELTA) for c in commands[8:])


def test_steps_that_a_pause_has_missed_are_dropped_and_counted() -> None:
    tested = executor("receding")
    tested.start("t", 3, state(BEGIN), BEGIN)
    tested.on_chunk(answer(tested.tick(BEGIN)[1]), BEGIN)
    sent = [tested.tick(BEGIN + after * MS)[0] for after in (10, 20, 155, 158, 400)]
    assert [(c.kind, c.step) for c in sent] == [
        (Kind.DELTA, 0),
        (Kind.KEEP, 0),
        (Kind.DELTA, 2),
        (Kind.KEEP, 0),
        (Kind.KEEP, 0),
    ]
    assert tested.counts.late == 1
    tested.on_chunk(answer(tested.in_flight), BEGIN + 410 * MS)
    tested.tick(BEGIN + 410 * MS)
    assert tested.counts.late == 2  # and step 3, which no tick came for


def test_without_an_answer_the_robot_is_held_and_the_request_repeated() -> None:
    tested = executor("receding", starve_after=0.2, request_timeout=0.1)
    tested.start("t", 3, state(BEGIN), BEGIN)
    tested.on_chunk(answer(tested.tick(BEGIN)[1]), BEGIN)
    ticks = [tested.tick(BEGIN + n * 10 * MS) for n in range(60)]
    kinds = [command.kind for command, _ in ticks]
    over = TA * 5  # ticks in a chunk
    assert kinds[over : over + 20] == [Kind.KEEP] * 20
    assert kinds[over + 20 :] == [Kind.HOLD] * (40 - over)
    assert ticks[-1][0].reason == "starved"
    requests = [r for _, r in ticks if r is not None]
    assert [r.index for r in requests] == [1] * 4
    assert [r.stamp - BEGIN for r in requests] == [200 * MS, 300 * MS, 400 * MS, 500 * MS]
    tested.on_chunk(answer(requests[1]), BEGIN + 600 * MS)
    assert tested.tick(BEGIN + 600 * MS)[0].kind is Kind.DELTA
    assert tested.counts.starved == 41  # the very first tick, and those after the last step


@pytest.mark.parametrize(
    ("mode", "changes", "words"),
    [
        ("rtc", {"horizon": 4}, "needs a policy that predicts more"),
        ("async", {"spec": SPEC.model_copy(update={"meaning": "planar_delta"})}, "use mode 'receding'"),
        ("receding", {"rate": 15.0}, "below the policy's 20 Hz"),
        ("receding", {"executed": 9}, "impossible"),
        ("receding", {"gripper_open": 0.5}, "gripper_open=0.5 is above"),
    ],
)
def test_what_cannot_work_is_refused(mode: str, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        executor(mode, **changes)
