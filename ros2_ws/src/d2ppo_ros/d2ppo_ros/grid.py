"""The observation of one time, put together from streams: what `VectorEnv` returns, from topics (or from a record).

A policy with history To looks at the times `stamp`, `stamp - step`, ... For each of them:

* the contract's first key sets the time: at `stamp` its first sample that is not older, at earlier times the nearest
  one; either at most half a step away;
* every other key (they may come from other sources): its sample nearest to that time, at most `max_age` away;
* every camera: its newest picture that is not newer than that time plus `tolerance`; where a trial has none yet, its
  first one; at most `max_age` away.

Nothing older than the trial's `start` is used. Times before it see what was seen at `start`, as after a simulator's
reset. With `max_age` 0 everything must have the very same stamp (lockstep). Times are int nanoseconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable

import numpy as np

from d2ppo_core.contract import ObservationSpec
from d2ppo_core.envs import RawObservation
from d2ppo_core.errors import UserError

from .records import SECOND, RobotState


class NotYet(LookupError):
    """What the observation still lacks, in words."""


class Track:
    """Samples of one key or camera, by stamp."""

    def __init__(self, name: str, keep: int) -> None:
        self.name, self._keep = name, keep  # keep: ns of the past that is remembered
        self._stamps: list[int] = []
        self._samples: dict[int, np.ndarray] = {}

    def put(self, stamp: int, sample: np.ndarray) -> None:
        """Late samples are sorted in; one that is older than all that is remembered means that the clock was reset."""
        if self._stamps and stamp < self._stamps[-1] - self._keep:
            self._stamps, self._samples = [], {}
        if stamp not in self._samples:
            insort(self._stamps, stamp)
        self._samples[stamp] = sample
        old = bisect_left(self._stamps, self._stamps[-1] - self._keep)
        for forgotten in self._stamps[:old]:
            del self._samples[forgotten]
        del self._stamps[:old]

    def __getitem__(self, stamp: int) -> np.ndarray:
        return self._samples[stamp]

    def __len__(self) -> int:
        return len(self._stamps)

    def first(self, time: int) -> int | None:
        """Stamp of the oldest sample that is not older than `time`."""
        at = bisect_left(self._stamps, time)
        return self._stamps[at] if at < len(self._stamps) else None

    def last(self, time: int, start: int) -> int | None:
        """Stamp of the newest sample in [start, time]."""
        at = bisect_right(self._stamps, time) - 1
        return self._stamps[at] if at >= 0 and self._stamps[at] >= start else None

    def nearest(self, time: int, start: int) -> int | None:
        """Stamp of the sample nearest to `time` and not older than `start`; of two, the older one."""
        found = [s for s in (self.last(time, start), self.first(max(time, start))) if s is not None]
        return min(found, key=lambda stamp: abs(stamp - time)) if found else None


class ObservationGrid:
    """Collects states and pictures, and assembles observations on the time grid of a policy (see above)."""

    def __init__(self, spec: ObservationSpec, step: int, max_age: int = 0, tolerance: int = 0) -> None:
        self.spec, self.step, self.max_age, self.tolerance = spec, step, max_age, tolerance
        keep = spec.history * step + max_age + SECOND  # a second, for requests that come late
        self._keys = {key.name: Track(key.name, keep) for key in spec.lowdim}
        self._cameras = {camera.name: Track(camera.key, keep) for camera in spec.cameras}
        self._sizes = {key.name: key.size for key in spec.lowdim}
        self._shapes = {camera.name: (camera.height, camera.width, 3) for camera in spec.cameras}

    def add_state(self, state: RobotState) -> None:
        """Keep those of the keys that the policy looks at."""
        for name in self._keys.keys() & state.values.keys():
            value = np.array(state.values[name], dtype=np.float64)
            if value.shape != (self._sizes[name],):
                raise UserError(f"'{name}' arrives with shape {value.shape}, the policy expects ({self._sizes[name]},)")
            self._keys[name].put(state.stamp, value)

    def add_image(self, camera: str, stamp: int, picture: np.ndarray) -> None:
        """Keep a policy-ready picture (H, W, 3) uint8."""
        if camera not in self._cameras:
            raise UserError(f"the policy looks at no camera '{camera}', only at {', '.join(self._cameras) or 'none'}")
        if picture.dtype != np.uint8 or picture.shape != self._shapes[camera]:
            raise UserError(
                f"camera '{camera}' delivers {picture.dtype} {picture.shape}, the policy expects uint8 "
                f"{self._shapes[camera]}; check the camera's parameters"
            )
        self._cameras[camera].put(stamp, picture)

    def lacking(self, stamp: int, start: int) -> str:
        """What the observation of `stamp` still lacks, in words; empty: it can be assembled."""
        try:
            self._found(stamp, start)
        except NotYet as error:
            return str(error)
        return ""

    def ready(self, stamp: int, start: int) -> bool:
        """Whether `assemble` would answer."""
        return not self.lacking(stamp, start)

    def assemble(self, stamp: int, start: int, back: int = 0) -> RawObservation:
        """What a trial that began at `start` sees at `stamp`: by key (1, To, size), by camera key (1, To, H, W, 3).

        Args:
            back: pictures that had not arrived yet: each camera's newest so many are passed over.

        Raises:
            NotYet: something has not arrived; see `lacking`.
        """
        found = self._found(stamp, start, back)
        tracks = [*self._keys.values(), *self._cameras.values()]
        return {track.name: np.stack([track[row[track.name]] for row in found])[None] for track in tracks}

    def _found(self, stamp: int, start: int, back: int = 0) -> list[dict[str, int]]:
        """For each time of the history, oldest first: by key and camera key, the stamp of the sample to take."""
        newest = max(stamp, start)
        earlier = [max(stamp - n * self.step, start) for n in range(self.spec.history - 1, 0, -1)]
        nearest = self._anchor.nearest
        return [self._row(time, start, lambda t: nearest(t, start)) for time in earlier] + [
            self._row(newest, start, self._anchor.first, back)
        ]

    @property
    def _anchor(self) -> Track:
        return self._keys[self.spec.lowdim[0].name]

    def _row(self, time: int, start: int, choose: Callable[[int], int | None], back: int = 0) -> dict[str, int]:
        at = _near(self._anchor, choose(time), time, self.step // 2)
        row = {self._anchor.name: at}
        for track in list(self._keys.values())[1:]:
            row[track.name] = _near(track, track.nearest(at, start), at, self.max_age)
        for track in self._cameras.values():
            newest = track.last(at + self.tolerance, start)
            for _ in range(back):
                newest = track.last((newest or start) - 1, start)
            row[track.name] = _near(track, track.first(start) if newest is None else newest, at, self.max_age)
        return row


def _near(track: Track, stamp: int | None, time: int, reach: int) -> int:
    """`stamp`, if it is no further than `reach` from `time`."""
    if stamp is None or abs(stamp - time) > reach:
        least = "nothing" if stamp is None else f"{(stamp - time) / 1e6:+.1f} ms off at best"
        raise NotYet(f"no '{track.name}' within {reach / 1e6:g} ms of {time / SECOND:.3f} s ({least})")
    return stamp
