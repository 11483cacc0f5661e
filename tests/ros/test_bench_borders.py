"""Chunk borders: which steps belong to one, and how much changes there, on motions that are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ppo_ros.bench.borders import changes, largest, windows

DT = 0.05


def test_a_border_reaches_from_the_first_step_without_the_old_chunk_to_the_second_of_the_new():
    chunk = np.array([-1, 0, 0, 0, 0, -1, -1, 1, 1, 1, 1, 2, 2, 2])
    borders, inside = windows(chunk)
    assert borders == [range(5, 9), range(11, 13)]
    assert inside == [range(3, 5), range(9, 11)]  # neither the start from rest nor any border


def test_chunks_of_one_step_are_all_border():
    borders, inside = windows(np.arange(5))
    assert borders == [range(1, 3), range(2, 4), range(3, 5), range(4, 5)]
    assert inside == []


def test_a_trial_without_a_chunk_has_neither():
    assert windows(np.full(4, -1)) == ([], [])


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 6)), max_size=8))
def test_windows_against_going_through_every_step(pieces: list[tuple[int, int]]):
    chunk = np.repeat([c for c, _ in pieces], [n for _, n in pieces]).astype(int)
    borders, inside = windows(chunk)
    given_steps = [n for n in range(len(chunk)) if chunk[n] >= 0]
    assert len(borders) == sum(chunk[a] != chunk[b] for a, b in pairwise(given_steps))
    in_border = {n for border in borders for n in border}
    for pair in inside:
        assert len({int(chunk[n]) for n in pair}) == 1
        assert chunk[pair[0]] >= 0
        assert not in_border & set(pair)


def motion(steps: int, goal_jump: float = 0.0, at: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Goals, reference velocities and positions of one arm at 0.1 m/s along x; the goal jumps along y at one step."""
    time = DT * np.arange(steps + 1)
    measured = np.zeros((steps + 1, 1, 3))
    measured[:, 0, 0] = 0.1 * time
    goal = measured[:-1] + np.array([0.02, 0, 0])
    goal[at:, 0, 1] += goal_jump
    return goal, np.tile([0.1, 0, 0], (steps, 1, 1)), measured


def test_even_motion_changes_nothing_but_the_goal_step():
    found = changes(*motion(10), DT)
    assert found["goal_step"][1:] == pytest.approx(5.0)  # 0.1 m/s for 50 ms, in mm
    assert np.isnan(found["goal_step"][0])
    for name in ("goal_velocity", "reference_velocity", "measured_velocity"):
        assert np.nanmax(found[name]) == pytest.approx(0, abs=1e-9)


def test_a_jump_of_the_goal_is_seen_where_it_is():
    found = changes(*motion(10, goal_jump=0.012, at=6), DT)
    assert found["goal_step"][6] == pytest.approx(13.0)  # 5 along x, 12 along y
    assert found["goal_velocity"][[5, 6, 7]] == pytest.approx([0, 240, 240], abs=1e-9)  # mm/s: there, and back
    chunk = np.repeat([0, 1], [6, 4])
    borders, inside = windows(chunk)
    assert largest(found["goal_velocity"], borders) == pytest.approx([240])
    assert largest(found["goal_velocity"], inside) == pytest.approx([0, 0, 0, 0], abs=1e-9)


def test_of_two_arms_the_larger_change_counts_and_what_is_unknown_is_left_out():
    one, two = motion(8), motion(8, goal_jump=0.03, at=4)
    goal, reference, measured = (np.concatenate(parts, axis=1) for parts in zip(one, two, strict=True))
    found = changes(goal, np.full_like(reference, np.nan), measured, DT)
    assert found["goal_velocity"][4] == pytest.approx(600)
    assert largest(found["reference_velocity"], [range(3, 5)]) == []


def test_measured_velocity_is_that_of_the_steps_before_and_after():
    goal, reference, measured = motion(4)
    measured[3:, 0, 2] += 0.001  # one millimetre up, during step 2
    assert changes(goal, reference, measured, DT)["measured_velocity"][1:] == pytest.approx([0, 20, 20], abs=1e-9)
