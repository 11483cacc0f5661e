"""The time line, the gripper, and the latency against models that are too simple to be wrong."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_ros.executor.gripper import CLOSED, OPEN, Gripper
from d2ppo_ros.executor.latency import Latency
from d2ppo_ros.executor.schedule import Schedule
from d2ppo_ros.records import Chunk

STEP = 10

# --- schedule ---------------------------------------------------------------------------------------------------------


def chunk(index: int, horizon: int) -> Chunk:
    """Rows that name their chunk and step."""
    rows = np.array([[index, step] for step in range(horizon)], float)
    return Chunk(0, "t", index, STEP, 0, "c", 1, rows)


additions = st.tuples(st.integers(0, 80), st.integers(0, 60), st.integers(1, 6))  # first, how late, steps
events = st.lists(st.one_of(st.tuples(st.just("add"), additions), st.tuples(st.just("trim"), st.integers(0, 150))))


@settings(max_examples=150, deadline=None)
@given(events, st.integers(0, 150))
def test_schedule_equals_a_list_of_all_steps(found: list, time: int) -> None:
    """The model writes down (from, until, chunk, step) of every step and looks through all of them."""
    schedule, model, index = Schedule(), [], 0
    for name, value in found:
        if name == "trim":
            schedule.trim(value)
            over = {c for *_, c, _ in model if all(until <= value for _, until, k, _ in model if k == c)}
            model = [row for row in model if row[2] not in over]
            continue
        first, after, steps = value
        kept = [i for i in range(steps) if first + i * STEP >= first + after]
        assert schedule.add(chunk(index, steps + 2), first, first + after, steps) == steps - len(kept)
        model += [(first + i * STEP, first + (i + 1) * STEP, index, i) for i in kept]
        index += 1
    expected = [(c, i) for begin, until, c, i in model if begin <= time < until]
    assert [(slot.chunk.index, step) for slot, step in schedule.at(time)] == expected
    assert all(slot.due(step) <= time < slot.due(step + 1) for slot, step in schedule.at(time))
    rest = schedule.rest(time)
    if not expected:
        assert rest is None
    else:
        newest, step = expected[-1]
        assert rest is not None
        assert rest.tolist() == [[newest, i] for *_, c, i in model if c == newest and i >= step]


# --- gripper ----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 40)), min_size=1))
def test_gripper_changes_only_past_a_threshold_and_after_its_dwell(inputs: list[tuple[float, int]]) -> None:
    gripper, now, states = Gripper(0.3, -0.2, 50), 0, []
    for value, pause in inputs:
        now += pause
        before, state = (states[-1][1] if states else None), gripper.update(value, now)
        assert state in (OPEN, CLOSED)
        if before is not None and state != before:
            assert value > 0.3 if state == CLOSED else value < -0.2
        changed = max((t for t, _, change in states if change), default=None)
        if changed is not None and now - changed >= 50:  # free to change: then it must
            assert state == (CLOSED if value > 0.3 else OPEN if value < -0.2 else before)
        elif changed is not None:
            assert state == before
        states.append((now, state, state != before))


def test_a_reset_gripper_takes_the_first_action_at_once() -> None:
    gripper = Gripper(0.2, -0.2, 1000)
    assert [gripper.update(v, t) for t, v in enumerate((0.9, -0.9))] == [CLOSED, CLOSED]
    gripper.reset()
    assert gripper.update(-0.9, 2) == OPEN


# --- latency ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 5)), st.integers(1, 8), st.floats(0, 1))
def test_latency_is_a_quantile_of_the_window_without_the_first(values: list[float], window: int, q: float) -> None:
    latency = Latency(window, q, 0.3)
    for value in values:
        latency.add(value)
    recent = sorted(values[1:][-window:])
    if not recent:
        assert latency.estimate == 0.3
        return
    assert latency.estimate in recent
    assert sum(value <= latency.estimate for value in recent) >= q * len(recent) - 1e-9
