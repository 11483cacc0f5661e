"""One pose of an object out of many sightings: a consensus that picks between each tag's two solutions and rejects
outliers, then a weighted average of what agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .poses import Pose, average
from .scene import PlacedCamera, TaggedObject
from .tags import Sighting

DOUBT = 0.25  # pixels: a second solution that fits worse than the first by this (in squares) is as bad as an outlier
CONTINUITY = 0.5  # weight of the last pose in the consensus; one sighting that contradicts it clearly weighs 1
ROUNDS = 2  # of choosing around the average of what was chosen


@dataclass(frozen=True)
class Gate:
    """How far apart estimates of one pose may be and still agree."""

    distance: float  # m
    angle: float  # rad


@dataclass(frozen=True)
class Fused:
    """What the sightings of one moment say together."""

    pose: Pose  # of the object in the world
    used: tuple[Sighting, ...]
    rejected: tuple[Sighting, ...]
    error: float  # pixels, mean over those used
    spread: float  # m, root mean square distance of those used from the pose


@dataclass(frozen=True)
class _Solutions:
    """All candidates of all sightings as poses of the object in the world: n of them, s sightings."""

    position: np.ndarray  # (n, 3) m
    quaternion: np.ndarray  # (n, 4)
    owner: np.ndarray  # (n,) which sighting
    error: np.ndarray  # (n,) pixels
    penalty: np.ndarray  # (n,) 0 for a sighting's best fit
    sigma: np.ndarray  # (s,) m


def fuse(
    sightings: Sequence[Sighting], thing: TaggedObject, cameras: Mapping[str, PlacedCamera], gate: Gate,
    previous: Pose | None = None,
) -> Fused | None:
    """The object's pose in the world; None without any sighting of its tags.

    Args:
        previous: where it was a moment ago, or None if that says nothing any more.
    """
    sightings = [s for s in sightings if thing.tag(s.tag) is not None]
    if not sightings:
        return None
    found = _solutions(sightings, thing, cameras)
    best = _consensus(found, gate, previous)
    pose = Pose.of(found.position[best], found.quaternion[best])
    for _ in range(ROUNDS):
        chosen = _agreeing(found, pose, gate)
        if not len(chosen):
            break
        pose, last = _mean(found, chosen), chosen
    used = {int(found.owner[i]) for i in last}
    away = found.position[last] - pose.position
    return Fused(
        pose=pose,
        used=tuple(s for i, s in enumerate(sightings) if i in used),
        rejected=tuple(s for i, s in enumerate(sightings) if i not in used),
        error=float(np.mean(found.error[last])),
        spread=float(np.sqrt(np.mean(np.sum(away**2, axis=1)))),
    )


def _solutions(
    sightings: Sequence[Sighting], thing: TaggedObject, cameras: Mapping[str, PlacedCamera]
) -> _Solutions:
    poses, owner, error, penalty = [], [], [], []
    for number, sighting in enumerate(sightings):
        back = thing.tag(sighting.tag).pose.inverse()  # type: ignore[union-attr]
        for candidate in sighting.candidates:
            poses.append(cameras[sighting.camera].pose @ candidate.pose @ back)
            owner.append(number)
            error.append(candidate.error)
            penalty.append((candidate.error**2 - sighting.candidates[0].error ** 2) / DOUBT**2)
    return _Solutions(
        np.array([pose.position for pose in poses]), np.array([pose.quaternion() for pose in poses]),
        np.array(owner), np.array(error), np.array(penalty), np.array([s.sigma for s in sightings]),
    )


def _apart(found: _Solutions, pose: Pose, gate: Gate) -> np.ndarray:
    """(n,) squared distance of each solution from a pose, in gates: below 1 they agree."""
    shift = np.sum((found.position - pose.position) ** 2, axis=1) / gate.distance**2
    turn = 2 * np.arccos(np.minimum(np.abs(found.quaternion @ pose.quaternion()), 1.0))
    return shift + (turn / gate.angle) ** 2


def _consensus(found: _Solutions, gate: Gate, previous: Pose | None) -> int:
    """The solution that most sightings support, each with its better candidate and by at most 1, whatever its weight:
    one that is wrong shall not win by looking sharp. Of equals, the one with the least sigma."""
    ranked = []
    for i in range(len(found.owner)):
        here = Pose.of(found.position[i], found.quaternion[i])
        each = np.minimum(_apart(found, here, gate) + found.penalty, 1.0)
        cost = sum(float(each[found.owner == s].min()) for s in range(len(found.sigma)))
        if previous is not None:
            before = _Solutions(previous.position[None], previous.quaternion()[None], *[np.zeros(1)] * 4)
            cost += CONTINUITY * min(float(_apart(before, here, gate)[0]), 1.0)
        ranked.append((round(cost, 9), float(found.sigma[found.owner[i]]), i))
    return min(ranked)[2]


def _agreeing(found: _Solutions, pose: Pose, gate: Gate) -> np.ndarray:
    """Indices of at most one solution of each sighting: the nearest, if it agrees with the pose."""
    apart = _apart(found, pose, gate)
    nearest = [min(np.flatnonzero(found.owner == s), key=lambda i: apart[i]) for s in range(len(found.sigma))]
    return np.array([i for i in nearest if apart[i] < 1.0], dtype=int)


def _mean(found: _Solutions, chosen: np.ndarray) -> Pose:
    poses = [Pose(found.position[i], Rotation.from_quat(found.quaternion[i])) for i in chosen]
    return average(poses, 1 / found.sigma[found.owner[chosen]] ** 2)
