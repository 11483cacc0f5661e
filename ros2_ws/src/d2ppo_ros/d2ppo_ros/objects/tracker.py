"""Images in, an object's pose out: keeps each camera's newest sightings, fuses those of one moment, filters."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError

from ..records import SECOND, RobotState
from .fusion import Fused, Gate, fuse
from .layout import GRIP, HAND, object_vector
from .poses import Pose
from .scene import Intrinsics, PlacedCamera, TaggedObject
from .settings import ObjectPoseSettings
from .smoothing import PoseFilter, QuaternionSign
from .tags import Sighting, TagDetector

STATES = 400  # robot states that are remembered: 4 s at 100 Hz, longer than any camera's delay


@dataclass(frozen=True)
class ObjectEstimate:
    """Where the object is."""

    stamp: int  # ns, capture of the newest image used
    pose: Pose  # in the world, filtered
    quaternion: np.ndarray  # (4,) xyzw of it, with the simulator's sign
    fused: Fused  # what the tags say before the filter


class ObjectTracker:
    """Follows one object through the images of all cameras."""

    def __init__(self, thing: TaggedObject, cameras: Sequence[PlacedCamera], settings: ObjectPoseSettings) -> None:
        self.thing, self.cameras, self._settings = thing, {camera.name: camera for camera in cameras}, settings
        self.intrinsics = {c.name: c.intrinsics for c in cameras if c.intrinsics is not None}
        self.last: ObjectEstimate | None = None
        self._gate = Gate(settings.outlier_distance, settings.outlier_angle)
        self._filter = PoseFilter(settings.cutoff, settings.gap)
        self._detector, self._sign = TagDetector(), QuaternionSign()
        self._seen: dict[str, tuple[int, list[Sighting]]] = {}
        self._newest = 0

    def learn(self, camera: str, intrinsics: Intrinsics) -> None:
        """What a camera's driver says of it; a file that gives intrinsics outranks it."""
        if self.cameras[camera].intrinsics is None:
            self.intrinsics[camera] = intrinsics

    def begin(self) -> None:
        """A new trial: the object may lie anywhere."""
        self.last, self._newest = None, 0
        self._seen.clear()
        self._filter.reset()
        self._sign.reset()

    def see(self, camera: str, stamp: int, image: np.ndarray) -> ObjectEstimate | None:
        """Look for tags in an image (H, W[, 3 RGB]) uint8 captured at `stamp` (ns).

        None if the camera's intrinsics are not known yet, if no tag is seen, or if a newer image was used before.
        """
        if camera not in self.intrinsics:
            return None
        if stamp < self._newest - SECOND:
            self.begin()  # the clock was set back
        self._seen[camera] = stamp, self._look(camera, image)
        if stamp <= self._newest:
            return None
        self._newest = stamp
        window = round(self._settings.window * SECOND)
        sightings = [s for when, found in self._seen.values() if abs(stamp - when) <= window for s in found]
        fused = fuse(sightings, self.thing, self.cameras, self._gate, self._before(stamp))
        if fused is None:
            return None
        newest = max(self._seen[s.camera][0] for s in fused.used)
        if self.last is not None and newest <= self.last.stamp:
            return None
        pose = self._filter.update(newest, fused.pose)
        self.last = ObjectEstimate(newest, pose, self._sign(pose.quaternion()), fused)
        return self.last

    def age(self, now: int) -> float:
        """Seconds since the last image that showed a tag; infinite before the first."""
        return float("inf") if self.last is None else (now - self.last.stamp) / SECOND

    def stale(self, now: int) -> bool:
        return self.age(now) > self._settings.stale_after

    def _look(self, camera: str, image: np.ndarray) -> list[Sighting]:
        sees = self.intrinsics[camera]
        if image.shape[:2] != (sees.height, sees.width):
            raise UserError(
                f"camera {camera} sends images of {image.shape[1]} x {image.shape[0]}, its intrinsics are for "
                f"{sees.width} x {sees.height}; calibrate it at the size that it sends"
            )
        return self._detector.sightings(image, camera, sees, self.thing.tags, self._settings.worst_error)

    def _before(self, stamp: int) -> Pose | None:
        """The last pose, unfiltered, while it still says where the object may be."""
        if self.last is None or stamp - self.last.stamp > self._settings.gap * SECOND:
            return None
        return self.last.fused.pose


class GripHistory:
    """Grip site and hand of the last states, to pair an image with the robot at the time of its capture."""

    def __init__(self, tolerance: float) -> None:
        """`tolerance` in s: how much newer than the newest state a time may be."""
        self._tolerance = round(tolerance * SECOND)
        self._states: deque[RobotState] = deque(maxlen=STATES)

    @property
    def newest(self) -> RobotState | None:
        return self._states[-1] if self._states else None

    def add(self, state: RobotState) -> None:
        """Raises `UserError` for a state without grip site and hand. Time that jumps back empties it."""
        missing = [key for key in (GRIP, HAND) if key not in state.values]
        if missing:
            raise UserError(f"the robot's state has no {', '.join(missing)}; the object vector needs it")
        if self._states and (state.stamp <= self._states[-1].stamp or state.trial != self._states[-1].trial):
            self._states.clear()
        self._states.append(state)

    def at(self, stamp: int) -> tuple[np.ndarray, np.ndarray] | None:
        """((3,) m, (4,) xyzw) at a time (ns), interpolated; None if the states do not reach it."""
        if not self._states or stamp < self._states[0].stamp or stamp > self._states[-1].stamp + self._tolerance:
            return None
        after = next((i for i, state in enumerate(self._states) if state.stamp >= stamp), len(self._states) - 1)
        b = self._states[after]
        a = self._states[max(after - 1, 0)]
        share = min((stamp - a.stamp) / (b.stamp - a.stamp), 1.0) if b.stamp > a.stamp else 1.0
        first, second = Rotation.from_quat(a.values[HAND]), Rotation.from_quat(b.values[HAND])
        turn = first * Rotation.from_rotvec(share * (first.inv() * second).as_rotvec())
        return (1 - share) * a.values[GRIP] + share * b.values[GRIP], turn.as_quat()

    def vector(self, task: str, estimate: ObjectEstimate) -> np.ndarray | None:
        """The policy's `object` at the estimate's time; None if the robot's state of that time is not known."""
        paired = self.at(estimate.stamp)
        if paired is None:
            return None
        return object_vector(task, estimate.pose.position, estimate.quaternion, *paired)
