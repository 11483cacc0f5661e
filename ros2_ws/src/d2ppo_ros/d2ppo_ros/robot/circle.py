"""A circle that an arm is told to follow, and how it did. Everything is timed by the robot's clock, so that a busy
machine does not change the numbers. A stand-in's are a simulator's: a real arm has friction that no number here knows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError
from d2ppo_core.progress import ProgressBar

from ..records import Target
from ..standin.control import Control
from .driver import Driver, Phase
from .pilot import Pilot

RADIUS, SPEED = 0.06, 0.126  # m, m/s
STEP = 0.05  # s between two setpoints
WINDOW = 0.04  # s: accelerations are those of positions smoothed over so long
PIECE = 60.0  # s that are judged at a time
WARM = 1.5  # s until the circle is under way
MISS = 0.05  # s: a cycle of the servo loop that comes so late is a miss


@dataclass(frozen=True)
class Followed:
    """How well a path was followed, in robot time."""

    lag: float  # s by which the arm is late
    rms: float  # m, at that lag
    speed_spread: float  # standard deviation of the speed over its mean
    acceleration: float  # m/s^2, root mean square; the ideal circle's is speed^2 / radius


def circle(time_s: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Offset (..., 3) m from the start and velocity (..., 3) m/s; the speed grows over the first second."""
    t = np.asarray(time_s, dtype=float)
    angle = np.where(t < 1.0, t * t / 2, t - 0.5) * SPEED / RADIUS
    rate = np.minimum(t, 1.0) * SPEED
    zero = np.zeros_like(t)
    offset = RADIUS * np.stack([np.cos(angle) - 1, np.sin(angle), zero], axis=-1)
    return offset, rate[..., None] * np.stack([-np.sin(angle), np.cos(angle), zero], axis=-1)


def drive_circle(driver: Driver, seconds: float, rate: float, bar: ProgressBar) -> tuple[float, np.ndarray, np.ndarray]:
    """Robot time of the start, the path's start (3,) in the robot's base, how late each cycle was in s."""
    pilot = Pilot(driver)
    pilot.take()
    client, frames = driver.clients[0], driver.frames[0]
    begin, ee = client.reading.time, client.reading.ee
    start, rotation = frames.site(ee)
    quaternion = Rotation.from_matrix(rotation).as_quat()
    due, told, late = time.monotonic(), -1, []
    while (now := client.reading.time - begin) < seconds + WARM:
        if int(now / STEP) > told:
            told = int(now / STEP)
            offset, velocity = circle((told + 1) * STEP)
            twist = np.concatenate([velocity, np.zeros(3)])
            pilot.pose((Target(start + frames.turn @ offset, quaternion, twist, np.zeros(6), 0.0),),
                       (told + 1) * STEP - now)  # fmt: skip
        pilot.keep()
        pilot.cycle()
        bar.advance(int(now) - bar.done)
        if driver.phase is not Phase.DRIVING:
            raise UserError(f"the arm was stopped: {driver.stopped or driver.fault(time.monotonic_ns())}")
        late.append(time.monotonic() - due)
        due += 1 / rate
        if late[-1] > MISS:
            due = time.monotonic()  # not made up for
        time.sleep(max(0.0, due - time.monotonic()))
    return begin, ee[:3, 3], np.array(late)


def judge(rows: np.ndarray, begin: float, start: np.ndarray, low: float, high: float) -> Followed:
    """Compare what was done, rows (T, 11) of time and position each tick, with the circle that was asked for.

    Args:
        low, high: s after the start, between which it is judged.
    """
    t, position = rows[:, 0] - begin, rows[:, 1:4] - start
    judged = (t > low) & (t < high)
    errors = []
    for lag in np.arange(-0.05, 0.3, 0.001):
        wanted = circle(t[judged] - lag)[0]
        errors.append((float(np.sqrt(((position[judged] - wanted) ** 2).sum(-1).mean())), float(lag)))
    rms, lag = min(errors)
    velocity = np.gradient(_smoothed(position, round(WINDOW / 0.001)), 0.001, axis=0)
    acceleration = np.gradient(velocity, 0.001, axis=0)
    speed = np.linalg.norm(velocity[judged], axis=1)
    spread = float(speed.std() / speed.mean())
    return Followed(lag, rms, spread, float(np.sqrt((acceleration[judged] ** 2).sum(1).mean())))


def judge_all(control: Control, begin: float, start: np.ndarray, seconds: float) -> list[Followed]:
    """Each minute of the drive, fetched and judged by itself."""
    found, margin, low = [], 0.2, WARM
    head = np.array(control.ask("trace", count=1)["rows"])
    while low < WARM + seconds - 0.5:
        high = min(low + PIECE, WARM + seconds - margin)
        first = round((low - margin + begin - head[0, 0]) * 1000)
        asked = control.ask("trace", first=max(0, first), count=round((high - low + 2 * margin) * 1000))
        found.append(judge(np.array(asked["rows"]), begin, start, low, high))
        low += PIECE
    return found


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """(T, 3) convolved with a Hann window of so many ticks."""
    window = np.hanning(width + 2)[1:-1]
    return np.stack([np.convolve(column, window / window.sum(), mode="same") for column in values.T], axis=1)
