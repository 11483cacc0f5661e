"""How late a signal is: how far it must be shifted in time so that another one explains it best.

For every shift, the reference is fitted by a linear map of the delayed signal; the shift with the greatest share of
explained variance (R^2) is the latency, found between samples by a parabola. In one dimension R^2 is the square of the
normalised cross-correlation. The map makes frames, units and axes irrelevant: pixels may be held against
metres.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field, model_validator

from d2ppo_core.errors import UserError
from d2ppo_core.frozen import Frozen
from d2ppo_core.tasks import validated

from .dataset import read_dataset
from .detect import Detector
from .files import read_picture

NAMES = {
    "camera": "from light on the sensor to the picture's stamp",
    "robot_observation": "from the arm's motion to the stamp of its state",
    "robot_action": "from a command to the arm's motion",
    "gripper_observation": "from the fingers' motion to the stamp of their state",
    "gripper_action": "from a command to the fingers' motion",
}
EXPLAINED = 0.8  # R^2, at least
PARTS = 4  # pieces of a record, each giving its own estimate
STEPS = 400  # shifts that are tried over the whole range
LARGEST_SPREAD = 0.02  # s, among the pieces
FLAT, WIDEST = 0.005, 0.06  # R^2, s: shifts that explain almost as much must not lie farther apart


class Signal(Frozen):
    """Numbers over time, at any times."""

    time: Annotated[tuple[float, ...], Field(min_length=20)]  # s, increasing, on the clock of the other signal
    value: tuple[tuple[float, ...] | float, ...]

    @model_validator(mode="after")
    def _shaped(self) -> Signal:
        if len(self.value) != len(self.time):
            raise ValueError(f"{len(self.time)} times, but {len(self.value)} values")
        if (np.diff(self.time) <= 0).any():
            raise ValueError("the times do not increase")
        if len({len(v) if isinstance(v, tuple) else -1 for v in self.value}) > 1:
            raise ValueError("the values differ in length")
        return self

    @property
    def array(self) -> np.ndarray:
        """(n, dimensions)."""
        return np.asarray(self.value, dtype=np.float64).reshape(len(self.time), -1)


class Pair(Frozen):
    """What was measured to find one latency."""

    name: str
    reference: Signal  # what happened first: a command, or the robot's own state for a camera
    delayed: Signal

    @model_validator(mode="after")
    def _known(self) -> Pair:
        if self.name not in NAMES:
            raise ValueError(f"there is no latency '{self.name}'; they are {', '.join(NAMES)}")
        return self


class Record(Frozen):
    """A file of them."""

    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Estimate:
    """One latency."""

    seconds: float
    spread: float  # s: standard deviation among the record's pieces
    explained: float  # R^2 at the best shift
    samples: int


def estimate(reference: Signal, delayed: Signal, low: float = -0.1, high: float = 0.5, name: str = "") -> Estimate:
    """How much later `delayed` is, s; negative: earlier. `low` and `high`: where it is sought.

    Raises:
        UserError: nothing moves, the signals do not belong together, or the shift cannot be told (at the end of the
            range, or as good elsewhere, as with a motion that repeats itself).
    """
    what = f"latency '{name}'" if name else "this latency"
    start = max(reference.time[0], delayed.time[0] - low)
    stop = min(reference.time[-1], delayed.time[-1] - high)
    step = max(float(min(np.median(np.diff(signal.time)) for signal in (reference, delayed))), 0.001)
    if stop - start < 10 * (high - low) / 3 or stop - start < 20 * step:
        raise UserError(
            f"{what}: only {max(stop - start, 0):.1f} s of both signals overlap; record "
            f"{10 * (high - low) / 3 + 1:.0f} s or more, or narrow the range that is searched"
        )
    times, shifts = np.arange(start, stop, step), np.linspace(low, high, STEPS + 1)
    explained = explained_share(reference, delayed, times, shifts)
    best = int(explained.argmax())
    _refuse(what, explained, best, shifts)
    width = 2 * max(float(np.median(np.diff(signal.time))) for signal in (reference, delayed))
    pieces = [
        _peak(shifts, explained_share(reference, delayed, piece, shifts), width)
        for piece in np.array_split(times, PARTS)
    ]
    spread = float(np.std(pieces, ddof=1))
    if spread > LARGEST_SPREAD:
        listed = ", ".join(f"{1000 * piece:.0f}" for piece in pieces)
        raise UserError(f"{what}: parts of the record say {listed} ms; record more and brisker motion")
    return Estimate(_peak(shifts, explained, width), spread, float(explained[best]), len(times))


def explained_share(reference: Signal, delayed: Signal, times: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(shifts,) R^2 of the reference at `times`, fitted by the delayed signal that much later."""
    wanted = _at(reference, times)
    total = float((wanted**2).sum())
    if total <= 1e-18 * len(times):
        return np.zeros(len(shifts))
    shares = []
    for shift in shifts:
        basis, upper = np.linalg.qr(_at(delayed, times + shift))  # (n, m)
        moving = np.abs(np.diag(upper)) > 1e-9 * np.sqrt(len(times))  # else a dimension that stands still
        shares.append(float(((basis[:, moving].T @ wanted) ** 2).sum()) / total)
    return np.array(shares)


def _at(signal: Signal, times: np.ndarray) -> np.ndarray:
    """(n, dimensions) without their means, between samples by straight lines."""
    values = np.stack([np.interp(times, signal.time, column) for column in signal.array.T], axis=1)
    return values - values.mean(0)


def _peak(shifts: np.ndarray, explained: np.ndarray, width: float) -> float:
    """Where R^2 is greatest, by a parabola through its neighbourhood."""
    best = shifts[explained.argmax()]
    near = np.abs(shifts - best) <= max(width, 2.5 * (shifts[1] - shifts[0]))
    if near.sum() < 3:
        return float(best)
    bend, slope, _ = np.polyfit(shifts[near] - best, explained[near], 2)
    return float(best - np.clip(slope / (2 * bend), -width, width)) if bend < 0 else float(best)


def _refuse(what: str, explained: np.ndarray, best: int, shifts: np.ndarray) -> None:
    """A sentence where the best shift means nothing."""
    if explained[best] < EXPLAINED:
        raise UserError(
            f"{what}: the two signals do not belong together (R^2 {explained[best]:.2f}, {EXPLAINED} is needed); check "
            "that something moved, that both show it, and that their times are of one clock"
        )
    if best in (0, len(shifts) - 1):
        raise UserError(f"{what}: the best shift is at the end of the range, {shifts[best]:g} s; search a wider one")
    near = explained > explained[best] - FLAT
    if shifts[near].max() - shifts[near].min() > WIDEST:
        raise UserError(
            f"{what}: shifts from {shifts[near].min():.3f} to {shifts[near].max():.3f} s fit alike; record a brisk "
            "motion that does not repeat itself"
        )


def signal_of_pictures(folder: str | Path) -> Signal:
    """Where the middle of the board is in the timed pictures of a recording, pixels."""
    dataset = read_dataset(folder)
    if any(view.time is None for view in dataset.views):
        raise UserError(f"{folder}: the pictures have no times; record them with `time` in ns for each view")
    detector, middle = Detector(dataset.board), np.array([[[*dataset.board.size]]]) / 2
    times, values = [], []
    for view in sorted(dataset.views, key=lambda view: view.time):
        seen = detector.find(read_picture(Path(folder) / view.image))
        if seen is not None and len(seen.ids) >= detector.least:
            plane, _ = cv2.findHomography(seen.points[:, :2], seen.pixels)
            times.append(view.time / 1e9)
            values.append(tuple(cv2.perspectiveTransform(middle, plane).ravel().tolist()))
    signal = {"time": times, "value": values}
    return validated(Signal, signal, f"the board in the pictures of {folder}")


def named_parameters(estimates: Mapping[str, Estimate], control_hz: float) -> dict[str, Any]:
    """What is stored: `latency` in seconds by name, what each rests on, and the same for the simulator.

    `simulator` are the parameters of the simulator's node; `randomise` those of training under randomisation.
    """
    seconds = {name: round(one.seconds, 6) for name, one in estimates.items()}
    measured = {
        name: {"meaning": NAMES[name], "spread": round(one.spread, 6), "explained": round(one.explained, 4),
               "samples": one.samples} for name, one in estimates.items()
    }  # fmt: skip
    late = {"image_latency": "camera", "state_latency": "robot_observation"}
    simulator = {key: max(seconds[name], 0.0) for key, name in late.items() if name in seconds}
    steps = max([one.seconds + 2 * one.spread for name, one in estimates.items() if "action" not in name], default=0.0)
    most = max(0, int(np.ceil(steps * control_hz - 1e-9)))
    return {"latency": seconds, "measured": measured, "simulator": simulator, "randomise": {"least": 0, "most": most}}
