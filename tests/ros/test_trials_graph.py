"""A whole blind session with the simulator's real nodes, run through the operator's page and killed in the middle."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("rclpy")

from d2ppo_ros.trials.journal import NAME, read
from ros_rig import DRIFT, drifting_policy, free_domain
from support import command
from trials_desk import until

pytestmark = [pytest.mark.ros, pytest.mark.sim, pytest.mark.graph]
NAMES = ("heron", "walrus")
LONG = 120.0  # s: until the nodes are up on a machine that does other things


class Operator:
    """`d2ppo trials run` in its process, and a person with its page."""

    def __init__(self, folder: Path, domain: int, *words: str) -> None:
        self.folder, self.said, self.told = folder, [], []
        self.process = subprocess.Popen(
            command("trials", "run", f"run_dir={folder}", *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "ROS_DOMAIN_ID": str(domain)},
        )  # fmt: skip
        self._address = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self._address.wait(LONG), self.said
        self._gone, self.away, self.state = threading.Event(), False, {"phase": ""}
        threading.Thread(target=self._look, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:  # type: ignore[union-attr]
            self.said.append(line)
            if found := re.search(r"http://\S+", line):
                self.url = urlsplit(found[0])
                self._address.set()

    def _look(self) -> None:
        """The page asks five times a second; where it does not, the arm is stopped."""
        while not self._gone.wait(0.2):
            if self.away:
                continue
            try:
                status, text = self.ask("state")
            except OSError:
                return
            if status == 200:
                self.told.append(text.decode())
                self.state = json.loads(text)

    def ask(self, path: str, body: Any = None) -> tuple[int, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.url.port, timeout=20.0)
        kind = {"Content-Type": "application/json"} if body is not None else {}
        link.request("POST" if body is not None else "GET", self.url.path + path,
                     json.dumps(body) if body is not None else None, kind)  # fmt: skip
        answer = link.getresponse()
        try:
            return answer.status, answer.read()
        finally:
            link.close()

    def phase(self, *wanted: str) -> str:
        until(lambda: self.state["phase"] in (*wanted, "FAILED"), LONG)
        assert self.state["phase"] in wanted, self.state["problem"]
        return self.state["phase"]

    def press(self, action: str, **about: str) -> None:
        """As soon as it can be pressed. A busy machine may stop the arm meanwhile; then a person re-arms."""

        def pressed() -> bool:
            if action not in self.state["can"] and "rearm" in self.state["can"] and action in ("arm", "start"):
                self.ask("act", {"action": "rearm", "step": self.state["step"]})
                time.sleep(0.3)
            if action == "start" and "arm" in self.state["can"]:
                self.ask("act", {"action": "arm", "step": self.state["step"]})
            status = 409
            if action in self.state["can"]:
                status = self.ask("act", {"action": action, "step": self.state["step"], **about})[0]
            time.sleep(0.1)
            return status == 200

        until(pressed, LONG)

    def begin(self) -> None:
        """From SETUP until the arm moves."""
        self.phase("SETUP")
        self.press("setup")
        self.phase("READY")
        self.press("arm")
        self.press("start")
        self.phase("RUNNING", "JUDGE")

    def leave(self) -> None:
        self._gone.set()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def policies(tmp_path: Path) -> Iterator[list[Path]]:
    yield [drifting_policy(tmp_path / f"{name}.safetensors", "lift_image", drift)
           for name, drift in zip(NAMES, (DRIFT, DRIFT * np.array([1, -1, 1, 1, 1, 1, 1])), strict=True)]  # fmt: skip


def nodes_of(folder: Path) -> list[str]:
    """Command lines of the node processes that write there, whoever started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
            lock = any(os.readlink(file) == str(folder / NAME) for file in (path.parent / "fd").iterdir())
        except OSError:
            continue
        if lock and "trials" not in words:
            found.append(" ".join(words))
    return found


@pytest.mark.slow
def test_a_blind_session_survives_a_kill_and_says_no_name(
    tmp_path: Path, policies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, given = tmp_path / "session", f"policies={','.join(map(str, policies))}"
    with free_domain() as domain:
        operator = Operator(folder, domain, given, "episodes=2", "max_duration=6", "rate=50", "lease=1.0")
        told = operator.told
        try:
            operator.begin()
            operator.press("failure") if operator.state["phase"] == "RUNNING" else None
            operator.phase("JUDGE")
            operator.press("save", outcome="failure", notes="drifted away")
            operator.begin()
            lines = nodes_of(folder)
            assert any("d2ppo_ros.nodes.policy" in line for line in lines)
            assert not [name for name in NAMES for line in lines if name in line]  # nor does `ps` say it
            operator.process.send_signal(signal.SIGKILL)
            operator.process.wait()
            until(lambda: not nodes_of(folder), 20.0)  # none of the nodes is left behind
        finally:
            operator.leave()
        before = read(folder / NAME)[0]
        operator = Operator(folder, domain, "resume=true")
        told += operator.told
        try:
            finish(operator)
        finally:
            operator.leave()
    check(folder, before, told + operator.told)


def finish(operator: Operator) -> None:
    """The rest of the session, with a stop in its first trial."""
    waits = operator.phase("SETUP", "JUDGE") == "JUDGE"
    if waits:
        operator.press("save", outcome="void", reason="killed")
    operator.begin()
    began = time.monotonic()
    assert operator.ask("stop", {})[0] == 200
    until(lambda: json.loads(operator.ask("state")[1])["safety"]["state"] == "STOPPED")
    print(f"stopped and seen to be so {1e3 * (time.monotonic() - began):.0f} ms after the click")
    operator.phase("JUDGE")
    operator.press("save", outcome="success", notes="judged by eye")
    operator.begin()
    operator.away = True  # the page is closed while the arm moves
    until(lambda: any(event.get("notes") == "judged by eye" for event in read(operator.folder / NAME)[0][:-2]) and
          read(operator.folder / NAME)[0][-1]["event"] == "end", LONG)  # fmt: skip
    safety = read(operator.folder / NAME)[0][-1]["safety"]
    print("closed page:", [(event["after"], event["state"], event["check"]) for event in safety])
    assert safety[-1]["state"] == "STOPPED" or any(event["state"] == "STOPPED" for event in safety)
    operator.away = False
    operator.phase("JUDGE")
    operator.press("save", outcome="failure", notes="the page was closed")
    until(lambda: operator.state["phase"] != "JUDGE", LONG)
    until(lambda: operator.state["phase"] in ("SETUP", "DONE", "FAILED"), LONG)
    while operator.phase("SETUP", "DONE") == "SETUP":
        operator.begin()
        operator.phase("JUDGE")
        operator.press("save", outcome="failure")
        until(lambda: operator.state["phase"] != "JUDGE", LONG)
        until(lambda: operator.state["phase"] in ("SETUP", "DONE", "FAILED"), LONG)
    operator.press("quit")
    assert operator.process.wait(60.0) == 0, operator.said


def check(folder: Path, before: list[dict], told: list[str]) -> None:
    """What the file, the records, the results and everything that was shown say."""
    events = read(folder / NAME)[0]
    assert events[: len(before)] == before
    void = [event for event in events if event.get("outcome") == "void"]
    assert len(void) == 1
    results = json.loads((folder / "results.json").read_text())
    assert results["complete"]
    assert [policy["trials"] for policy in results["policies"]] == [2, 2]
    assert sum(policy["successes"] for policy in results["policies"]) == 1
    assert results["differences"][0]["starts"] == 2
    for text in told:
        if json.loads(text)["hidden"]:
            assert not [name for name in NAMES if name in text]
    ran = {trial["trial"]: trial for trial in results["trials"] if trial["outcome"] != "void"}
    for name, trial in ran.items():
        record = json.loads((folder / "records" / name / "trial.json").read_text())
        assert record["state"] == "complete"
        assert record["outcome"]["judged"] == trial["outcome"]
        node = record["metadata"]["policy_node"]["checkpoint"]
        assert trial["policy"] in node  # the very policy that was drawn had been loaded
        assert [event["state"] for event in trial["ended"]["safety"]]
    stopped = [trial for trial in ran.values() if trial["notes"] == "judged by eye"]
    assert any(event["state"] == "STOPPED" for event in stopped[0]["ended"]["safety"])
    assert (folder / "results.png").exists()
