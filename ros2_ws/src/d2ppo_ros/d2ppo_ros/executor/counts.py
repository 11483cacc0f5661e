"""What the executor counts in a trial."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Border:
    """How far the first command after a change of chunk is from the last one before it, carried on to its time.

    Smooth motion is not zero here: with acceleration a and dt between the commands, dt * a in velocity and dt^2 * a
    in position are normal. Two arms: the larger of the two.
    """

    time: int  # ns, of the command
    chunk: int
    position: float  # m
    rotation: float  # rad
    velocity: float  # m/s
    angular: float  # rad/s


@dataclass
class Counts:
    """Of the running trial, or of the last one."""

    requests: int = 0  # sent, repeats included
    answers: int = 0  # chunks that were taken
    ignored: int = 0  # chunks of another trial, nobody asked for, or older than asked for
    refused: int = 0  # chunks that were asked for and are no good: NaN, wrong size
    late: int = 0  # steps dropped because their time had passed
    starved: int = 0  # ticks without a step left
    reanchored: int = 0  # times that a reference started anew at the measured pose
    steps: int = 0  # steps begun
    borders: list[Border] = field(default_factory=list)  # pose modes only: deltas have no reference of their own
