"""The desk of a session at the terminal, and what can be chosen for one."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from d2ppo_core.errors import UserError
from d2ppo_ros.trials import options
from d2ppo_ros.trials.desk import Desk
from d2ppo_ros.trials.terminal import Terminal
from trials_desk import FakeRig, leave, make, phase, until


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


def test_lines_run_a_session(desk: Desk, rig: FakeRig) -> None:
    reading, writing = os.pipe()
    out = io.StringIO()
    with open(reading, encoding="utf-8") as source, open(writing, "w", encoding="utf-8") as words:
        thread = threading.Thread(target=Terminal(desk, source, out).run, args=(threading.Event(),))
        thread.start()

        def say(text: str, then: str) -> None:
            words.write(text + "\n")
            words.flush()
            phase(desk, then)

        say("setup", "READY")
        say("arm", "READY")
        until(lambda: rig.state == "ARMED")
        say("start", "RUNNING")
        until(lambda: rig.calls[-1][0] == "run")
        say("stop", "JUDGE")
        say("save void", "JUDGE")
        say("save void the cube fell", "SETUP")
        say("fly", "SETUP")
        say("quit", "SETUP")
        thread.join(5.0)
    assert not thread.is_alive()
    assert "a void trial needs a reason" in out.getvalue()
    assert "'fly' cannot be done now" in out.getvalue()
    assert "safety STOPPED: emergency stop" in out.getvalue()
    assert desk.session.trials[0].reason == "the cube fell"


def test_the_end_of_the_input_is_said(desk: Desk) -> None:
    out = io.StringIO()
    with open(os.devnull, encoding="utf-8") as source:
        Terminal(desk, source, out).run(threading.Event())
    assert out.getvalue().endswith("there is no more input\n")
    leave(desk)


def test_keys_of_a_real_terminal(desk: Desk, rig: FakeRig) -> None:
    ours, theirs = pty.openpty()
    out = io.StringIO()
    with open(theirs, encoding="utf-8", closefd=False) as source:
        thread = threading.Thread(target=Terminal(desk, source, out).run, args=(threading.Event(),))
        thread.start()
        until(lambda: "SETUP" in out.getvalue())
        os.write(ours, b"c")
        phase(desk, "READY")
        os.write(ours, b"a")
        until(lambda: rig.state == "ARMED")
        os.write(ours, b"g")
        until(lambda: rig.calls[-1][0] == "run")
        begin = time.monotonic()
        os.write(ours, b" ")
        until(lambda: rig.state == "STOPPED")
        assert rig.stopped_at - begin < 0.05
        phase(desk, "JUDGE")
        os.write(ours, b"f")
        until(lambda: "notes" in out.getvalue())
        os.write(ours, "slöw".encode() + b"x\x7f\n")
        phase(desk, "SETUP")
        os.write(ours, b"q")
        thread.join(5.0)
    while select.select([ours], [], [], 0)[0]:
        os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)
    assert not thread.is_alive()
    assert (desk.session.trials[0].outcome, desk.session.trials[0].notes) == ("failure", "slöw")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["episodes=0"], "episodes is 0"),
        (["episodes=many"], "'many', which is no int"),
        (["blind=perhaps"], "'perhaps', which is no bool"),
        (["colour=red"], "is no option of `d2ppo trials run system=sim`"),
        (["polices=a"], "did you mean policies"),
        (["faster"], "options are key=value"),
        (["checkpoint=x"], "decides that itself"),
        (["lockstep=true"], "decides that itself"),
        (["system=moon"], "choose one of"),
        (["max_duration=-1"], "max_duration"),
    ],
)
def test_wrong_options_are_explained(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        options.choose(["policies=a,b", *words])


def test_a_session_goes_on_with_what_it_began_with() -> None:
    began = options.choose(["policies=a,b", "episodes=4", "executor=async", "domain=7", "run_dir=r"])
    saved = json.loads(json.dumps(began.saved()))
    again = options.resumed(["run_dir=r", "resume=true", "--terminal", "domain=8"], saved)
    assert (again.run.episodes, again.run.policies, again.run.page, again.run.resume) == (4, "a,b", False, True)
    assert again.system == ("executor=async", "domain=8")
    for word in ("episodes=5", "executor=rtc", "policies=c", "seed=3"):
        with pytest.raises(UserError, match="is not what the session in r began with"):
            options.resumed(["run_dir=r", "resume=true", word], saved)
    assert "--terminal" in options.usage()
    assert "lockstep" not in options.usage()
