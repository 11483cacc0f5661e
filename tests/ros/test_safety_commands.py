"""What happens to each kind of command, and to stamps that lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d2ppo_ros.records import SECOND, Command, Kind, State
from safety_bench import (
    MS,
    NOT_A_NUMBER,
    ROBOT,
    SIM,
    SMALL,
    TICK,
    Bench,
    arm_state,
    delta,
    pose,
    state_of,
)


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
