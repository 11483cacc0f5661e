"""Properties over any history of events, and over whole episodes in lockstep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import ActionSpec
from d2ppo_ros.records import SECOND, Command, Kind, RobotState, State
from d2ppo_ros.safety.cameras import ImageFacts
from d2ppo_ros.safety.monitor import SafetyMonitor
from d2ppo_ros.safety.settings import LockstepSettings
from safety_bench import (
    MS,
    NOT_A_NUMBER,
    ROBOT,
    Bench,
    arm_state,
    delta,
    pose,
)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.booleans())
def test_lockstep_passes_a_whole_episode_untouched(seed: int, steps: int, late_clock: bool) -> None:
    """Commands answer states 50 ms apart; /clock may arrive behind them; pictures may stand still, or be black."""
    rng, now = np.random.default_rng(seed), 7 * SECOND
    monitor = SafetyMonitor(LockstepSettings(cameras=["c"]), ActionSpec(), now)
    stamp, clock = now, now
    for step in range(-1, steps):
        stamp += 50 * MS
        clock = stamp - 50 * MS if late_clock else stamp
        monitor.on_state(RobotState(stamp, "t", step, {}), clock)
        monitor.on_image(ImageFacts("c", stamp, 0, 1.0, 0.0, (84, 84, 3)), clock)
        if step == -1:
            monitor.tick(clock, 0)
            assert monitor.arm(clock)[0]
            continue
        command = delta(stamp, rng.uniform(-1, 1, 7))
        assert monitor.on_command(command, clock) is command
        assert monitor.tick(clock, int(rng.integers(10**12))) is None
    report = monitor.report(clock)
    assert (report.state, report.passed, report.changed, report.refused) == (State.ARMED, steps, 0, 0)


EVENTS = (
    "run", "run", "run", "nan", "inf", "wild", "shape", "pose", "wild pose", "old", "future", "keep", "hold", "stop",
    "silence", "speak", "fault", "well", "push", "back", "forth", "estop", "arm", "arm", "rearm", "disarm",
)  # fmt: skip


def play(bench: Bench, event: str, rng: np.random.Generator) -> None:
    """One event of a history."""
    home, monitor = arm_state(), bench.monitor
    commands: dict[str, Callable[[], Command]] = {
        "nan": lambda: delta(bench.now, NOT_A_NUMBER),
        "inf": lambda: delta(bench.now, np.full(7, np.inf)),
        "wild": lambda: delta(bench.now, rng.normal(size=7) * 10.0 ** rng.integers(-2, 9)),
        "shape": lambda: delta(bench.now, rng.normal(size=rng.integers(0, 20))),
        "pose": lambda: pose(bench.now, home.position + rng.normal(size=3) * 0.003, home.rotation),
        "wild pose": lambda: pose(bench.now, rng.normal(size=3) * 10.0 ** rng.integers(-2, 9),
                                  Rotation.random(random_state=int(rng.integers(2**31))).as_matrix(),
                                  velocity=rng.normal(size=6) * 1e3),
        "old": lambda: delta(bench.now - int(rng.integers(SECOND))),
        "future": lambda: delta(bench.now + int(rng.integers(SECOND))),
        "keep": lambda: bench.command(Kind.KEEP),
        "hold": lambda: bench.command(Kind.HOLD),
        "stop": lambda: bench.command(Kind.STOP),
    }  # fmt: skip
    if event in commands:
        bench.step(commands[event])
    elif event == "run":
        bench.run(float(rng.uniform(0.01, 0.2)))
    elif event == "silence":
        bench.silent = set(rng.choice(["state", "arm", "command", "front", "wrist"], 2))
        bench.run(float(rng.uniform(0.01, 0.4)))
    elif event == "speak":
        bench.silent = set()
        bench.run(0.05)
    elif event in ("fault", "well", "push"):
        force = rng.normal(size=6) * 20
        bench.arm_changes = {"fault": {"ok": False}, "well": {}, "push": {"wrench": force}}[event]
        bench.step()
    elif event in ("back", "forth"):
        bench.now += (1 if event == "forth" else -1) * int(rng.integers(0, 2 * SECOND))
        bench.step()
    else:
        {
            "estop": lambda: monitor.stop(bench.now, "e"),
            "arm": lambda: monitor.arm(bench.now),
            "rearm": lambda: monitor.rearm(bench.now),
            "disarm": lambda: monitor.disarm(bench.now, "d"),
        }[event]()


def within_limits(sent: Command, spec: ActionSpec) -> bool:
    """Whether a motion that went to the robot is one that it may make."""
    if sent.kind is Kind.DELTA:
        a = sent.action
        return (a.shape == (7,) and np.isfinite(a).all() and np.abs(a).max() <= 1
                and np.linalg.norm(a[:3]) * spec.position_scale <= 0.0125 + 1e-9
                and np.linalg.norm(a[3:6]) * spec.rotation_scale <= 0.05 + 1e-9)  # fmt: skip
    if sent.kind is Kind.POSE:
        t = sent.targets[0]
        inside = (t.position >= [0.2, -0.45, 0.01]).all() and (t.position <= [0.75, 0.45, 0.8]).all()
        return inside and np.linalg.norm(t.velocity[:3]) <= 0.25 + 1e-9 and bool(np.isfinite(t.acceleration).all())
    return True


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), min_size=5, max_size=40), st.integers(0, 2**32 - 1))
def test_any_history(events: list[str], seed: int) -> None:
    """Only what is inside the limits and only while armed; STOPPED ends by `rearm` alone, ARMED begins by `arm`."""
    bench, rng = Bench(ROBOT), np.random.default_rng(seed)
    monitor, states = bench.monitor, []
    on_command, tick = monitor.on_command, monitor.tick

    def watched(call: Callable) -> Callable:
        def wrapped(*arguments):
            states.append(monitor.state)
            answer = call(*arguments)
            states.append(monitor.state)
            if answer is not None and answer.kind in (Kind.DELTA, Kind.POSE, Kind.KEEP):
                assert states[-2] in (State.ARMED, State.HOLD)
                assert states[-1] is State.ARMED
                assert within_limits(answer, bench.spec)
            return answer

        return wrapped

    monitor.on_command, monitor.tick = watched(on_command), watched(tick)
    bench.run(0.1)
    for event in events:
        before = monitor.state
        play(bench, event, rng)
        if before is State.STOPPED and event != "rearm":
            assert monitor.state is State.STOPPED
        if monitor.state in (State.ARMED, State.HOLD) and before not in (State.ARMED, State.HOLD):
            assert event == "arm"
        if monitor.state is State.STOPPED:
            assert monitor.report(bench.now).reason
