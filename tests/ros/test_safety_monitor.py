"""The monitor as a whole: its states, every fault with the ticks that it takes, and properties over any history."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import ActionSpec
from d2ppo_ros.records import SECOND, Command, Kind, RobotState, State
from d2ppo_ros.safety.cameras import ImageFacts
from d2ppo_ros.safety.monitor import SafetyMonitor
from d2ppo_ros.safety.settings import LockstepSettings, SafetySettings, SimSettings
from safety_bench import HOME, MS, SMALL, TICK, Bench, arm_state, delta, pose

ROBOT = SafetySettings(cameras=["front", "wrist"])
SIM = SimSettings(cameras=["front"])
NOT_A_NUMBER = np.full(7, np.nan)


def state_of(bench: Bench) -> tuple[str, str]:
    report = bench.monitor.report(bench.now)
    return report.state.name, report.check


@pytest.mark.parametrize("limits", [ROBOT, SIM], ids=["robot", "sim"])
def test_all_well_nothing_is_touched(limits: SafetySettings) -> None:
    bench = Bench(limits).armed()
    bench.run(2.0)
    report = bench.monitor.report(bench.now)
    assert (report.state, report.changed, report.refused, report.check) == (State.ARMED, 0, 0, "")
    assert report.passed == 206  # 0.1 s more since arming, in which 4 KEEPs waited for a first motion
    assert len(bench.sent) == 200  # the monitor itself said nothing
    assert not bench.monitor.counts
    assert not bench.monitor.warnings


class TestStates:
    def test_the_way_from_disarmed_to_armed(self) -> None:
        bench = Bench(ROBOT)
        assert bench.monitor.arm(bench.now) == (False, "cannot arm: safety is DISARMED")
        bench.silent = {"wrist"}
        bench.run(0.2)
        assert state_of(bench) == ("DISARMED", "image_age")
        assert "camera wrist" in bench.monitor.arm(bench.now)[1]
        bench.silent = set()
        bench.run(0.1)
        assert state_of(bench) == ("READY", "")
        assert {sent.kind for _, sent in bench.sent} == {Kind.HOLD}  # nothing moves before it is armed
        assert bench.monitor.arm(bench.now) == (True, "armed")
        assert bench.until(Kind.DELTA) <= 0.06

    @pytest.mark.parametrize("missing", ["state", "arm", "command", "front"])
    def test_everything_needed_must_speak(self, missing: str) -> None:
        bench = Bench(ROBOT)
        bench.silent = {missing}
        bench.run(0.3)
        assert bench.monitor.state is State.DISARMED
        bench.silent = set()
        bench.run(0.1)
        assert bench.monitor.state is State.READY

    def test_ready_turns_to_disarmed_by_itself(self) -> None:
        bench = Bench(ROBOT)
        bench.run(0.1)
        bench.silent = {"command"}
        bench.run(0.9)
        assert bench.monitor.state is State.READY  # an executor may be late while nothing is armed
        assert not bench.monitor.arm(bench.now)[0]
        bench.run(0.2)
        assert state_of(bench) == ("DISARMED", "command_age")

    def test_disarm_and_arm_again(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.monitor.disarm(bench.now, "enough")
        assert bench.monitor.report(bench.now).reason == "enough"
        bench.tick()
        assert bench.sent[-1][1].kind is Kind.HOLD  # at once, not only with the next command
        bench.run(0.1)
        assert bench.monitor.state is State.READY
        assert not any(sent.kind in (Kind.DELTA, Kind.KEEP) for _, sent in bench.sent)
        assert bench.monitor.arm(bench.now)[0]

    def test_an_emergency_stop_is_latched_from_any_state(self) -> None:
        for prepared in (Bench(ROBOT), Bench(ROBOT).armed()):
            prepared.monitor.stop(prepared.now, "button")
            assert state_of(prepared) == ("STOPPED", "stop")
            prepared.sent.clear()
            prepared.run(0.2)
            assert {sent.kind for _, sent in prepared.sent} == {Kind.STOP}
            prepared.monitor.disarm(prepared.now, "no way out")
            assert not prepared.monitor.arm(prepared.now)[0]
            assert prepared.monitor.state is State.STOPPED

    def test_the_first_reason_stays(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.monitor.stop(bench.now, "first")
        bench.arm_changes = {"ok": False}
        bench.run(0.1)
        bench.monitor.stop(bench.now, "second")
        assert bench.monitor.report(bench.now).reason == "first"

    def test_rearm_waits_until_the_cause_is_gone(self) -> None:
        bench = Bench(ROBOT).armed()
        assert bench.monitor.rearm(bench.now) == (False, "cannot re-arm: safety is ARMED, not STOPPED")
        bench.arm_changes = {"ok": False, "fault": "reflex"}
        bench.run(0.05)
        assert bench.monitor.rearm(bench.now) == (False, "cannot re-arm: arm0 reports reflex")
        bench.arm_changes = {}
        bench.run(0.05)
        assert bench.monitor.state is State.STOPPED  # not by itself
        assert bench.monitor.rearm(bench.now)[0]
        assert bench.until(Kind.DELTA, 0.5) == math.inf  # ready is not armed
        assert bench.monitor.arm(bench.now)[0]
        assert bench.until(Kind.DELTA) <= 0.06

    def test_old_motions_do_not_pass_after_arming(self) -> None:
        bench = Bench(ROBOT)
        bench.run(0.1)
        bench.silent = {"command"}
        bench.run(0.05)
        old = delta(bench.now - MS)  # newer than every command so far, on its way while a person armed
        assert bench.monitor.arm(bench.now)[0]
        assert bench.monitor.on_command(old, bench.now).kind is Kind.HOLD
        assert bench.monitor.on_command(delta(bench.now), bench.now).kind is Kind.DELTA

    def test_keep_after_arming_has_nothing_to_keep(self) -> None:
        bench = Bench(ROBOT)
        bench.run(0.1)
        bench.monitor.arm(bench.now)
        bench.sent.clear()
        bench.run(0.1, lambda: bench.command(Kind.KEEP))
        assert {sent.kind for _, sent in bench.sent} == {Kind.HOLD}
        bench.step(lambda: delta(bench.now))
        bench.step(lambda: bench.command(Kind.KEEP))
        assert [sent.kind for _, sent in bench.sent[-2:]] == [Kind.DELTA, Kind.KEEP]

    def test_a_hold_ends_by_itself_and_needs_a_new_motion(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.arm_changes = {"wrench": np.array([16.0, 0, 0, 0, 0, 0])}
        assert bench.until(Kind.HOLD) < 0.1
        assert state_of(bench) == ("HOLD", "force")
        bench.run(0.2)
        assert bench.monitor.state is State.HOLD
        bench.arm_changes = {}
        bench.sent.clear()
        bench.run(0.1, lambda: bench.command(Kind.KEEP))
        assert state_of(bench) == ("ARMED", "")
        assert {sent.kind for _, sent in bench.sent} == {Kind.HOLD}
        assert bench.until(Kind.DELTA) <= 0.06

    def test_after_a_hold_an_absolute_target_must_be_where_the_arm_is(self) -> None:
        bench, home = Bench(ROBOT).armed(), arm_state()
        ahead = home.position + np.array([0.03, 0, 0])
        bench.step(lambda: bench.command(Kind.HOLD))
        bench.step(lambda: pose(bench.now, ahead, home.rotation))
        assert state_of(bench) == ("HOLD", "jump")
        bench.step(lambda: pose(bench.now, home.position, home.rotation))
        assert state_of(bench) == ("ARMED", "")

    def test_the_executor_may_ask_for_a_stop(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.step(lambda: bench.command(Kind.STOP, reason="contract broken"))
        assert state_of(bench) == ("STOPPED", "requested")
        assert bench.monitor.report(bench.now).reason == "contract broken"


def quiet(*sources: str) -> Callable[[Bench], None]:
    return lambda bench: setattr(bench, "silent", set(sources))


def measured(**changes) -> Callable[[Bench], None]:
    return lambda bench: setattr(bench, "arm_changes", changes)


def frames(**changes) -> Callable[[Bench], None]:
    return lambda bench: setattr(bench, "facts", changes)


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


class TestCommands:
    def test_one_bad_command_is_held_and_three_are_a_fault(self) -> None:
        bench = Bench(ROBOT).armed()
        for _ in range(2):
            bench.step(lambda: delta(bench.now, NOT_A_NUMBER))
            assert state_of(bench) == ("HOLD", "malformed")
            assert bench.sent[-1][1].kind is Kind.HOLD
        bench.step(lambda: delta(bench.now))
        assert state_of(bench) == ("ARMED", "")  # a good one between: counted anew
        for _ in range(2):
            bench.step(lambda: delta(bench.now, NOT_A_NUMBER))
            bench.step(lambda: bench.command(Kind.KEEP))  # KEEP says nothing about the next motion
        bench.step(lambda: delta(bench.now, NOT_A_NUMBER))
        assert state_of(bench) == ("STOPPED", "malformed")
        assert bench.monitor.counts["malformed"] == 5

    def test_actions_out_of_range_are_clipped_and_three_are_a_fault(self) -> None:
        bench, wild = Bench(SIM).armed(), np.array([0.0, 30.0, 0, 0, 0, 0, 1])
        for _ in range(2):
            bench.step(lambda: delta(bench.now, wild))
            assert bench.sent[-1][1].action[1] == 1.0
        bench.step(lambda: delta(bench.now))
        for _ in range(3):
            bench.step(lambda: delta(bench.now, wild))
        assert state_of(bench) == ("STOPPED", "range")

    def test_what_is_sent_instead_holds_no_motion(self) -> None:
        bench = Bench(ROBOT).armed()
        answer = bench.monitor.on_command(delta(bench.now + MS, NOT_A_NUMBER, sequence=77, chunk=3), bench.now + MS)
        assert (answer.kind, answer.sequence, answer.chunk, answer.stamp) == (Kind.HOLD, 77, 3, bench.now + MS)
        assert answer.action.size == 0
        assert answer.targets == ()
        assert "NaN" in answer.reason

    @pytest.mark.parametrize(("ahead", "why"), [(6, "future"), (-101, "late"), (-11, "back")])
    def test_wrong_stamps_are_dropped_and_counted(self, ahead: int, why: str) -> None:
        bench = Bench(ROBOT).armed()
        answer = bench.monitor.on_command(delta(bench.now + ahead * MS), bench.now)
        assert answer.kind is Kind.HOLD
        assert bench.monitor.counts[f"command: {why}"] == 1
        assert bench.monitor.report(bench.now).refused == 1

    def test_a_refused_command_holds_until_a_good_one(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.monitor.on_command(delta(bench.now + SECOND), bench.now)
        bench.silent = {"command"}
        bench.run(0.05)
        assert state_of(bench) == ("HOLD", "stamp")
        bench.silent = set()
        bench.step()
        assert bench.monitor.state is State.ARMED
        bench.arm_changes = {"wrench": np.array([20.0, 0, 0, 0, 0, 0])}
        bench.run(0.1)
        bench.arm_changes, bench.silent = {}, {"command"}
        bench.run(0.05)
        assert bench.monitor.state is State.ARMED  # this one needed no command to end

    def test_a_sender_with_a_wrong_clock_counts_as_silent(self) -> None:
        bench = Bench(ROBOT).armed()
        assert bench.until(Kind.STOP, command=lambda: delta(bench.now + SECOND)) == pytest.approx(0.31)

    def test_keep_alone_starves(self) -> None:
        bench = Bench(ROBOT).armed()
        assert bench.until(Kind.STOP, command=lambda: bench.command(Kind.KEEP)) == pytest.approx(1.0, abs=0.06)
        assert state_of(bench) == ("STOPPED", "starved")

    def test_without_a_trial_nobody_starves(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.run(3.0, lambda: bench.command(Kind.HOLD, trial=""))
        assert bench.monitor.state is State.ARMED

    def test_old_observations_are_a_fault(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.step(lambda: delta(bench.now, observation=bench.now - 2 * SECOND))
        assert bench.monitor.state is State.ARMED
        bench.step(lambda: delta(bench.now, observation=bench.now - 2 * SECOND - MS))
        assert state_of(bench) == ("STOPPED", "observation_age")

    def test_clipping_is_counted_and_warned_of(self) -> None:
        bench, big = Bench(ROBOT).armed(), np.r_[0.5, SMALL[1:]]
        bench.run(1.0, lambda: delta(bench.now, big) if bench.count % 5 == 0 else bench.command(Kind.KEEP))
        report = bench.monitor.report(bench.now)
        assert report.changed == bench.monitor.counts["delta"] == 20
        assert bench.monitor.warnings["clamped"].value > 0.5
        assert report.state is State.ARMED
        bench.run(1.2)
        assert not bench.monitor.warnings

    def test_tracking_error(self) -> None:
        """An arm that is blocked while absolute targets go on."""
        bench, home = Bench(ROBOT).armed(), arm_state()
        bench.step(lambda: bench.command(Kind.HOLD))
        start = bench.now

        def ahead() -> Command:
            far = 0.2 * (bench.now - start) / SECOND  # m, at 0.2 m/s
            return pose(bench.now, home.position + np.array([far, 0, 0]), home.rotation)

        stopped = bench.until(Kind.STOP, command=ahead)
        assert stopped == pytest.approx(0.06 / 0.2 + 0.2, abs=0.03)
        assert state_of(bench) == ("STOPPED", "tracking")

    def test_an_episode_has_an_end(self) -> None:
        bench = Bench(replace(ROBOT, max_duration=1.5)).armed()
        assert bench.until(Kind.STOP) == pytest.approx(1.42, abs=0.015)
        assert state_of(bench) == ("STOPPED", "duration")

    def test_a_new_trial_begins_anew(self) -> None:
        bench = Bench(replace(ROBOT, max_duration=1.0)).armed()
        for trial in "abc":
            bench.run(0.8, lambda trial=trial: replace(bench.usual(), trial=trial))
            assert bench.monitor.state is State.ARMED

    def test_the_way_has_an_end(self) -> None:
        bench, home = Bench(replace(ROBOT, max_path=0.1)).armed(), arm_state().position
        for i in range(60):
            bench.arm_changes = {"position": home + np.array([0.002 * i, 0, 0])}
            bench.step()
        assert state_of(bench) == ("STOPPED", "path")


class TestClock:
    @pytest.mark.parametrize("jump", [-3600, -1, 1, 3600])
    def test_a_jump_stops_and_new_data_are_needed(self, jump: int) -> None:
        bench = Bench(ROBOT).armed()
        bench.now += jump * SECOND
        bench.tick()
        assert state_of(bench) == ("STOPPED", "clock")
        assert not bench.monitor.rearm(bench.now)[0]  # nothing came yet in the new time
        bench.run(0.1)
        assert bench.monitor.rearm(bench.now)[0]
        bench.run(0.02)
        assert bench.monitor.arm(bench.now)[0]
        assert bench.until(Kind.DELTA) <= 0.06

    def test_a_monitor_that_slept_stops(self) -> None:
        bench = Bench(ROBOT).armed()
        bench.now, bench.steady = bench.now + 5 * TICK, bench.steady + 5 * TICK
        bench.step()
        assert "tick" in bench.monitor.warnings
        bench.now, bench.steady = bench.now + 10 * TICK, bench.steady + 10 * TICK
        bench.step(lambda: bench.command(Kind.KEEP))
        assert bench.monitor.state is State.STOPPED

    def test_time_that_goes_back_makes_nothing_fresh(self) -> None:
        bench = Bench(replace(SIM, clock_jump=0.0)).armed()
        bench.silent = {"state"}
        bench.run(0.4)
        assert state_of(bench) == ("STOPPED", "state_age")
        bench.now -= SECOND  # and no clock check to see it
        bench.tick()
        assert not bench.monitor.rearm(bench.now)[0]
        assert bench.monitor.state is State.STOPPED


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


def test_home_is_far_from_every_limit() -> None:
    """What these tests start from is not itself near a limit."""
    bench = Bench(ROBOT)
    bench.measure()
    assert bench.monitor.arms[0].findings() == []
    np.testing.assert_array_equal(bench.monitor.arms[0].state.q, HOME)
