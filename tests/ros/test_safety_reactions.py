"""Every fault with the ticks that it takes: silence, sensors, operator, cameras, two arms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from d2ppo_core.contract import ActionSpec
from d2ppo_ros.records import Kind, RobotState, State
from d2ppo_ros.safety.cameras import ImageFacts
from safety_bench import (
    MS,
    ROBOT,
    SIM,
    SMALL,
    TICK,
    Bench,
    arm_state,
    delta,
    frames,
    measured,
    quiet,
    state_of,
)

NEVER = math.inf
# What happens; after how many ticks of 10 ms the robot is told HOLD and STOP; the check that says so in the end.
FAULTS = {
    "executor silent": (ROBOT, quiet("command"), 11, 31, "command_age"),
    "state silent": (ROBOT, quiet("state"), 3, 11, "state_age"),
    "arm silent": (ROBOT, quiet("arm"), 3, 11, "arm_age"),
    "everything silent": (ROBOT, quiet("arm", "state", "command", "front"), 3, 11, "state_age"),
    "camera silent": (ROBOT, quiet("wrist"), (9, 11), (49, 51), "image_age"),
    "state silent in sim": (SIM, quiet("state"), 7, 31, "state_age"),
    "camera silent in sim": (SIM, quiet("front"), (29, 31), (99, 101), "image_age"),
    "frozen camera": (ROBOT, frames(digest=7), (13, 15), (113, 117), "frozen"),
    "black camera": (ROBOT, frames(black=1.0), (1, 3), (101, 105), "black"),
    "blinded camera": (ROBOT, frames(saturated=1.0), (1, 3), (101, 105), "saturated"),
    "other frame size": (ROBOT, frames(shape=(48, 48, 3)), (1, 3), (101, 105), "image_size"),
    "reflex": (ROBOT, measured(ok=False, fault="reflex"), NEVER, 1, "robot"),
    "reflex in sim": (SIM, measured(ok=False, fault="reflex"), NEVER, 1, "robot"),
    "stopped by itself": (ROBOT, measured(fault="safety is silent"), 1, (101, 103), "watchdog"),
    "stopped by itself in sim": (SIM, measured(fault="safety is silent"), 1, (101, 103), "watchdog"),
    "push of 20 N": (ROBOT, measured(wrench=np.array([0, 0, 20.0, 0, 0, 0])), 3, (103, 105), "force"),
    "push of 100 N": (ROBOT, measured(wrench=np.array([0, 0, 100.0, 0, 0, 0])), NEVER, 1, "force"),
    "twist of 30 Nm": (ROBOT, measured(wrench=np.array([0, 0, 0, 0, 0, 30.0])), NEVER, 1, "torque"),
    "outside": (ROBOT, measured(position=np.array([0.4, 0.0, -0.011])), NEVER, 1, "outside"),
    "joint fast": (ROBOT, measured(dq=np.array([0, 0, 0, 0, 0, 0, 1.1])), 1, (101, 103), "speed"),
    "joint far too fast": (ROBOT, measured(dq=np.array([0, 0, 0, 0, 0, 0, 2.2])), NEVER, 1, "speed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_time_to_react(name: str) -> None:
    limits, fault, hold, stop, check = FAULTS[name]
    times = []
    for kind in (Kind.HOLD, Kind.STOP):
        bench = Bench(limits).armed()
        fault(bench)
        times.append(bench.until(kind, 1.5) / 0.01)
    for ticks, expected in zip(times, (hold, stop), strict=True):
        low, high = expected if isinstance(expected, tuple) else (expected, expected)
        assert low - 1e-6 <= ticks <= high + 1e-6, times
    assert state_of(bench) == ("STOPPED", check)


def test_a_fault_between_two_ticks_is_not_missed() -> None:
    bench = Bench(ROBOT).armed()
    bench.monitor.on_arm(arm_state(bench.now + MS, ok=False, fault="reflex"), bench.now + MS)
    bench.monitor.on_arm(arm_state(bench.now + 2 * MS), bench.now + 2 * MS)  # well again
    assert bench.until(Kind.STOP) == pytest.approx(0.01)
    assert state_of(bench) == ("STOPPED", "robot")


def test_the_robots_watchdog_is_heard_only_while_armed() -> None:
    """It lets go when safety is READY again, so it must not keep safety from getting there; it may hear that late."""
    bench = Bench(ROBOT).armed()
    measured(fault="safety is silent")(bench)
    assert bench.until(Kind.STOP, 1.5) and state_of(bench) == ("STOPPED", "watchdog")
    assert bench.monitor.rearm(bench.now)[0] and bench.monitor.arm(bench.now)[0]
    bench.run(0.05)  # the watchdog has not heard of it yet
    assert bench.monitor.state is State.HOLD
    measured(fault="")(bench)
    assert bench.until(Kind.DELTA) <= 0.06


class TestOperator:
    limits = replace(ROBOT, operator_stop=0.3)

    def armed(self) -> Bench:
        bench = Bench(self.limits)
        bench.monitor.on_operator(True, bench.now)
        return bench.armed()

    def test_it_must_be_pressed(self) -> None:
        bench = Bench(self.limits)
        bench.run(0.1)
        assert state_of(bench) == ("DISARMED", "operator")
        bench.monitor.on_operator(True, bench.now)
        bench.run(0.02)
        assert bench.monitor.state is State.READY

    def test_released_holds_at_once_and_then_stops(self) -> None:
        bench = self.armed()
        bench.monitor.on_operator(False, bench.now)
        assert bench.until(Kind.HOLD) == pytest.approx(0.01)
        assert bench.until(Kind.STOP) == pytest.approx(0.30)
        assert state_of(bench) == ("STOPPED", "operator")

    def test_pressed_again_in_time_goes_on(self) -> None:
        bench = self.armed()
        bench.monitor.on_operator(False, bench.now)
        bench.run(0.1)
        bench.monitor.on_operator(True, bench.now)
        assert bench.until(Kind.DELTA) <= 0.06

    def test_silence_stops(self) -> None:
        bench = self.armed()  # 0.2 s after its last word
        assert bench.until(Kind.STOP) == pytest.approx(0.11)


class TestCameras:
    def test_skew_is_a_warning(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.silent = {"wrist"}
        bench.run(0.08)
        assert "image_skew" in bench.monitor.warnings
        assert bench.monitor.state is State.ARMED

    def test_other_cameras_are_not_looked_at(self) -> None:
        bench = Bench(ROBOT).armed()
        for stamp in (0, bench.now):
            bench.monitor.on_image(ImageFacts("ceiling", stamp, 0, 1.0, 1.0, (1, 1, 3)), bench.now)
        bench.run(0.1)
        assert bench.monitor.state is State.ARMED

    def test_a_noiseless_camera_may_stand_still_until_the_arm_moves(self) -> None:
        bench, home = Bench(SIM).armed(), arm_state().position
        bench.facts = {"digest": 7}
        bench.run(1.0)
        assert bench.monitor.state is State.ARMED
        for i in range(1, 11):
            bench.arm_changes = {"position": home + np.array([0.002 * i, 0, 0])}
            bench.step()
        assert state_of(bench) == ("HOLD", "frozen")


class TestTwoArms:
    def test_each_arm_counts(self) -> None:
        bench, double = Bench(ROBOT, ActionSpec(arms=2)), np.concatenate([SMALL, SMALL])
        bench.usual = lambda: delta(bench.now, double) if bench.count % 5 == 0 else bench.command(Kind.KEEP)
        bench.armed().run(0.5)
        assert bench.monitor.report(bench.now).changed == 0
        for _ in range(5):
            bench.now, bench.steady = bench.now + TICK, bench.steady + TICK
            bench.monitor.on_state(RobotState(bench.now, "t", 0, {}), bench.now)
            bench.monitor.on_arm(arm_state(bench.now), bench.now, 0)  # the other one is silent
            bench.tick()
        assert state_of(bench) == ("HOLD", "arm_age")
        assert "arm 1" in bench.monitor.report(bench.now).reason

    def test_a_fault_of_the_second_stops_both(self) -> None:
        bench, double = Bench(ROBOT, ActionSpec(arms=2)), np.concatenate([SMALL, SMALL])
        bench.usual = lambda: delta(bench.now, double) if bench.count % 5 == 0 else bench.command(Kind.KEEP)
        bench.armed()
        bench.monitor.on_arm(arm_state(bench.now, ok=False), bench.now, 1)
        assert bench.monitor.on_command(delta(bench.now, double), bench.now).kind is Kind.STOP


@pytest.mark.parametrize("garbage", [{"q": np.full(7, np.nan)}, {"dq": np.zeros(3)}, {"rotation": np.zeros((3, 3))}])
def test_garbage_of_the_arm_counts_as_silence(garbage: dict) -> None:
    bench = Bench(ROBOT).armed()
    for _ in range(12):
        bench.now, bench.steady = bench.now + TICK, bench.steady + TICK
        bench.monitor.on_state(RobotState(bench.now, "t", 0, {"x": np.array([np.nan])}), bench.now)
        bench.monitor.on_arm(replace(arm_state(bench.now), **garbage), bench.now)
        bench.tick()
    assert bench.monitor.state is State.STOPPED
    assert bench.monitor.counts["joints of arm 0: malformed"] == 12
    assert bench.monitor.counts["robot's state: malformed"] == 12
