"""Parts of the arm's driver that need no arm: limits, health, the hand's queue, versions, the doctor's judgement."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ppo_core.errors import UserError
from d2ppo_core.machine import BROKEN, OK, WARNING
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_ros.records import SECOND, Kind, State
from d2ppo_ros.robot import doctor, versions
from d2ppo_ros.robot.gripper import CLOSED, OPEN, LatestWins
from d2ppo_ros.robot.limits import TABLE, below, fr3_joint_speed, set_limits, share_of
from d2ppo_ros.robot.reading import Health, Reading
from d2ppo_ros.robot.settings import ArmSettings
from d2ppo_ros.robot.stating import contract_of
from d2ppo_ros.robot.workers import Call, OneAtATime
from d2ppo_ros.safety.kinematics import LIMITS
from d2ppo_ros.safety.watchdog import Order, Watchdog

MS = 1_000_000


@given(st.sampled_from(["panda", "fr3"]), st.floats(0.01, 1.0), st.floats(0.1, 3.0))
def test_limits_are_never_above_table_or_library(model: str, fraction: float, scale: float) -> None:
    table = vars(TABLE[model])
    largest = {name: scale * np.array(value) for name, value in table.items()}
    for name, value in below(share_of(model, fraction), largest).items():
        assert (np.array(value) <= fraction * np.array(table[name]) + 1e-9).all()
        assert (np.array(value) <= largest[name] + 1e-9).all() and (np.array(value) > 0).all()


def test_the_models_are_not_swapped_and_wrong_ones_refused() -> None:
    assert max(TABLE["panda"].joint_velocity) < max(TABLE["fr3"].joint_velocity)
    assert TABLE["panda"].joint_velocity == tuple(LIMITS["panda"].speed)
    assert TABLE["fr3"].joint_velocity == tuple(LIMITS["fr3"].speed)
    for bad in (("ur5", 0.3), ("panda", 0.0), ("panda", 1.5)):
        with pytest.raises(UserError):
            share_of(*bad)


def test_every_limit_of_a_client_is_set() -> None:
    class Limit:
        def __init__(self, most: object) -> None:
            self.max, self.value = most, None

        def set(self, value: object) -> None:
            self.value = value

    class Client:
        pass

    client = Client()
    for name, value in vars(TABLE["panda"]).items():
        setattr(client, f"{name}_limit", Limit(np.array(value) * 0.5 if "joint" in name else value * 0.5))
    chosen = set_limits(client, "panda", 1.0)
    assert chosen["translation_velocity"] == 0.85 and len(chosen) == 12
    assert client.joint_velocity_limit.value == [1.0875] * 4 + [1.305] * 3


def test_an_fr3s_joints_are_slower_near_their_ends() -> None:
    low, high = LIMITS["fr3"].low, LIMITS["fr3"].high
    down, up = fr3_joint_speed((low + high) / 2, low, high)
    assert (up > 0).all() and (down < 0).all()
    assert not fr3_joint_speed(high, low, high)[1].any() and not fr3_joint_speed(low, low, high)[0].any()


def reading(at: int, **about: object) -> Reading:
    return Reading(at, at / SECOND, np.zeros(7), np.zeros(7), np.eye(4), np.zeros(6), **about)


def test_health_sees_silence_errors_modes_and_lost_commands() -> None:
    health = Health(0.1)
    assert "not been heard" in health.look(0)
    health.update(reading(0))
    assert health.look(99 * MS) == "" and "silent" in health.look(101 * MS)
    health.update(reading(200 * MS, errors=("joint_reflex",), mode="Reflex"))
    assert "joint_reflex" in health.look(201 * MS)
    health.update(reading(210 * MS, mode="UserStopped"))
    assert "release the user stop" in health.look(211 * MS)
    for rate, fault, warning in ((1.0, False, False), (0.93, False, True), (0.8, True, False)):
        health.forget()
        for ms in range(0, 2000, 20):
            health.update(reading(ms * MS, success=rate, driven=True, mode="Move"))
        assert (bool(health.look(1990 * MS)), bool(health.warning)) == (fault, warning)


@given(st.lists(st.tuples(st.floats(0.01, 0.3), st.floats(-1, 1), st.booleans()), max_size=60))
def test_the_hand_gets_the_latest_command_one_at_a_time_with_a_distance(events: list) -> None:
    choice, now, sent = LatestWins(0.5, 0.05), 0.0, []
    for step, value, ends in events:
        now += step
        choice.want(value)
        was_busy = choice.busy
        command = choice.next(now)
        if command is not None:
            assert not was_busy and command == choice.wanted
            sent.append((now, command))
        elif ends:
            choice.ended(True)
    assert all(b[0] - a[0] >= 0.5 for a, b in pairwise(sent))
    assert all(a[1] != b[1] for a, b in pairwise(sent))


def test_a_failed_hand_command_is_sent_again() -> None:
    choice = LatestWins(0.5, 0.05)
    choice.want(1.0)
    assert choice.next(0.0) == CLOSED and choice.next(1.0) is None
    choice.ended(False)
    assert choice.next(0.4) is None and choice.next(0.5) == CLOSED
    choice.want(-1.0)
    choice.want(0.01)  # near 0: nothing new
    choice.ended(True)
    assert choice.next(1.0) == OPEN


def test_calls_that_hang_keep_nobody_waiting() -> None:
    gate, one = threading.Event(), OneAtATime("test")
    begin = time.monotonic()
    assert one.start(gate.wait) and not one.start(gate.wait) and one.busy
    assert time.monotonic() - begin < 0.5
    gate.set()
    assert one.wait(1.0) and one.start(lambda: 1 / 0) and one.wait(1.0)
    assert isinstance(one.outcome(), ZeroDivisionError) and one.outcome() is None
    call = Call(lambda: 5, "test")
    assert call.wait(1.0) and call.result == 5


@given(st.lists(st.tuples(st.integers(1, 80), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_watchdog_never_goes_on_beyond_its_times(events: list) -> None:
    dog, now, fed, heard = Watchdog(), 0, 0, 0
    dog.heartbeat(State.READY, 0)
    dog.heartbeat(State.ARMED, 0)
    for ms, command, beat in events:
        now += ms * MS
        order = dog.poll(now)
        if order is Order.GO:
            assert now - fed <= 100 * MS and now - heard <= 200 * MS
        if dog.fault:
            assert order in (Order.STOP, Order.DISARMED)
        if command:
            dog.feed(Kind.DELTA, now)
            fed = now
        if beat:
            dog.heartbeat(State.ARMED, now)
            heard = now


def test_a_driver_may_trip_the_watchdog_once_it_is_armed() -> None:
    dog = Watchdog()
    assert dog.trip("early", 0) is Order.DISARMED and not dog.fault
    dog.heartbeat(State.READY, 1)
    dog.heartbeat(State.ARMED, 2)
    assert dog.trip("a reflex", 3) is Order.STOP and dog.fault == "a reflex"
    dog.heartbeat(State.ARMED, 4)
    assert dog.poll(5) is Order.STOP


def test_wrong_builds_are_answered_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "libfranka: Incompatible library version (server version: {}, library version: 10)"
    assert "make robot ROBOT=panda" in versions.wrong_build(text.format(5), "panda")
    assert "robot_model: panda" in versions.wrong_build(text.format(5), "fr3")
    assert "by-robot-server-version/7/" in versions.wrong_build(text.format(7), "fr3")
    panda = "2.0.0+libfranka.0.9.2"
    for found, model, good in (("2.0.0", "fr3", True), ("2.0.0", "panda", False), ("1.1.4", "fr3", False),
                               ("", "fr3", False), (panda, "panda", True), (panda, "fr3", False)):  # fmt: skip
        monkeypatch.setattr(versions, "installed", lambda found=found: found)
        if good:
            assert found in versions.check(model)
        else:
            with pytest.raises(UserError, match=f"make robot ROBOT={model}"):
                versions.check(model)


def test_the_robot_states_what_it_measures_and_refuses_the_rest() -> None:
    lift, transport = (load_task(name) for name in ("lift", "transport"))
    contract = contract_of(ArmSettings(), observation_spec(lift), action_spec(lift))
    assert [key.name for key in contract.lowdim] == ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert contract.action.limits == "robot"
    with_object = contract_of(ArmSettings(objects=True), observation_spec(lift), action_spec(lift))
    assert with_object.lowdim[-1].name == "object"
    with pytest.raises(UserError, match="2 arms"):
        contract_of(ArmSettings(), observation_spec(transport), action_spec(transport))
    with pytest.raises(UserError, match="gripper"):
        contract_of(ArmSettings(gripper=False), observation_spec(lift), action_spec(lift))
    two = ArmSettings(hosts=["a", "b"])
    assert len(contract_of(two, observation_spec(transport), action_spec(transport)).lowdim) == 6


@pytest.mark.parametrize("wrong", [
    {"hosts": []}, {"hosts": ["a", "b"], "base_position": [0.0] * 3}, {"box_low": [0.0]}, {"command_hold": 0.4},
    {"box_low": [1.0, 0, 0], "box_high": [0.0, 1, 1]}, {"reaction_force": 60.0},
])  # fmt: skip
def test_settings_that_do_not_fit(wrong: dict) -> None:
    with pytest.raises(UserError, match="correct the parameter file"):
        ArmSettings(**wrong)


def test_the_doctors_judgement(tmp_path: Path) -> None:
    flag = tmp_path / "realtime"
    assert doctor.kernel_row(flag, "6.1").state == WARNING
    flag.write_text("1\n")
    assert doctor.kernel_row(flag, "6.1").state == OK
    core = tmp_path / "cpu0" / "cpufreq"
    core.mkdir(parents=True)
    (core / "scaling_governor").write_text("powersave\n")
    assert "cpupower" in doctor.governor_row(tmp_path).fix
    said = "50 packets transmitted, 50 received, 0% packet loss\nrtt min/avg/max/mdev = 0.05/0.10/{}/0.01 ms"
    assert doctor.judge_ping("p", said.format("0.30")).state == OK
    assert doctor.judge_ping("p", said.format("1.30")).state == WARNING
    assert doctor.judge_ping("p", "100% packet loss").state == BROKEN
    for rates, state in (([0.99] * 9, OK), ([0.93], WARNING), ([0.8], BROKEN), ([], BROKEN)):
        assert doctor.success_row("h", rates, "").state == state
    assert doctor.states_row("h", [0.004] * 20).state == OK and doctor.states_row("h", [0.03] * 20).state == WARNING


@pytest.mark.graph
def test_a_circle_is_followed_on_the_robots_clock() -> None:
    pytest.importorskip("franky_sim")
    from d2ppo_ros.robot.bench import BenchOptions, measure

    (found,), loop = measure(BenchOptions(seconds=2.0))
    assert loop.ticks > 100 and 0 <= loop.late["median"] <= loop.late["largest"] and loop.real_time > 0.1
    assert 0.0 < found.lag < 0.07 and found.rms < 0.006  # 35 ms and 4 mm where a quiet machine was measured
    assert found.acceleration < 1.5 and found.speed_spread < 0.25
