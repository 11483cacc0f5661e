"""Observations put together from streams: bit for bit what a VectorEnv returns, and by the rules where times differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_core.contract import Camera, LowDim, ObservationSpec
from d2ppo_core.envs import EnvRequest
from d2ppo_core.errors import UserError
from d2ppo_ros.grid import NotYet, ObservationGrid
from d2ppo_ros.records import SECOND, RobotState
from d2ppo_sim.toy import Reach
from d2ppo_sim.vector import PooledVectorEnv

STEP = SECOND // 20
MS = 1_000_000
PICTURE = Camera(name="eye", height=1, width=2, field_of_view=45.0)


def spec(history: int = 1, cameras: bool = False) -> ObservationSpec:
    keys = (LowDim(name="arm", size=1), LowDim(name="object", size=2))
    return ObservationSpec(lowdim=keys, cameras=(PICTURE,) if cameras else (), history=history)


def state(stamp: int, **values: float) -> RobotState:
    """Each key's numbers are `value` and its neighbours."""
    sizes = {"arm": 1, "object": 2}
    return RobotState(stamp, "t", 0, {name: value + np.arange(sizes[name]) for name, value in values.items()})


def picture(value: int) -> np.ndarray:
    return np.full((1, 2, 3), value, dtype=np.uint8)


@pytest.mark.parametrize("history", [1, 3])
def test_lockstep_gives_what_the_simulator_gives(history: int) -> None:
    """Two chunks of an episode: the same bits, with the first observation repeated before the start."""
    env = PooledVectorEnv(lambda _: Reach(), EnvRequest("Reach", 1, 40, history=history, workers=1))
    twin, start = Reach(), 7 * SECOND
    grid = ObservationGrid(env.observation, STEP)
    grid.add_state(RobotState(start - STEP, "before", 9, {"position": np.ones(2), "goal": np.ones(2)}))
    chunks = np.random.default_rng(0).uniform(-1, 1, (3, 1, 2, 2))
    expected, seen, now = env.reset([0], [5]), twin.reset(5), start
    grid.add_state(RobotState(now, "t", 0, seen))
    for chunk in chunks:
        got = grid.assemble(now, start)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name].dtype == value.dtype
            np.testing.assert_array_equal(got[name], value)
        expected = env.step([0], chunk).observation
        for action in chunk[0]:
            now += STEP
            assert not grid.ready(now, start)
            grid.add_state(RobotState(now, "t", 0, twin.step(action).observation))
    env.close()


TIME = st.integers(0, 40)
TIMES = st.lists(TIME, max_size=25)


def brute(stamps: list[int], allowed, key) -> int | None:
    return min((s for s in stamps if allowed(s)), key=key, default=None)


@settings(max_examples=300, deadline=None)
@given(TIMES, TIMES, TIMES, TIME, TIME, st.integers(1, 3), st.integers(0, 12), st.integers(0, 4))
def test_it_takes_what_a_search_of_everything_takes(
    arm: list[int], thing: list[int], eye: list[int], ask: int, start: int, history: int, age: int, tolerance: int
) -> None:
    """Steps of 10 and small whole times, so that ties and gaps are common. Samples carry their stamp as their value."""
    grid = ObservationGrid(spec(history, cameras=True), 10, age, tolerance)
    for stamp in arm:
        grid.add_state(state(stamp, arm=stamp))
    for stamp in thing:
        grid.add_state(state(stamp, object=stamp))
    for stamp in eye:
        grid.add_image("eye", stamp, picture(stamp))

    def row(back: int) -> tuple[int, int, int] | None:
        time = max(ask - 10 * back, start)
        if back:
            at = brute(arm, lambda s: s >= start and abs(s - time) <= 5, lambda s: (abs(s - time), s))
        else:
            at = brute(arm, lambda s: time <= s <= time + 5, lambda s: s)
        if at is None:
            return None
        other = brute(thing, lambda s: s >= start, lambda s: (abs(s - at), s))
        seen = brute(eye, lambda s: start <= s <= at + tolerance, lambda s: -s)
        seen = brute(eye, lambda s: s >= start, lambda s: s) if seen is None else seen
        if other is None or seen is None or abs(other - at) > age or abs(seen - at) > age:
            return None
        return at, other, seen

    rows = [row(back) for back in reversed(range(history))]
    assert grid.ready(ask, start) == (None not in rows)
    if None in rows:
        with pytest.raises(NotYet):
            grid.assemble(ask, start)
        return
    raw = grid.assemble(ask, start)
    assert raw["arm"].shape == (1, history, 1)
    assert raw["object"].shape == (1, history, 2)
    assert raw["eye_image"].shape == (1, history, 1, 2, 3)
    found = zip(raw["arm"][0, :, 0], raw["object"][0, :, 0], raw["eye_image"][0, :, 0, 0, 0], strict=True)
    assert list(found) == rows


def test_the_words_say_what_is_lacking() -> None:
    grid = ObservationGrid(spec(cameras=True), STEP)
    grid.add_state(state(SECOND, arm=0, object=0))
    assert grid.lacking(SECOND, SECOND) == "no 'eye_image' within 0 ms of 1.000 s (nothing)"
    grid.add_image("eye", SECOND - 3 * MS, picture(1))
    assert "(-3.0 ms off at best)" in grid.lacking(SECOND, 0)
    grid.add_image("eye", SECOND, picture(2))
    assert grid.ready(SECOND, SECOND)


def test_the_past_is_forgotten_and_a_clock_that_was_reset_begins_afresh() -> None:
    grid = ObservationGrid(spec(), STEP)
    for stamp in range(0, 60 * SECOND, STEP):
        grid.add_state(state(stamp, arm=stamp, object=0))
    assert len(grid._keys["arm"]) < 30
    grid.add_state(state(5, arm=42, object=0))
    assert grid.assemble(0, 0)["arm"].item() == 42
    grid.add_state(state(10**18, arm=1, object=0))  # garbage from the future does not stay either
    grid.add_state(state(SECOND, arm=43, object=0))
    assert grid.assemble(SECOND, 0)["arm"].item() == 43


def test_wrong_sizes_are_refused() -> None:
    grid = ObservationGrid(spec(cameras=True), STEP)
    with pytest.raises(UserError, match=r"'arm' arrives with shape \(2,\), the policy expects \(1,\)"):
        grid.add_state(RobotState(0, "t", 0, {"arm": np.zeros(2)}))
    with pytest.raises(UserError, match="camera 'eye' delivers float64"):
        grid.add_image("eye", 0, np.zeros((1, 2, 3)))
    with pytest.raises(UserError, match="no camera 'wrist', only at eye"):
        grid.add_image("wrist", 0, picture(0))
