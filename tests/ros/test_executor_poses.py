"""Modes `async`, `ensemble`, `rtc`: one reference trajectory across chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_core.errors import UserError
from d2ppo_core.response import KD, KP, osc_goal
from d2ppo_ros.executor.executor import Executor
from d2ppo_ros.records import Command, Kind
from executor_support import (
    BEGIN,
    SPEC,
    STEP,
    TA,
    H,
    answer,
    arm,
    carried_on,
    executor,
    follow_exactly,
    plan,
    quaternion_matrix,
    run,
    state,
)

MS = 1_000_000
FAST = np.array([0.8, 0, 0, 0, 0.1, 0, 0.8])
POSES = ["async", "ensemble", "rtc"]


def one_axis(time: int) -> np.ndarray:
    """`plan` that turns about z only."""
    return plan(time) * np.array([1, 1, 1, 0, 0, 1, 1])


def brute_force(begin: int, times: list[int], commanded: bool = False) -> np.ndarray:
    """(n, 4) position and turn about z at `times` for the plan executed from `begin` on: Euler, 10000 parts a step."""
    x, v, goal = np.array([0.4, 0.0, 0.3, 0.0]), np.zeros(4), np.array([0.4, 0.0, 0.3, 0.0])
    dt, found = 5e-6, {}
    for start in range(begin, max(times) + 1, STEP):
        action = plan(start)[[0, 1, 2, 5]] * np.array([0.05, 0.05, 0.05, 0.5])
        goal = (goal if commanded else x) + action
        for n in range(10_000):
            if n % 2000 == 0:
                found[start + n * 5000] = x
            x, v = x + dt * v, v + dt * (KP * (goal - x) - KD * v)
    return np.array([found[t] for t in times])


def pose(command: Command) -> list[float]:
    """Position and turn about z."""
    target = command.targets[0]
    return [*target.position, 2 * np.arctan2(target.quaternion[2], target.quaternion[3])]


# --- the trajectory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["measured", "commanded"])
def test_without_latency_all_modes_command_what_brute_force_integrates(reference: str) -> None:
    spec = SPEC.model_copy(update={"delta_reference": reference})

    def wanted(mode: str) -> list[Command]:
        tested = executor(mode, spec, lockstep=True)
        commands = run(tested, 14, STEP, 0, one_axis, delta_reference=reference)
        assert tested.counts.late == tested.counts.starved == tested.counts.reanchored == 0
        return commands

    trajectories = [wanted(mode) for mode in POSES]
    assert all(c.kind is Kind.POSE for commands in trajectories for c in commands)
    expected = brute_force(BEGIN, [c.stamp for c in trajectories[0]], reference == "commanded")
    for commands in trajectories:
        np.testing.assert_allclose([pose(c) for c in commands], expected, atol=2e-5)


@pytest.mark.parametrize("mode", POSES)
def test_late_chunks_start_late_and_real_time_samples_the_same_trajectory(mode: str) -> None:
    """With 120 ms of latency the steps due at 0, 50 and 100 ms are dropped; from 150 ms on the plan is executed."""
    tested = executor(mode)
    commands = run(tested, 70, 10 * MS, 120 * MS, one_axis)
    assert {c.kind for c in commands[:12]} == {Kind.HOLD} and {c.kind for c in commands[12:15]} == {Kind.KEEP}
    moving = commands[15:]
    assert all(c.kind is Kind.POSE for c in moving) and tested.counts.reanchored == 0
    expected = brute_force(BEGIN + 150 * MS, [c.stamp for c in moving])
    np.testing.assert_allclose([pose(c) for c in moving], expected, atol=2e-5)
    assert tested.counts.answers >= 3 and tested.answer is None
    if mode != "ensemble":  # that one asks at once, and so for observations between two steps
        assert tested.counts.late == 3 * tested.counts.answers


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(POSES), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.07, 0.15]), st.floats(0, 2))
def test_no_jump_at_chunk_borders(mode: str, seed: int, latency: float, decay: float) -> None:
    """Chunks that have nothing to do with one another: each command is where the one before leads."""
    rng = np.random.default_rng(seed)
    tested = executor(mode, lockstep=True, lockstep_latency=latency, ensemble_decay=decay)
    commands = run(tested, 25, STEP, 0, lambda _: rng.uniform(-1, 1, 7))
    poses = [c for c in commands if c.kind is Kind.POSE]
    assert len(poses) > 18 and len({c.chunk for c in poses}) > 3
    for before, after in itertools.pairwise(poses):
        led, target = carried_on(before.targets[0], STEP / 1e9), after.targets[0]
        np.testing.assert_allclose(target.position, led.position, atol=1e-9)
        np.testing.assert_allclose(target.velocity, led.velocity, atol=1e-7)
        np.testing.assert_allclose(quaternion_matrix(target.quaternion), led.rotation, atol=1e-8)
    hardest = max(np.linalg.norm(c.targets[0].acceleration[:3]) for c in poses)
    assert tested.counts.borders
    for border in tested.counts.borders:
        assert border.velocity <= 1.01 * hardest * STEP / 1e9
        assert border.position <= 1.01 * hardest * (STEP / 1e9) ** 2


# --- which step when --------------------------------------------------------------------------------------------------


def test_the_running_chunk_goes_on_until_the_first_step_of_the_next_that_is_not_late() -> None:
    commands = run(executor("async"), 100, 10 * MS, 80 * MS)
    steps = {c.stamp: (c.chunk, c.step) for c in commands if c.kind is Kind.POSE}
    grid = [steps.get(BEGIN + n * STEP) for n in range(14)]
    assert grid == [
        None,
        None,
        *((0, i) for i in (2, 3, 4, 5)),
        *((1, i) for i in (2, 3, 4, 5)),
        *((2, i) for i in (2, 3, 4, 5)),
    ]
    assert all(c.observation + c.step * STEP <= c.stamp for c in commands if c.kind is Kind.POSE)


@pytest.mark.parametrize(
    ("after", "steps"), [(20, [(0, 4), (0, 4), (1, 1), (1, 1), (1, 2)]), (30, [(0, 4), (0, 4), (1, 0), (1, 0), (1, 1)])]
)
def test_a_chunk_off_the_grid_is_put_on_its_nearest_step(after: int, steps: list[tuple[int, int]]) -> None:
    """Late is what was due before the chunk came, whenever the next tick is."""
    tested, request = started(reanchor_distance=0.5), None
    for n in range(TA * 5 + 1):
        _, request = tested.tick(BEGIN + n * 10 * MS)
    assert request is not None and request.stamp == BEGIN + TA * STEP
    sent = [tested.tick(request.stamp + 35 * MS)[0]]
    tested.on_chunk(answer(request, stamp=request.stamp + after * MS), request.stamp + 49 * MS)
    sent += [tested.tick(request.stamp + ms * MS)[0] for ms in (49, 52, 99, 100)]
    assert [(c.chunk, c.step) for c in sent] == steps


def test_a_step_due_between_a_chunk_and_the_next_tick_is_not_late() -> None:
    tested = executor("async")
    tested.start("t", 3, state(BEGIN), BEGIN)
    tested.on_arm(0, arm(BEGIN))
    tested.on_chunk(answer(tested.tick(BEGIN)[1]), BEGIN + 49 * MS)
    assert (tested.tick(BEGIN + 55 * MS)[0].step, tested.counts.late) == (1, 1)


def test_ensemble_weighs_all_chunks_that_cover_a_step() -> None:
    """Chunk k wants 0.1 k in x throughout; at step 2 three chunks speak, weighing 1 (oldest), exp(-m), exp(-2m)."""
    tested, calls = executor("ensemble", lockstep=True, ensemble_decay=0.5), iter(range(100))

    def wanted(_: int) -> np.ndarray:
        return np.array([0.1 * (next(calls) // H), 0, 0, 0, 0, 0, 0])

    target = run(tested, 3, STEP, 0, wanted)[-1].targets[0]
    goal = osc_goal(target.position, target.velocity[:3], target.acceleration[:3])
    weights = np.exp([0, -0.5, -1])
    assert goal[0] - target.position[0] == pytest.approx(0.05 * (weights @ [0, 0.1, 0.2]) / weights.sum())
    assert tested.counts.answers == 3


def test_rtc_sends_what_the_running_chunk_holds_and_how_much_of_it_is_frozen() -> None:
    """The first answer takes 300 ms, which does not count, the others 120 ms: three steps pass meanwhile.

    The second request comes so late that the running chunk has but two steps left.
    """
    tested, requests, waiting = executor("rtc", latency_initial=0.16, request_timeout=9.0), [], []
    tested.start("t", 3, state(BEGIN), BEGIN)
    for now in range(BEGIN, BEGIN + 1500 * MS, 10 * MS):
        for due, chunk in [w for w in waiting if w[0] == now]:
            tested.on_chunk(chunk, due)
        tested.on_arm(0, arm(now))
        _, request = tested.tick(now)
        if request is not None:
            requests.append(request)
            waiting.append((now + (120 if len(requests) > 1 else 300) * MS, answer(request)))
    assert [r.index for r in requests] == list(range(len(requests))) and len(requests) > 4
    assert requests[0].prefix is None and requests[0].frozen == 0
    assert [r.frozen for r in requests[1:]] == [2] + [3] * (len(requests) - 2)
    for before, request in itertools.pairwise(requests):
        rows = (request.stamp - before.stamp) // STEP
        np.testing.assert_array_equal(request.prefix, answer(before).actions[rows:])


# --- what goes wrong --------------------------------------------------------------------------------------------------


def started(mode: str = "async", **options: object) -> Executor:
    """A trial whose first chunk has arrived at once; the arm stands still unless told otherwise."""
    tested = executor(mode, **options)
    tested.start("t", 3, state(BEGIN), BEGIN)
    tested.on_arm(0, arm(BEGIN))
    tested.on_chunk(answer(tested.tick(BEGIN)[1], lambda _: FAST), BEGIN)
    return tested


def test_without_an_arm_nothing_moves_in_real_time_and_lockstep_waits() -> None:
    tested = executor("async")
    tested.on_arm(0, arm(BEGIN - 1))
    tested.start("t", 3, state(BEGIN), BEGIN)
    tested.on_chunk(answer(tested.tick(BEGIN)[1]), BEGIN)
    command, _ = tested.tick(BEGIN + 10 * MS)
    assert command.kind is Kind.HOLD and "no state of arm 0" in command.reason
    tested = executor("async", lockstep=True)
    tested.start("t", 3, state(BEGIN), BEGIN)
    tested.on_chunk(answer(tested.tick(BEGIN)[1]), BEGIN)
    assert tested.tick(BEGIN) == (None, None)
    tested.on_arm(0, arm(BEGIN))
    assert tested.tick(BEGIN)[0].kind is Kind.POSE


def test_a_blocked_arm_is_never_left_behind() -> None:
    tested = started()
    sent = [tested.tick(BEGIN + n * 10 * MS)[0] for n in range(40)]
    distances = [np.linalg.norm(c.targets[0].position - [0.4, 0, 0.3]) for c in sent]
    assert max(distances) <= 0.03 and max(distances) > 0.02
    assert tested.counts.reanchored >= 2
    again = [c.targets[0] for c in sent[1:] if not c.targets[0].velocity.any()]
    assert len(again) == tested.counts.reanchored
    for target in again:  # at rest where the arm is, and on its way again
        np.testing.assert_allclose(target.position, [0.4, 0, 0.3], atol=1e-12)
        np.testing.assert_allclose(target.acceleration[:3], [KP * 0.05 * FAST[0], 0, 0], atol=1e-9)


def test_out_of_steps_the_reference_settles_then_the_robot_is_held_then_it_starts_where_it_is() -> None:
    tested, commands = started(request_timeout=9.0, starve_after=0.5), []
    for now in range(BEGIN, BEGIN + 1200 * MS, 10 * MS):
        follow_exactly(tested, commands, now)
        commands.append(tested.tick(now)[0])
    over = H * 5
    assert {c.kind for c in commands[: over + 50]} == {Kind.POSE}
    assert {(c.kind, c.reason) for c in commands[over + 50 :]} == {(Kind.HOLD, "starved")}
    speeds = [np.linalg.norm(c.targets[0].velocity) for c in commands[over : over + 50]]
    assert speeds == sorted(speeds, reverse=True) and speeds[-1] < 0.05 * speeds[0]
    assert tested.counts.starved == 1 + len(commands) - over  # the first tick of all had no step yet
    now, (x, y, z) = BEGIN + 1200 * MS, commands[over + 49].targets[0].position
    place = (x, y + 0.01, z)
    tested.on_arm(0, arm(now, place))
    tested.on_chunk(answer(tested.in_flight, lambda _: FAST, stamp=now), now)
    command, _ = tested.tick(now)
    assert command.kind is Kind.POSE and tuple(command.targets[0].position) == place
    assert not command.targets[0].velocity.any() and tested.counts.reanchored == 0


def test_after_a_pause_of_the_executor_the_reference_goes_on_instead_of_catching_up() -> None:
    tested, commands = started(), []
    for now in range(BEGIN, BEGIN + 60 * MS, 10 * MS):
        follow_exactly(tested, commands, now)
        commands.append(tested.tick(now)[0])
    last = commands[-1].targets[0].position
    tested.on_arm(0, arm(BEGIN + 380 * MS, tuple(last)))
    after = tested.tick(BEGIN + 390 * MS)[0]
    assert (after.kind, after.step, tested.counts.late) == (Kind.POSE, 7, 4)  # steps 2 to 5 are lost
    assert 0.01 < after.targets[0].position[0] - last[0] < 0.14 * 0.3  # of 0.34 s only 0.14 s are moved


def test_the_gripper_is_open_or_closed_and_slow_to_change() -> None:
    commands = run(executor("async", lockstep=True, gripper_dwell=0.2), 30, STEP, 0)
    grippers = [c.targets[0].gripper for c in commands]
    assert set(grippers) == {-1.0, 1.0}
    changes = [n for n in range(1, 30) if grippers[n] != grippers[n - 1]]
    assert changes and min(np.diff(changes), default=9) >= 4


def test_two_arms_each_follow_their_part_of_the_action() -> None:
    tested = executor("async", SPEC.model_copy(update={"arms": 2}), lockstep=True)
    tested.start("t", 3, state(BEGIN), BEGIN)
    tested.on_arm(0, arm(BEGIN))
    rows = np.tile(np.r_[0.5, np.zeros(6), 0, -1.0, np.zeros(4), 1.0], (H, 1))
    tested.on_chunk(answer(tested.tick(BEGIN)[1], actions=rows), BEGIN)
    assert tested.tick(BEGIN)[0] is None  # the second arm is still missing
    tested.on_arm(1, arm(BEGIN, (0.1, 0.2, 0.3)))
    left, right = tested.tick(BEGIN)[0].targets
    assert left.position.tolist() == [0.4, 0.0, 0.3] and right.position.tolist() == [0.1, 0.2, 0.3]
    np.testing.assert_allclose(left.acceleration, [KP * 0.025, 0, 0, 0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(right.acceleration, [0, -KP * 0.05, 0, 0, 0, 0], atol=1e-9)
    assert (left.gripper, right.gripper) == (-1.0, 1.0)


def test_smoothing_delays_a_ramp_by_its_time_constant() -> None:
    """A delta that grows by 0.1 a second: with smoothing the goals lag by 0.1 s, that is by 0.01."""
    tested = executor("async", lockstep=True, smoothing=0.1)
    target = run(tested, 40, STEP, 0, lambda t: np.r_[0.1 * (t - BEGIN) / 1e9, np.zeros(6)])[-1].targets[0]
    goal = osc_goal(target.position, target.velocity[:3], target.acceleration[:3])
    assert (goal[0] - target.position[0]) / 0.05 == pytest.approx(0.1 * 39 * 0.05 - 0.01, abs=1e-4)
    first = run(tested, 1, STEP, 0, lambda t: np.ones(7))[0].targets[0]  # a new trial remembers nothing
    assert first.acceleration[0] == pytest.approx(KP * 0.05 / 3)


@pytest.mark.parametrize("mode", POSES)
@pytest.mark.parametrize("latency", [0, 60 * MS])
def test_a_late_arm_is_sent_what_shall_be_when_it_gets_there(mode: str, latency: int) -> None:
    """One step ahead of a plan is the plan that is one step ahead: at every tick, chunk borders included."""
    late = run(executor(mode, action_latency=0.05), 80, 10 * MS, latency, one_axis)
    early = run(executor(mode), 80, 10 * MS, latency, lambda time: one_axis(time + STEP))
    poses = [(pose(a), pose(b)) for a, b in zip(late, early, strict=True) if a.targets and b.targets]
    assert len(poses) > 60
    np.testing.assert_allclose(*zip(*poses, strict=True), atol=1e-9)


def test_what_is_sent_ahead_is_for_poses_in_real_time() -> None:
    assert executor("receding", action_latency=0.05).lead == 0
    with pytest.raises(UserError, match="action_latency is for real time"):
        executor("async", lockstep=True, action_latency=0.05)
