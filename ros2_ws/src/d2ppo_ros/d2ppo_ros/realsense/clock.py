"""When a frame was taken, on this computer's clock.

A RealSense counts in its own clock. With `global_time_enabled` the library maps that onto the computer's, and says so
in the frame's domain; until it has found the map, and on cameras without metadata, it says something else. Only a time
in the domain `global_time` that fits the time of arrival is believed. Any other frame is stamped with its time of
arrival less what was measured for that.
"""

from __future__ import annotations

from dataclasses import dataclass

GLOBAL = "global_time"
FUTURE = 5_000_000  # ns: a stamp further ahead of the arrival is a wrong clock (the safety node's `stamp_future`)
OLDEST = 500_000_000  # ns: older than this at its arrival, a frame is of no use, or its clock is wrong
SET_BACK = 1_000_000_000  # ns: stamps that go back by more mean that the computer's clock was set


@dataclass(frozen=True)
class Stamp:
    """When a frame was taken, and how that is known."""

    time: int  # ns
    ours: bool  # by its arrival here, not by the camera


class FrameClock:
    """Stamps one camera's frames.

    Args:
        latency: ns from light on the sensor to the camera's own stamp, as `d2ppo calibrate latency` measures it.
        receive_latency: ns from light on the sensor to a frame's arrival, for frames whose own time is not believed.
    """

    def __init__(self, latency: int, receive_latency: int) -> None:
        self._latency, self._receive_latency = latency, receive_latency
        self._last = 0
        self.ours = self.backward = 0  # frames stamped by arrival; frames refused because their time goes back
        self.why = ""  # why the camera's own time of the last frame was not believed; empty: it was

    def stamp(self, timestamp: float, domain: str, received: int) -> Stamp | None:
        """For a frame with the library's `timestamp` (ms) that came at `received` (ns); None: refuse the frame.

        Stamps only go forward: one that would not belongs to a frame that was overtaken, or to a moment of doubt.
        """
        doubt = self._doubt(timestamp, domain, received)
        made = Stamp(received - self._receive_latency, True) if doubt else Stamp(
            round(timestamp * 1e6) - self._latency, False)  # fmt: skip
        if self._last - SET_BACK < made.time <= self._last:
            self.backward += 1
            return None
        self._last, self.why = made.time, doubt
        self.ours += made.ours
        return made

    def _doubt(self, timestamp: float, domain: str, received: int) -> str:
        """Why the camera's own time is not believed; empty: it is."""
        if domain != GLOBAL:
            return f"its time is {domain}, not {GLOBAL}"
        age = received - round(timestamp * 1e6)
        if not -FUTURE <= age <= OLDEST:
            return f"its time is {age / 1e6:.1f} ms before the arrival"
        return ""
