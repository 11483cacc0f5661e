"""The operator's desk in a terminal: one key for each thing that may be done, space and Esc stop at once.

Where standard input is no terminal each line is a command: `setup`, `arm`, `start`, `stop`, `save success well done`,
`save void the cube fell` and so on, which is how a program would run a session.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from .desk import DONE, JUDGE, READY, RUNNING, SETUP, Desk, Refused
from .session import OUTCOMES, VOID

LOOK = 0.1  # s between two looks at how it stands
STEADY = 0.5  # s that a change between READY and DISARMED must last to be worth a line
STOPS = (" ", "\x1b")
KEYS = {
    "c": "setup", "a": "arm", "d": "disarm", "r": "rearm", "g": "start", "s": "success", "f": "failure", "e": "end",
    "v": "void", "R": "reveal", "C": "correct", "q": "quit",
}  # fmt: skip
HELP = (
    "keys: space or Esc STOP; c start state is set up, a arm, g start, e end, s success, f failure, v void, r re-arm, "
    "d disarm, C correct the last outcome, R reveal, q quit"
)
ASK = {
    SETUP: "set the start state up, then c", READY: "arm with a, start with g", RUNNING: "s or f when you have seen it",
    JUDGE: "s success, f failure, v void", DONE: "all trials are done; q ends",
}  # fmt: skip


class Terminal:
    """Shows what changes, and hands on what is typed, until the desk is finished or the input ends."""

    def __init__(self, desk: Desk, source: TextIO | None = None, out: TextIO | None = None) -> None:
        self._desk, self._in, self._out = desk, source or sys.stdin, out or sys.stdout
        self._shown: tuple[Any, ...] = ()
        self._seen, self._since = self._shown, 0.0  # what may be shown, and since when it is so
        self._rest = b""  # of a line that has not come whole

    def run(self, interrupted: threading.Event) -> None:
        """Until the person quits."""
        keys = self._in.isatty()
        if keys:
            self._print(HELP)
        with _single_keys(self._in) if keys else _nothing():
            while not (interrupted.is_set() or self._desk.finished.is_set()):
                self._show()
                if not select.select([self._in], [], [], LOOK)[0]:
                    continue
                if keys:
                    self._key(os.read(self._in.fileno(), 1).decode("utf-8", "replace"))
                elif not self._lines():
                    self._print("there is no more input")
                    return

    def _show(self) -> None:
        """A line where something has changed."""
        view = self._desk.view()
        safety = view["safety"]
        now = (view["step"], view["phase"], view["problem"], safety["state"], safety["check"])
        if now != self._seen:
            self._seen, self._since = now, time.monotonic()
        resting = now[:3] == self._shown[:3] and safety["state"] in ("DISARMED", "READY")
        if now == self._shown or (resting and time.monotonic() - self._since < STEADY):
            return
        self._shown = now
        start = f"start {view['start'] + 1}/{view['starts']}  " if view["start"] is not None else ""
        why = f": {safety['reason']}" if safety["reason"] else ""
        policy = f"  [{view['policy']}]" if view["policy"] else ""
        how = f"{view['phase']}{policy}  safety {safety['state']}{why}"
        self._print(f"{view['done']}/{view['total']} done  {start}{how}  {ASK.get(view['phase'], '')}".rstrip())
        if view["problem"]:
            self._print(f"! {view['problem']}")
        if view["phase"] == JUDGE:
            trial, draft = view["trials"][-1], view["draft"].get("outcome")
            suggested = f" (suggested: {draft})" if draft else ""
            self._print(f"  {trial['trial']} ended: {trial['ended'] or '-'}{suggested}")
        if view["phase"] == DONE:
            self._print(view["results"]["text"])

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _key(self, key: str) -> None:
        if key in STOPS:
            return self._desk.stop()
        action = KEYS.get(key)
        if action is None:
            return None
        if self._desk.phase == JUDGE and action in OUTCOMES:
            return self._judge(action)
        if action == "void" and self._desk.phase == READY:
            return self._act("void", reason=self._asked("why is it void? "))
        if action == "reveal" and self._asked("say which policy is which? the rest is not blind then (yes): ") != "yes":
            return None
        return self._act(action)

    def _judge(self, outcome: str) -> None:
        reason = self._asked("why is it void? ") if outcome == VOID else ""
        self._act("save", outcome=outcome, reason=reason, notes=self._asked(f"{outcome}; notes (Enter: none): "))

    def _asked(self, question: str) -> str:
        """A line of text; Esc in it stops the robot, too."""
        print(question, end="", file=self._out, flush=True)
        typed = bytearray()
        while (key := os.read(self._in.fileno(), 1)) not in (b"\n", b"\r", b""):
            if key == b"\x1b":
                self._desk.stop()
            elif key in (b"\x7f", b"\b"):
                typed = bytearray(typed.decode("utf-8", "ignore")[:-1].encode())
            else:
                typed += key
            print("\r\x1b[K" + question + typed.decode("utf-8", "ignore"), end="", file=self._out, flush=True)
        self._print("")
        return typed.decode("utf-8", "replace").strip()

    # --- lines --------------------------------------------------------------------------------------------------------

    def _lines(self) -> bool:
        """Every command that has come; False: there are no more."""
        typed = os.read(self._in.fileno(), 65536)
        *whole, self._rest = (self._rest + typed).split(b"\n")
        for line in whole:
            self._line(line.decode("utf-8", "replace"))
        return bool(typed)

    def _line(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        if word == "stop":
            self._desk.stop()
        elif word == "save":
            outcome, _, text = rest.partition(" ")
            about = {"reason": text} if outcome == VOID else {"notes": text}
            self._act(word, outcome=outcome, **about)
        elif word:
            self._act(word, reason=rest)

    def _act(self, action: str, **data: str) -> None:
        try:
            self._desk.act(action, self._desk.step, data)
        except Refused as refusal:
            self._print(f"! {refusal}")


@contextmanager
def _single_keys(source: TextIO) -> Iterator[None]:
    """Each key as it is pressed, and the terminal as it was afterwards."""
    before = termios.tcgetattr(source)
    try:
        tty.setcbreak(source)
        yield
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
