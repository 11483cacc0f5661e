"""The hand: the latest command wins, one is in flight, commands keep their distance, and nobody waits without bound.

Franka's hand takes half a second for a command and may hang for minutes when another one overlaps or something is in
the way. So one thread alone speaks to it, and the servo loop only says what it wants.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .workers import Call

OPEN, CLOSED = -1, 1
POLL = 0.02  # s
ANY_WIDTH = 1.0  # m: a grasp succeeds whatever it has grasped
HOPELESS = 3.0  # s: a hand that has not connected by then is said to be missing


@dataclass(frozen=True)
class HandState:
    """What the hand says of itself."""

    width: float  # m between the fingers
    received: int  # ns of the steady clock


class LatestWins:
    """Which command goes out, and when. Pure; seconds of any clock.

    Args:
        dwell: s between two commands, counted from when each was sent.
    """

    def __init__(self, dwell: float, deadband: float) -> None:
        self._dwell, self._deadband = dwell, deadband
        self.wanted: int | None = None
        self.told: int | None = None  # the last that went out, and is not known to have failed
        self.sent = 0  # commands so far
        self._last = float("-inf")
        self.busy = False

    def want(self, value: float) -> None:
        """What the policy asks: -1 open ... +1 closed; near 0 it asks nothing."""
        if abs(value) > self._deadband:
            self.wanted = CLOSED if value > 0 else OPEN

    def next(self, now: float) -> int | None:
        """What is to be sent now; None: nothing, or not yet. Then the hand is busy until `ended`."""
        if self.busy or self.wanted is None or self.wanted == self.told or now - self._last < self._dwell:
            return None
        self.told, self._last, self.busy = self.wanted, now, True
        self.sent += 1
        return self.told

    def ended(self, well: bool) -> None:
        """The command has come to its end; one that has not gone well may be sent again."""
        self.busy = False
        if not well:
            self.told = None


class GripperWorker:
    """One hand.

    Args:
        make: connects to it; may hang.
    """

    def __init__(self, make: Callable[[], Any], settings: Any, name: str) -> None:
        self._make, self._settings, self.name = make, settings, name
        self._choice = LatestWins(settings.grip_dwell, settings.grip_deadband)
        self._lock, self._ending = threading.Lock(), threading.Event()
        self.state: HandState | None = None
        self.problem = f"{name}: not connected yet"  # empty: none
        self.given_up = 0  # commands that did not end in time
        self._waiting: list[Any] = []  # futures of commands that were given up, and have not ended yet
        self._thread = threading.Thread(target=self._serve, daemon=True, name=name)

    def start(self) -> None:
        """Connect and serve."""
        self._thread.start()

    def want(self, value: float) -> None:
        """Any thread: -1 open ... +1 closed. It takes no time."""
        with self._lock:
            self._choice.want(value)

    @property
    def sent(self) -> int:
        """Commands that went out."""
        return self._choice.sent

    def close(self) -> None:
        """End the thread; a command in flight is left to itself."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _serve(self) -> None:
        """Thread: connect, then send what is wanted; a lost connection is made anew."""
        while not self._ending.is_set():
            hand = self._connected()
            if hand is None:
                continue
            lost, self._waiting = threading.Event(), []
            Call(lambda hand=hand, lost=lost: self._read(hand, lost), f"{self.name} state")
            self.problem = ""
            while not self._ending.wait(POLL) and not lost.is_set():
                self._turn(hand, lost)
            self._choice.ended(False)

    def _connected(self) -> Any:
        call = Call(self._make, f"{self.name} connect")
        while not call.wait(0.1):
            if self._ending.is_set():
                return None
            if call.age > HOPELESS:
                self.problem = f"{self.name}: the connection hangs"
        if call.error is not None:
            self.problem = f"{self.name}: no connection ({call.error}); is the hand mounted? else set gripper: false"
            self._ending.wait(1.0)
            return None
        return call.result

    def _read(self, hand: Any, lost: threading.Event) -> None:
        """Thread: a read waits for the hand's next packet."""
        try:
            while not self._ending.wait(POLL) and not lost.is_set():
                self.state = HandState(float(hand.width), time.monotonic_ns())
        except Exception as error:
            self.problem = f"{self.name}: the connection is lost ({error})"
            lost.set()

    def _turn(self, hand: Any, lost: threading.Event) -> None:
        """Send what is due and wait for its end, but no longer than the time-out."""
        if not all(late.wait(0.0) for late in self._waiting):
            return  # another command would overlap with one that even a stop has not ended
        with self._lock:
            command = self._choice.next(time.monotonic())
        if command is None:
            return
        well = False
        try:
            well = self._carry_out(hand, command, lost)
        except Exception as error:
            self.problem = f"{self.name}: a command failed ({error})"
        with self._lock:
            self._choice.ended(well)

    def _carry_out(self, hand: Any, command: int, lost: threading.Event) -> bool:
        s = self._settings
        if command == CLOSED:
            future = hand.grasp_async(0.0, s.grip_speed, s.grip_force, ANY_WIDTH, ANY_WIDTH)
        else:
            future = hand.move_async(s.grip_width, s.grip_speed)
        end = time.monotonic() + s.grip_timeout
        while not self._ending.is_set() and not lost.is_set() and time.monotonic() < end:
            if future.wait(POLL):
                future.get()  # whether it grasped something is the policy's affair; that it failed is an exception
                self.problem = ""
                return True
        self.given_up += 1
        self.problem = f"{self.name}: a command did not end within {s.grip_timeout:g} s; is something in the way?"
        stopping = hand.stop_async()
        self._waiting = [late for late in (stopping, future) if not late.wait(1.0)]
        for late in self._waiting:
            _never_free(late)
        return False


def _never_free(future: Any) -> None:
    """To free the future of a command that never ends waits for that end."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(future))
