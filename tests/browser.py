"""Debian's headless chromium, driven through its own pipe: no driver and no package is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60.0  # s; on a busy machine it takes its time
KEYS = {"Escape": 27, "Enter": 13, " ": 32}


class Browser:
    """One page of one browser. What it complains of (errors, refused by the page's own policy) is in `complaints`."""

    def __init__(self, folder: Path, url: str, width: int = 1280, height: int = 900) -> None:
        reading, to_browser = os.pipe()
        self._from_browser, writing = os.pipe()
        self._to_browser = to_browser
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{reading} 4>&{writing}', "bash", str(CHROMIUM), *options],
            pass_fds=(reading, writing), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(reading)
        os.close(writing)
        self._number, self._rest, self._session = 0, b"", None
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.resize(width, height)
        self.ask("Page.navigate", url=url)
        self.until("location.href !== 'about:blank' && document.readyState === 'complete'", PATIENCE)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            for answer in self._messages(deadline):
                if answer.get("id") == self._number:
                    assert "error" not in answer, (method, answer)
                    return answer["result"]

    def _messages(self, deadline: float) -> list[dict[str, Any]]:
        ready = select.select([self._from_browser], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, "the browser does not answer"
        content = os.read(self._from_browser, 1 << 20)
        assert content, "the browser has ended"
        *whole, self._rest = (self._rest + content).split(b"\0")
        messages = [json.loads(each) for each in whole]
        for each in messages:
            if each.get("method") == "Log.entryAdded" and each["params"]["entry"]["level"] == "error":
                self.complaints.append(each["params"]["entry"]["text"])
            elif each.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(each["params"]["exceptionDetails"]))
            elif each.get("method") == "Page.javascriptDialogOpening":
                self._answer_dialog()
        return messages

    def _answer_dialog(self) -> None:
        """Every question of the page is answered with yes."""
        self._number += 1
        message = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True},
                   "sessionId": self._session}  # fmt: skip
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 20.0) -> Any:
        """Wait for an expression to become true."""
        deadline = time.monotonic() + seconds
        plain = f"((value) => value instanceof Node ? true : value)({script})"
        while not (value := self.run(plain)):
            assert time.monotonic() < deadline, f"never: {script}; {self.run('document.body.innerText')[:2000]}"
            time.sleep(0.02)
        return value

    def place(self, element: str) -> tuple[float, float]:
        """The middle of the element that is really hit there: nothing covers it."""
        x, y = self.run(f"(() => {{ const r = document.querySelector({element!r}).getBoundingClientRect(); "
                        "return [r.x + r.width / 2, r.y + r.height / 2]; })()")  # fmt: skip
        hit = f"document.elementFromPoint({x}, {y})?.closest({element!r}) !== null"
        assert self.run(hit), f"{element} is covered or outside of the window"
        return x, y

    def click(self, element: str, scroll: bool = True) -> None:
        """A click of the mouse."""
        if scroll:
            self.run(f"document.querySelector({element!r}).scrollIntoView({{block: 'center'}})")
        x, y = self.place(element)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, key: str) -> None:
        """A key pressed and let go."""
        about = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper())), "code": key}
        text = {"text": "\r" if key == "Enter" else key} if key != "Escape" else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.ask("Input.insertText", text=text)

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """The window's size."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def dark(self, dark: bool) -> None:
        """The reader's choice of colours."""
        value = "dark" if dark else "light"
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def screenshot(self, path: Path, kind: str = "png") -> Path:
        """What is seen in the window."""
        picture = self.ask("Page.captureScreenshot", format=kind)["data"]
        path.write_bytes(base64.b64decode(picture))
        return path

    def close(self) -> None:
        """End it with all its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to_browser)
        os.close(self._from_browser)
