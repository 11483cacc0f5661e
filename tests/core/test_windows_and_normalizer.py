"""Training windows against a naive loop, the normaliser, the state vector, and actions as poses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_core.action import apply_limits, pose_target
from d2ppo_core.contract import ActionSpec, LowDim, ObservationSpec
from d2ppo_core.data.windows import ChunkWindows
from d2ppo_core.errors import UserError
from d2ppo_core.normalizer import Normalizer
from d2ppo_core.observation import dimension_names, model_observation, state_vector

Array = np.ndarray

# --- windows ----------------------------------------------------------------------------------------------------------


def naive_windows(lengths: list[int], history: int, horizon: int, pad: bool) -> list[tuple[int, list[int], list[int]]]:
    """(episode, observed steps, action steps) of every window."""
    windows = []
    for episode, length in enumerate(lengths):
        for now in range(length):
            if not pad and now + horizon > length:
                continue
            seen = [max(0, now - back) for back in range(history - 1, -1, -1)]
            windows.append((episode, seen, [min(length - 1, now + ahead) for ahead in range(horizon)]))
    return windows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 8), st.booleans())
def test_windows_equal_a_naive_loop(lengths: list[int], history: int, horizon: int, pad: bool) -> None:
    """Every number says which episode and step it is of: no window may look across a border or off by one."""
    states = [np.stack([np.full(n, 100.0 * e), np.arange(n)], 1).astype(np.float32) for e, n in enumerate(lengths)]
    actions = [
        np.stack([np.full(n, 100.0 * e), np.arange(n) + 0.5], 1).astype(np.float32) for e, n in enumerate(lengths)
    ]
    windows, expected = (
        ChunkWindows(states, actions, history, horizon, pad),
        naive_windows(lengths, history, horizon, pad),
    )
    assert len(windows) == len(expected)
    if not expected:
        return
    seen, chunk = windows.gather(torch.arange(len(expected)))
    assert seen.state.shape == (len(expected), history, 2)
    assert chunk.shape == (len(expected), horizon, 2)
    for row, (episode, observed, acted) in enumerate(expected):
        np.testing.assert_array_equal(seen.state[row], states[episode][observed])
        np.testing.assert_array_equal(chunk[row], actions[episode][acted])
    order = torch.randperm(len(expected))
    assert torch.equal(windows.gather(order)[1], chunk[order])


def test_number_of_windows() -> None:
    """Without padding the last H-1 starts of an episode are unused (as released); with it none is."""
    states, actions = (
        [np.zeros((n, 1), np.float32) for n in (10, 3, 4)],
        [np.zeros((n, 1), np.float32) for n in (10, 3, 4)],
    )
    assert len(ChunkWindows(states, actions, 1, 4, pad_ends=False)) == 7 + 0 + 1
    assert len(ChunkWindows(states, actions, 1, 4, pad_ends=True)) == 17


# --- normaliser -------------------------------------------------------------------------------------------------------

NAMES = ["x", "y", "z", "a0", "a1"]


def fit(flat: str = "refuse", clip: float = 0.0, constant: float | None = None) -> tuple[Normalizer, Array, Array]:
    rng = np.random.default_rng(0)
    states, actions = rng.normal([0, 5, -3], [1, 0.01, 100], (200, 3)), rng.uniform(-0.7, 0.3, (200, 2))
    if constant is not None:
        states[:, 1] = constant
    return Normalizer.fit(states, actions, flat, clip, NAMES), states, actions


def test_normalisation_maps_the_extremes_to_one_and_back() -> None:
    normaliser, states, actions = fit()
    x = normaliser.normalize_state(torch.tensor(states, dtype=torch.float32)).numpy()
    expected = 2 * (states - states.min(0)) / (states.max(0) - states.min(0)) - 1
    np.testing.assert_allclose(x, expected, atol=1e-3)  # y has a range of 0.05 around 5: float32
    np.testing.assert_allclose([x.min(0), x.max(0)], [[-1] * 3, [1] * 3], atol=1e-6)
    a = torch.tensor(actions, dtype=torch.float32)
    np.testing.assert_allclose(normaliser.denormalize_action(normaliser.normalize_action(a)), a, atol=1e-6)
    np.testing.assert_allclose(normaliser.normalize_action(a).abs().amax(0), [1, 1], atol=1e-6)
    outside = normaliser.denormalize_action(torch.tensor([[1.5, -1.5]]))  # not clipped here
    span = actions.max(0) - actions.min(0)
    np.testing.assert_allclose(outside[0], actions.min(0) + np.array([1.25, -0.25]) * span, atol=1e-5)


def test_states_are_clamped_where_asked_and_actions_never() -> None:
    clipped, free = fit(clip=1.5)[0], fit(clip=0.0)[0]
    far = torch.tensor([[1e3, 5.0, -3.0]])
    assert clipped.normalize_state(far)[0, 0].item() == 1.5
    assert clipped.normalize_state(-far)[0, 0].item() == -1.5
    assert free.normalize_state(far)[0, 0].item() > 100
    assert clipped.normalize_action(torch.tensor([[50.0, 0.0]]))[0, 0].item() > 50


@pytest.mark.parametrize("constant", [0.0, 5.0, -0.3])
def test_dimensions_that_never_change(constant: float) -> None:
    """refuse names them; centre maps the constant to 0 and stays finite beside it."""
    with pytest.raises(UserError, match=r"^y never changes"):
        fit(constant=constant)
    normaliser, states, _ = fit("centre", constant=constant)
    x = normaliser.normalize_state(torch.tensor(states, dtype=torch.float32))
    np.testing.assert_allclose(x[:, 1], 0, atol=1e-6)
    assert x[:, 0].max() == pytest.approx(1)
    moved = normaliser.normalize_state(torch.tensor([[0.0, constant + 0.25, 0.0]]))
    assert moved[0, 1].item() == pytest.approx(0.25, abs=1e-5)
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"^a1 never changes"):
        Normalizer.fit(
            rng.normal(size=(9, 3)), np.stack([rng.normal(size=9), np.full(9, constant)], 1), "refuse", 0, NAMES
        )


def test_statistics_travel_in_the_state_dict() -> None:
    normaliser, states, _ = fit(clip=2.0)
    copy = Normalizer(3, 2)
    copy.load_state_dict(normaliser.state_dict())
    x = torch.tensor(states, dtype=torch.float32)
    assert torch.equal(copy.normalize_state(x), normaliser.normalize_state(x))


# --- state vector -----------------------------------------------------------------------------------------------------

SPEC = ObservationSpec(lowdim=(LowDim(name="q", size=2), LowDim(name="b", size=1), LowDim(name="a", size=3)), history=2)


def observation() -> dict[str, Array]:
    return {
        "a": np.arange(12.0).reshape(2, 2, 3),
        "b": 50 + np.arange(4.0).reshape(2, 2, 1),
        "q": 70 + np.arange(8.0).reshape(2, 2, 2),
        "unused": np.zeros(1),
    }


def test_state_vector_keeps_the_contracts_order_and_not_the_dictionarys() -> None:
    state = state_vector(SPEC, observation())
    assert state.dtype == np.float32
    np.testing.assert_array_equal(state[1, 0], [74, 75, 52, 6, 7, 8])
    assert dimension_names(SPEC) == ["q[0]", "q[1]", "b[0]", "a[0]", "a[1]", "a[2]"]
    assert model_observation(SPEC, observation()).state.shape == (2, 2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, "lacks 'b'"),
        ({"b": np.zeros((2, 2, 2))}, "shape"),
        ({"a": np.full((2, 2, 3), np.nan)}, "observation a holds NaN"),
        ({"q": np.full((2, 2, 2), np.inf)}, "observation q holds NaN"),
    ],
)
def test_observations_that_do_not_fit_are_refused_by_name(change: dict[str, Array | None], message: str) -> None:
    raw = {k: v for k, v in (observation() | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        state_vector(SPEC, raw)


def test_another_history_is_refused() -> None:
    with pytest.raises(UserError, match="holds 1 time steps, the policy looks at 2"):
        model_observation(SPEC, {k: v[:, :1] for k, v in observation().items() if v.ndim == 3})


# --- actions as poses -------------------------------------------------------------------------------------------------


def rodrigues(v: Array) -> Array:
    """Rotation matrix of an axis-angle vector, Rodrigues' formula."""
    angle = np.linalg.norm(v)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = v / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


finite = st.lists(st.floats(-2, 2), min_size=7, max_size=7)


@settings(max_examples=80, deadline=None)
@given(finite, st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_pose_target_is_a_world_frame_turn_and_shift(action: list[float], turned: list[float]) -> None:
    """Clipped to +-1, then 0.05 m and 0.5 rad at 1; the turn is about world axes, on the left of the orientation."""
    position, orientation = np.array([0.4, -0.1, 1.2]), rodrigues(np.array(turned))
    target, a = pose_target(np.array(action), position, orientation, ActionSpec()), np.clip(action, -1, 1)
    np.testing.assert_allclose(target.position, position + 0.05 * a[:3], atol=1e-12)
    np.testing.assert_allclose(target.orientation, rodrigues(0.5 * a[3:6]) @ orientation, atol=1e-9)
    assert target.gripper == a[6]


def test_limits_clip_and_refuse() -> None:
    np.testing.assert_array_equal(apply_limits(np.array([-3, -1, 0.5, 7]), ActionSpec()), [-1, -1, 0.5, 1])
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="NaN"):
            apply_limits(np.array([0.0, bad]), ActionSpec())
