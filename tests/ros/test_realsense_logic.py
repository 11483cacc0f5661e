"""Counting, stamping and starting anew, for every history that hypothesis can think of; no library, no ROS."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_core.errors import UserError
from d2ppo_ros.realsense.accounting import RESTARTED, Arrivals, FrameAccount
from d2ppo_ros.realsense.clock import FUTURE, GLOBAL, OLDEST, FrameClock
from d2ppo_ros.realsense.link import SECOND, Act, Link, Patience
from d2ppo_ros.realsense.settings import RealsenseSettings, wanted
from d2ppo_ros.realsense.watched import Watched

MS = 1_000_000  # ns
unhurried = settings(deadline=None)  # a busy machine is no failure
NOW = 1_700_000_000 * SECOND


@unhurried
@given(st.sets(st.integers(1, 500), min_size=1), st.integers(0, 10**9))
def test_every_number_is_passed_or_dropped_once(numbers: set[int], offset: int) -> None:
    """A camera that counts up, of whose frames only these come: whatever is missing between first and last is lost."""
    account, came = FrameAccount(), sorted(number + offset for number in numbers)
    assert all(account.take(number, i * MS) for i, number in enumerate(came))
    assert (account.passed, account.dropped, account.repeated) == (len(came), came[-1] - came[0] + 1 - len(came), 0)


@unhurried
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 4)), min_size=1, max_size=50))
def test_what_comes_again_is_refused_and_counted(frames: list[tuple[int, int]]) -> None:
    account, newest, number = FrameAccount(), None, 100
    for step, times in frames:
        number += step
        for _ in range(times):
            assert account.take(number, 0) == (newest is None or number > newest)
            newest = number
    assert account.passed == len(frames) and account.repeated == sum(times - 1 for _, times in frames)
    assert not account.take(number - min(number - 1, RESTARTED - 1), 0)  # one that was overtaken


def test_a_camera_that_counts_anew_loses_nothing_by_that() -> None:
    account = FrameAccount()
    assert account.take(5000, 0) and account.take(1, MS) and account.take(3, 2 * MS)
    assert (account.passed, account.dropped) == (3, 1)
    account.restart()
    assert account.take(2, 3 * MS) and account.dropped == 1


def test_rates_are_of_the_last_seconds() -> None:
    account = FrameAccount()
    assert account.rates(0).frames == 0.0
    for i in range(900):
        account.take(i if i < 600 else 2 * i - 600, i * 33 * MS)  # in the end every second frame is lost
    rates = account.rates(900 * 33 * MS)
    assert rates.frames == pytest.approx(30.3, abs=0.5) and rates.dropped == pytest.approx(0.5, abs=0.02)


def test_rates_may_be_asked_for_while_frames_come() -> None:
    """The report runs in another thread than the camera."""
    account, interval = FrameAccount(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor() as pool:
            taking = pool.submit(lambda: [account.take(number, number * MS) for number in range(3_000)])
            while not taking.done():
                account.rates(1)
            assert all(taking.result()) and account.passed == 3_000
    finally:
        sys.setswitchinterval(interval)


@unhurried
@given(st.permutations(range(12)), st.sets(st.integers(0, 10)))
def test_pictures_lost_on_the_way_are_counted_in_any_order(order: list[int], lost: set[int]) -> None:
    """12 pictures, announced in order, each either arriving late by up to some announcements, or never."""
    arrivals = Arrivals()
    events = sorted([(i, 0, i) for i in range(12)] + [(i + order[i] / 13 - 0.5, 1, i) for i in range(12)])
    came = [i for _, kind, i in events if kind == 1]
    assert came == sorted(came)
    for _, kind, i in events:
        if kind == 0:
            arrivals.announced(1000 + i)
        elif i not in lost:
            arrivals.came(1000 + i)
    assert arrivals.lost == len(lost)  # the last one always comes


@unhurried
@given(st.integers(-10**10, 10**10), st.sampled_from([GLOBAL, "system_time", "hardware_clock"]))
def test_only_a_global_time_that_fits_the_arrival_is_believed(age: int, domain: str) -> None:
    clock = FrameClock(latency=7 * MS, receive_latency=45 * MS)
    made = clock.stamp((NOW - age) / 1e6, domain, NOW)
    believed = domain == GLOBAL and -FUTURE < age < OLDEST
    if abs(age + FUTURE) > 1000 and abs(age - OLDEST) > 1000:  # ms as a float: good to some hundred ns
        assert made.ours is not believed and clock.ours == (not believed)
        assert abs(made.time - (NOW - age - 7 * MS if believed else NOW - 45 * MS)) < 1000
        assert bool(clock.why) is not believed


@unhurried
@given(st.lists(st.tuples(st.integers(-300, 300), st.booleans()), max_size=60))
def test_stamps_only_go_forward(frames: list[tuple[int, bool]]) -> None:
    clock, last = FrameClock(0, 45 * MS), 0
    for i, (jitter, fine) in enumerate(frames):
        received = NOW + i * 33 * MS
        made = clock.stamp(received / 1e6 - jitter, GLOBAL if fine else "system_time", received)
        if made is not None:
            assert made.time > last
            last = made.time
    assert clock.stamp((NOW - 3600 * SECOND) / 1e6, GLOBAL, NOW - 3600 * SECOND) is not None  # the clock was set


def test_silence_makes_stale_then_opens_anew() -> None:
    link, now = Link(Patience()), 0
    assert link.next(now) is Act.OPEN and link.phase == "closed"
    link.on_open(True, now)
    for _ in range(6):  # its first frame may take a while
        now += 800 * MS
        assert link.next(now) is Act.READ
        link.on_miss(now)
    assert link.stale
    link.on_frame(now)
    assert link.phase == "live" and not link.stale
    for miss in range(1, 7):
        now += 150 * MS
        assert link.next(now) is Act.READ
        link.on_miss(now)
        assert link.stale == (miss >= 3)
    assert link.next(now + 100 * MS) is Act.STOP
    link.on_stop(True, now)
    assert link.next(now) is Act.OPEN and link.phase == "closed"
    link.on_open(True, now)
    assert link.rebuilds == 1 and link.stale  # until a frame comes
    link.on_frame(now)
    assert link.phase == "live"


def test_the_hardware_is_reset_once_in_a_silence() -> None:
    link, now, acts = Link(Patience()), 0, []
    link.on_open(True, now)
    link.on_frame(now)
    link.on_lost(now)
    for _ in range(2000):
        now += 50 * MS
        act = link.next(now)
        acts.append(act)
        if act is Act.OPEN:
            link.on_open(False, now)
        elif act is Act.STOP:
            link.on_stop(False, now)
        elif act is Act.RESET:
            link.on_reset(now)
    assert acts.count(Act.RESET) == 1 and acts.count(Act.OPEN) > 50 and link.stuck == 1
    assert acts.index(Act.STOP) < acts.index(Act.OPEN) < acts.index(Act.RESET)


@unhurried
@given(st.lists(st.sampled_from(["time", "yes", "no", "lost"]), max_size=120))
def test_whatever_happens_it_asks_for_what_can_be_done(events: list[str]) -> None:
    """Never a read of what is closed, never two cameras open; never stale right after a frame."""
    link, now, open_ = Link(Patience()), 0, False
    for event in events:
        now += 170 * MS
        act = link.next(now)
        if act in (Act.OPEN, Act.RESET, Act.WAIT):
            assert not open_
        else:
            assert open_
        if act is Act.OPEN:
            open_ = event != "no"
            link.on_open(open_, now)
        elif act is Act.RESET:
            link.on_reset(now)
        elif act is Act.STOP:
            open_ = False
            link.on_stop(event != "no", now)
        elif act is Act.READ:
            {"yes": link.on_frame, "lost": link.on_lost}.get(event, link.on_miss)(now)
            assert not (event == "yes" and link.stale)
        assert link.open == open_


def test_a_call_that_hangs_is_given_up_and_cleaned_up_later() -> None:
    gate, cleaned = threading.Event(), []

    def slow() -> str:
        gate.wait(10.0)
        return "late"

    call = Watched(slow, late=cleaned.append)
    assert not call.wait(0.05)
    gate.set()
    deadline = time.monotonic() + 5.0
    while not cleaned and time.monotonic() < deadline:
        time.sleep(0.005)
    assert cleaned == ["late"]
    quick = Watched(lambda: 3, late=cleaned.append)
    assert quick.wait(5.0) and quick.result == 3 and cleaned == ["late"]
    failed = Watched(lambda: 1 // 0)
    assert failed.wait(5.0)
    with pytest.raises(ZeroDivisionError):
        _ = failed.result


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cameras": []}, "no camera is named"),
        ({"cameras": ["a", "a"]}, "names one twice"),
        ({"serials": ["1"]}, "give each camera its own"),
        ({"serials": ["1", "1"]}, "give each camera its own"),
        ({"exposure": [40.0]}, "does not fit 30 pictures"),
        ({"gain": [1.0, 2.0, 3.0]}, "gain holds 3 values for 2 cameras"),
        ({"device": "playback", "serials": [], "files": ["a"]}, "files holds 1 values"),
        ({"device": "playback", "serials": [], "files": ["nowhere.db3", "b"]}, "there is no nowhere.db3"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        wanted(RealsenseSettings(**({"cameras": ["a", "b"], "serials": ["1", "2"]} | changes)))


def test_one_value_holds_for_all_cameras() -> None:
    made = wanted(RealsenseSettings(cameras=["a", "b"], serials=["_1", "2"], exposure=[8.0], gain=[1.0, 2.0]))
    assert [(w.serial, w.exposure, w.gain) for w in made] == [("1", 8.0, 1.0), ("2", 8.0, 2.0)]
