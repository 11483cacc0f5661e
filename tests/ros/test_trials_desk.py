"""The operator's desk without ROS: what may be done when, what is hidden, and what survives."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from d2ppo_core.errors import UserError
from d2ppo_ros.recording.writer import SIDECAR, TrialWriter
from d2ppo_ros.trials.attach import attach
from d2ppo_ros.trials.desk import Desk, Refused
from d2ppo_ros.trials.journal import NAME, read
from d2ppo_ros.trials.session import Trial
from trials_desk import NAMES, FakeRig, leave, make, one_trial, phase, until
from trials_support import TOPICS


@pytest.fixture
def rig() -> FakeRig:
    return FakeRig()


@pytest.fixture
def desk(tmp_path: Path, rig: FakeRig) -> Any:
    made = make(tmp_path, rig)
    made.begin()
    phase(made, "SETUP")
    yield made
    made.close()


def test_the_start_state_is_there_before_the_policy_is_drawn(desk: Desk, rig: FakeRig, tmp_path: Path) -> None:
    assert [call for call, _ in rig.calls] == ["up", "reset"]
    one_trial(desk)
    kinds = [event["event"] for event in read(tmp_path / NAME)[0]]
    assert kinds == ["session", "setup", "draw", "end", "outcome"]
    assert [call for call, _ in rig.calls] == ["up", "reset", "load", "run", "reset"]
    assert rig.calls[3][1] == ("start001-draw1", 100)


def test_nothing_is_armed_or_started_by_itself_and_every_trial_ends_disarmed(desk: Desk, rig: FakeRig) -> None:
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    time.sleep(0.1)
    assert (rig.state, desk.phase) == ("READY", "READY")
    with pytest.raises(Refused, match="'start' cannot be done now"):
        desk.act("start", desk.step, {})
    desk.act("arm", desk.step, {})
    time.sleep(0.1)
    assert desk.phase == "READY"
    desk.act("start", desk.step, {})
    until(lambda: rig.calls[-1][0] == "run")
    desk.stop()
    phase(desk, "JUDGE")
    assert rig.state == "STOPPED"
    desk.act("save", desk.step, {"outcome": "failure"})
    phase(desk, "SETUP")
    assert rig.state == "STOPPED"  # a stop stays until a person re-arms
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    assert "arm" not in desk.can("STOPPED")
    desk.act("rearm", desk.step, {})
    assert rig.state == "READY"
    desk.act("arm", desk.step, {})


def test_a_second_click_does_nothing(desk: Desk) -> None:
    step = desk.step
    desk.act("setup", step, {})
    phase(desk, "READY")
    with pytest.raises(Refused, match="changed meanwhile"):
        desk.act("setup", step, {})
    for nonsense in (None, "1", step + 0.5, [], desk.step + 1):
        with pytest.raises(Refused):
            desk.act("void", nonsense, {"reason": "x"})  # type: ignore[arg-type]
    assert desk.phase == "READY"


def test_a_trial_may_be_ended_before_it_has_really_begun(desk: Desk, rig: FakeRig) -> None:
    rig.late = 0.3
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    desk.act("arm", desk.step, {})
    desk.act("start", desk.step, {})
    desk.act("end", desk.step, {})
    phase(desk, "JUDGE")
    assert desk.session.trials[-1].ended["reason"] == "cancelled"


def test_a_whole_session_says_no_name_before_its_end(tmp_path: Path, rig: FakeRig) -> None:
    desk, shown = make(tmp_path, rig, episodes=2, names=NAMES), []
    rig.broken = ""
    desk.begin()
    while desk.phase != "DONE":
        phase(desk, "SETUP")
        shown.append(json.dumps(desk.view()))
        desk.act("setup", desk.step, {})
        phase(desk, "READY")
        shown.append(json.dumps(desk.view()))
        desk.act("arm", desk.step, {})
        desk.act("start", desk.step, {})
        until(lambda: rig.calls[-1][0] == "run")
        shown.append(json.dumps(desk.view()))
        desk.act("success" if len(shown) % 2 else "failure", desk.step, {})
        phase(desk, "JUDGE")
        shown.append(json.dumps(desk.view()))
        desk.act("save", desk.step, {"outcome": "success"})
        until(lambda: desk.phase in ("SETUP", "DONE"))
    assert not [name for name in NAMES for text in shown if name in text]
    view = desk.view()
    assert view["done"] == view["total"] == 6
    assert all(name in view["results"]["text"] for name in NAMES)
    assert {trial["policy"] for trial in view["trials"]} == set(NAMES)
    assert (tmp_path / "results.png").exists()
    loaded = [name for call, name in rig.calls if call == "load"]
    assert sorted(loaded) == sorted(NAMES * 2)
    leave(desk)


def test_what_loading_complains_of_names_nobody_and_the_draw_goes_back(tmp_path: Path, rig: FakeRig) -> None:
    desk = make(tmp_path, rig)
    desk.begin()
    phase(desk, "SETUP")
    rig.broken = "the policy ended: {path} of {name} ({digest}) is damaged"
    desk.act("setup", desk.step, {})
    phase(desk, "SETUP") if desk.phase == "SETUP" else until(lambda: desk.phase == "SETUP")
    text = json.dumps(desk.view())
    assert "is damaged" in text
    assert not [word for policy in desk.session.plan.policies for word in policy.values() if word in text]
    assert desk.session.trials[0].outcome == "void"
    leave(desk)
    assert "damaged" in (tmp_path / NAME).read_text()


def test_an_interrupted_session_goes_on(tmp_path: Path, rig: FakeRig) -> None:
    desk = make(tmp_path, rig)
    desk.begin()
    one_trial(desk, "success")
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    leave(desk)  # drawn, never begun
    desk = make(tmp_path, FakeRig())
    desk.begin()
    phase(desk, "SETUP")
    assert [t.outcome for t in desk.session.trials] == ["success", "void"]
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    desk.act("arm", desk.step, {})
    desk.act("start", desk.step, {})
    until(lambda: desk.rig.calls[-1][0] == "run")
    desk.act("success", desk.step, {})
    phase(desk, "JUDGE")
    leave(desk)  # ended, not judged
    desk = make(tmp_path, FakeRig())
    desk.begin()
    phase(desk, "JUDGE")
    desk.act("save", desk.step, {"outcome": "failure", "notes": "too slow"})
    phase(desk, "SETUP")
    while desk.phase != "DONE":
        one_trial(desk)
    assert desk.session.done == 4
    leave(desk)


def test_the_outcome_that_was_pressed_is_proposed_and_the_last_one_can_be_corrected(desk: Desk, rig: FakeRig) -> None:
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    desk.act("arm", desk.step, {})
    desk.act("start", desk.step, {})
    until(lambda: rig.calls[-1][0] == "run")
    desk.act("failure", desk.step, {})
    phase(desk, "JUDGE")
    assert desk.view()["draft"]["outcome"] == "failure"
    desk.act("save", desk.step, {"outcome": "failure", "notes": "dropped it"})
    phase(desk, "SETUP")
    desk.act("correct", desk.step, {})
    phase(desk, "JUDGE")
    assert desk.view()["draft"] == {"outcome": "", "notes": "dropped it"}
    with pytest.raises(Refused, match="needs a reason"):
        desk.act("save", desk.step, {"outcome": "void"})
    desk.act("save", desk.step, {"outcome": "void", "reason": "the lamp went out"})
    phase(desk, "SETUP")
    assert desk.session.done == 0


def test_a_robots_trial_is_judged_by_the_person_alone(tmp_path: Path) -> None:
    rig = FakeRig(simulated=False)
    rig.lasts = 0.05
    desk = make(tmp_path, rig)
    desk.begin()
    phase(desk, "SETUP")
    assert [call for call, _ in rig.calls] == ["up"]  # nobody resets a robot
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    desk.act("arm", desk.step, {})
    desk.act("start", desk.step, {})
    phase(desk, "JUDGE")
    assert desk.view()["draft"]["outcome"] == ""
    leave(desk)


def test_the_stop_waits_for_nobody(desk: Desk, rig: FakeRig) -> None:
    rig.slow = 2.0
    desk.act("setup", desk.step, {})
    with desk._lock:  # somebody is busy
        begin = time.monotonic()
        threading.Thread(target=desk.stop).start()
        until(lambda: rig.state == "STOPPED", 1.0)
        assert time.monotonic() - begin < 0.05


def test_leaving_while_the_arm_moves_stops_it_and_keeps_the_end(tmp_path: Path, rig: FakeRig) -> None:
    desk = make(tmp_path, rig)
    desk.begin()
    phase(desk, "SETUP")
    desk.act("setup", desk.step, {})
    phase(desk, "READY")
    desk.act("arm", desk.step, {})
    desk.act("start", desk.step, {})
    until(lambda: rig.calls[-1][0] == "run")
    leave(desk)
    assert rig.state == "STOPPED"
    assert [event["event"] for event in read(tmp_path / NAME)[0]][-1] == "end"
    desk = make(tmp_path, FakeRig())
    desk.begin()
    phase(desk, "JUDGE")
    leave(desk)


def test_leaving_while_a_policy_loads_writes_nothing_afterwards(tmp_path: Path, rig: FakeRig) -> None:
    rig.slow = 0.5
    desk = make(tmp_path, rig)
    desk.begin()
    phase(desk, "SETUP")
    desk.act("setup", desk.step, {})
    leave(desk)
    written = (tmp_path / NAME).read_bytes()
    time.sleep(0.7)
    assert (tmp_path / NAME).read_bytes() == written


def test_the_outcome_is_in_the_record(tmp_path: Path) -> None:
    TrialWriter(tmp_path / "t", TOPICS, {"trial": "t"}).close({"ended": "stopped"})
    trial = Trial("t", 0, 0, 0, {"record": str(tmp_path / "t")}, "void", "lamp", "dark")
    attach(trial, tmp_path / NAME)
    told = json.loads((tmp_path / "t" / SIDECAR).read_text())["outcome"]
    assert told == {
        "ended": "stopped", "success": False, "judged": "void", "void": "lamp", "notes": "dark",
        "session": str(tmp_path / NAME),
    }  # fmt: skip
    (tmp_path / "t" / SIDECAR).write_text("[]")
    with pytest.raises(UserError, match="cannot be read"):
        attach(trial, tmp_path / NAME)
    attach(Trial("t", 0, 0, 0, None, "void", "x"), tmp_path / NAME)  # nothing was recorded


def test_an_outcome_that_a_kill_kept_from_the_record_comes_later(tmp_path: Path, rig: FakeRig) -> None:
    desk = make(tmp_path, rig)
    desk.begin()
    one_trial(desk, "failure", notes="early")
    leave(desk)
    TrialWriter(tmp_path / "records" / "start001-draw1", TOPICS, {"trial": "t"}).close({"ended": "stopped"})
    desk = make(tmp_path, FakeRig())
    desk.begin()
    phase(desk, "SETUP")
    told = json.loads((tmp_path / "records" / "start001-draw1" / SIDECAR).read_text())["outcome"]
    assert (told["judged"], told["notes"]) == ("failure", "early")
    leave(desk)


def test_the_first_set_up_of_a_start_state_is_kept_for_the_next(desk: Desk, rig: FakeRig, tmp_path: Path) -> None:
    assert desk.view()["before"] == []
    rig.cameras = ["wrist", "../odd"]
    one_trial(desk)
    assert desk.view()["before"] == ["wrist"]
    kept = (tmp_path / "starts" / "start001-wrist.jpg").read_bytes()
    assert desk.before("wrist") == kept
    assert desk.before("../odd") is None
    assert desk.before("../starts/start001-wrist") is None
    one_trial(desk)
    assert (tmp_path / "starts" / "start001-wrist.jpg").read_bytes() == kept
    assert desk.view()["before"] == []  # the next start state has none yet


def test_who_corrects_after_the_end_is_not_blind_and_the_results_say_so(tmp_path: Path, rig: FakeRig) -> None:
    desk = make(tmp_path, rig, episodes=1)
    desk.begin()
    one_trial(desk)
    one_trial(desk)
    phase(desk, "DONE")
    assert "nobody was told which policy ran before all was done" in desk.view()["results"]["text"]
    desk.act("correct", desk.step, {})
    phase(desk, "JUDGE")
    assert not desk.view()["hidden"]  # it has been told already
    desk.act("save", desk.step, {"outcome": "failure"})
    phase(desk, "DONE")
    assert "then revealed; 1 outcomes came after that" in (tmp_path / "results.txt").read_text()
    leave(desk)
