"""What a policy saw in a recorded trial, put together by the very grid that the policy's node uses."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from d2ppo_core.contract import ObservationSpec, PolicySpec, parse_spec
from d2ppo_core.envs import RawObservation
from d2ppo_core.errors import UserError

from ..decoding import picture_of, stamp_of
from ..grid import NotYet, ObservationGrid
from ..records import SECOND, RobotState
from .reader import Recorded, Trial

MAX_AGE = SECOND // 10  # the policy node's own default
PATIENCE = SECOND // 2  # of the trial's clock: what has not come by then was never recorded
NOT_LATER = 2**63


@dataclass(frozen=True)
class Sample:
    """One part of an observation."""

    received: int
    stamp: int
    state: RobotState | None = None
    camera: str = ""
    picture: np.ndarray | None = None


class Observations:
    """Observations of a trial, asked for in the order of their times.

    A lockstep trial has every part under the very same stamp, and that is tried first. Else the parts that had been
    received by the time when the policy began are used as its node would have used them. Recorder and policy do not
    receive a picture at the same time, so the policy may have looked at the one before, or the next.
    """

    def __init__(self, trial: Trial, spec: ObservationSpec, step: int, max_age: int = MAX_AGE) -> None:
        self._exact, self._near = ObservationGrid(spec, step), ObservationGrid(spec, step, max_age)
        self._later = ObservationGrid(spec, step, max_age)  # knows what came after the policy had begun, too
        self._samples = samples(trial, spec)
        self._next = next(self._samples, None)
        self._ahead: deque[Sample] = deque()  # known to the other grids, but not yet to `_near`

    def at(self, stamp: int, start: int, begun: int = NOT_LATER) -> tuple[list[RawObservation], str]:
        """What the policy saw at `stamp`, having begun at `begun` (recorder's clock), the likeliest first.

        None, and why, if it is unknown; several where it may have looked at another picture.
        """
        while self._next and self._next.stamp < stamp + PATIENCE and not self._exact.ready(stamp, start):
            for grid in (self._exact, self._later):
                _add(grid, self._next)
            self._ahead.append(self._next)
            self._next = next(self._samples, None)
        exact = self._exact.ready(stamp, start)
        while self._ahead and (self._ahead[0].received <= begun or not (exact or self._near.ready(stamp, start))):
            _add(self._near, self._ahead.popleft())
        if exact:
            return [self._exact.assemble(stamp, start)], ""
        lacking, found = self._near.lacking(stamp, start), []
        for grid, back in ((self._near, 0), (self._later, 0), (self._near, 1)):
            with suppress(NotYet):
                found.append(grid.assemble(stamp, start, back))
        return ([], lacking) if lacking else (found, "")


def _add(grid: ObservationGrid, sample: Sample) -> None:
    if sample.state is not None:
        grid.add_state(sample.state)
    else:
        grid.add_image(sample.camera, sample.stamp, sample.picture)


def samples(trial: Trial, spec: ObservationSpec) -> Iterator[Sample]:
    """States and pictures in the order in which they were received."""
    cameras = [f"camera/{camera.name}/image" for camera in spec.cameras]
    for recorded in trial.messages("robot/state", "object/state", *cameras):
        yield _sample(recorded)


def _sample(recorded: Recorded) -> Sample:
    value = recorded.value
    if isinstance(value, RobotState):
        return Sample(recorded.received, value.stamp, state=value)
    camera, stamp = recorded.topic.split("/")[-2], stamp_of(recorded.message)
    return Sample(recorded.received, stamp, camera=camera, picture=picture_of(recorded.message)[0])


def contract_of(trial: Trial) -> PolicySpec:
    """The contract of the policy that ran, as the trial's metadata or the recorded topic holds it."""
    stated = trial.metadata.get("policy")
    if stated:
        return parse_spec(json.dumps(stated), f"{trial.folder}: the trial's metadata")
    for recorded in trial.messages("policy/contract"):
        return parse_spec(recorded.message.data, f"{trial.folder}: {recorded.topic}")
    raise UserError(f"{trial.folder} holds no policy's contract; give the policy by --checkpoint FILE")
