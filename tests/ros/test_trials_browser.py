"""The operator's page as a person sees it, in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser
from d2ppo_ros.trials.server import Page
from trials_desk import NAMES, FakeRig, make, phase, until

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here; apt-get install chromium, and the page is tried in it"
)


class Seen:
    """A page in a browser, its desk and robot."""

    def __init__(self, folder: Path, simulated: bool = True) -> None:
        self.rig, self.page = FakeRig(simulated), Page()
        self.rig.cameras = ["agentview", "wrist"]
        self.desk = make(folder, self.rig, names=NAMES)
        self.page.desk = self.desk
        self.browser = Browser(folder / "browser", self.page.url)
        self.desk.begin()
        phase(self.desk, "SETUP")
        self.browser.until("document.querySelector('[data-name=setup]')")

    def button(self, name: str) -> None:
        """Click it as soon as it is there."""
        self.browser.until(f"document.querySelector('[data-name={name}]:not(:disabled)')")
        self.browser.click(f"[data-name={name}]")

    def close(self) -> None:
        self.browser.close()
        self.page.close()
        self.desk.close()


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    made = Seen(tmp_path)
    yield made
    made.close()
    shutil.rmtree(tmp_path / "browser", ignore_errors=True)


def test_a_trial_by_mouse_and_one_by_keys(seen: Seen) -> None:
    browser, desk, rig = seen.browser, seen.desk, seen.rig
    seen.button("setup")
    seen.button("arm")
    browser.until("document.getElementById('safety').textContent === 'ARMED'")
    seen.button("start")
    seen.button("success")
    phase(desk, "JUDGE")
    browser.until("document.querySelector('[data-name=success].chosen')")
    browser.click("#notes")
    browser.type("a c g s ä <b>")
    browser.run("new Promise((done) => setTimeout(done, 700))")  # looks in between must not wipe it
    seen.button("save")
    phase(desk, "SETUP")
    assert desk.session.trials[0].notes == "a c g s ä <b>"
    browser.until("document.getElementById('notes').value === ''")
    for key, then in (("c", "READY"), ("a", "READY"), ("g", "RUNNING"), ("f", "JUDGE")):
        wanted = {"a": "arm", "c": "setup", "g": "start", "f": "failure"}[key]
        browser.until(f"document.querySelector('[data-name={wanted}]')")
        browser.key(key)
        phase(desk, then)
    browser.until("document.querySelector('[data-name=failure].chosen')")
    browser.key("Enter")
    phase(desk, "SETUP")
    assert [t.outcome for t in desk.session.trials] == ["success", "failure"]
    text = browser.run("document.documentElement.outerHTML")
    assert not [name for name in NAMES if name in text]
    ghosts = "[...document.querySelectorAll('.ghost')].filter((ghost) => !ghost.hidden && ghost.naturalWidth === 160)"
    browser.until(f"{ghosts}.length === 2")  # as it was first set up, over the live pictures
    browser.key("o")
    browser.until(f"{ghosts}.length === 0")
    assert not browser.complaints
    assert rig.state == "READY"


@pytest.mark.parametrize("size", [(1280, 900), (360, 640), (800, 360)])
def test_the_stop_is_always_in_reach_and_works(seen: Seen, size: tuple[int, int]) -> None:
    browser, rig = seen.browser, seen.rig
    browser.resize(*size)
    for place in ("0", "document.body.scrollHeight"):
        browser.run(f"window.scrollTo(0, {place})")
        browser.click("#stop", scroll=False)
        until(lambda: rig.state == "STOPPED")
        browser.until("document.getElementById('safety').textContent === 'STOPPED'")
        browser.until("document.querySelector('[data-name=rearm]')")
        rig.rearm()
        browser.until("document.getElementById('safety').textContent === 'ready, not armed'")
    wide = browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0, "the page is wider than the window"


@pytest.mark.parametrize("key", ["Escape", " "])
def test_keys_stop_wherever_the_focus_is(seen: Seen, key: str) -> None:
    browser, rig = seen.browser, seen.rig
    for element in ("[data-name=setup]", "#stop", "body"):
        browser.run(f"document.querySelector({element!r}).focus()")
        browser.key(key)
        until(lambda: rig.state == "STOPPED")
        rig.rearm()
    assert seen.desk.phase == "SETUP"  # space on a button that has the focus stops, and does not press it
    seen.button("setup")
    seen.button("void")
    browser.until("document.activeElement.id === 'reason'")
    browser.type("no")
    browser.key(key)
    if key == " ":
        assert browser.run("document.getElementById('reason').value") == "no "
        assert rig.state == "READY"
    else:
        until(lambda: rig.state == "STOPPED")
        rig.rearm()
    seen.button("save")
    phase(seen.desk, "SETUP")
    assert (seen.desk.session.trials[0].outcome, seen.desk.session.trials[0].reason) == ("void", "no")


def test_pictures_live_and_what_happens_when_the_program_goes(seen: Seen) -> None:
    browser = seen.browser
    live = "[...document.querySelectorAll('#cameras img:not(.ghost)')].filter((image) => image.naturalWidth === 160)"
    browser.until(f"{live}.length === 2")
    first = browser.run("document.querySelector('#cameras img').src")
    browser.until(f"document.querySelector('#cameras img').src !== {json.dumps(first)}")
    seen.rig.cameras = ["wrist"]
    browser.until("document.querySelectorAll('#cameras figure').length === 1")
    seen.page.close()
    browser.until("!document.getElementById('lost').hidden")


def test_after_the_last_trial_the_results_and_names_are_there(seen: Seen) -> None:
    desk, browser = seen.desk, seen.browser
    while desk.phase != "DONE":
        seen.button("setup")
        seen.button("arm")
        seen.button("start")
        seen.button("success")
        phase(desk, "JUDGE")
        seen.button("save")
        until(lambda: desk.phase in ("SETUP", "DONE"))
    text = browser.until("document.getElementById('table').rows.length && document.getElementById('results').innerText")
    assert all(name in text for name in NAMES)
    assert "paired by 2 start states" in text
    assert not browser.complaints
