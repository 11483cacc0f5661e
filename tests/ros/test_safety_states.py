"""The monitor's states: who leads where, and what nothing ever does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2ppo_ros.records import Kind, State
from d2ppo_ros.safety.settings import SafetySettings
from safety_bench import (
    HOME,
    MS,
    ROBOT,
    SIM,
    Bench,
    arm_state,
    delta,
    pose,
    state_of,
)


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


def test_home_is_far_from_every_limit() -> None:
    """What these tests start from is not itself near a limit."""
    bench = Bench(ROBOT)
    bench.measure()
    assert bench.monitor.arms[0].findings() == []
    np.testing.assert_array_equal(bench.monitor.arms[0].state.q, HOME)
