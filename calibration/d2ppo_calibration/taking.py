"""Taking a recording: from files, whose robot poses lie beside them, or from a live camera with the robot beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json
from d2ppo_core.live import LiveView, live_views

from .capture import Capture, RobotPose, pictures_of, read_poses
from .dataset import Dataset, Recording
from .files import write_picture
from .poses import IDENTITY

Say = Callable[[str], None]
Offer = tuple[str, np.ndarray, RobotPose | None, float | None]  # name, (h, w, 3) BGR, the robot, s


def take(folder: Path, dataset: Dataset, source: str, poses: Path | None, views: int, say: Say) -> dict[str, Any]:
    """Offer pictures until there are enough views, none come any more, or a person interrupts; what was taken."""
    offers = _offers(dataset, source, poses)
    taking, refused, last = Capture(Recording(folder, dataset)), 0, ""
    try:
        for name, picture, robot, now in offers:
            why = taking.offer(picture, robot, now)
            refused += bool(why)
            if why != last:
                say(f"{name}: {why or taking.advice()}")
            last = why
            if not why:
                write_picture(folder / "coverage.png", taking.picture())
            if len(taking.views) >= views:
                break
    except KeyboardInterrupt:
        say("interrupted; the same command goes on")
    return {"views": len(taking.views), "refused": refused, "advice": taking.advice()}


def _offers(dataset: Dataset, source: str, poses: Path | None) -> Iterator[Offer]:
    """Every picture of the source with the robot's pose, if one is needed."""
    live = live_views(source)
    if live is None:
        if dataset.setup != "camera_only" and not poses:
            raise UserError(f"--setup {dataset.setup} needs the robot's pose at each picture; give --poses FILE")
        known = read_poses(poses) if poses else {}
        return ((name, picture, known.get(name), now) for name, picture, now in pictures_of(source))
    if poses or dataset.flange_effector != IDENTITY:
        raise UserError(f"--source {source} knows the flange by the arm's joints; leave --poses and --tool out")
    return _live_offers(live, dataset.setup != "camera_only")


def _live_offers(live: Iterator[LiveView], robot: bool) -> Iterator[Offer]:
    for view in live:
        at = view.flange if robot else None
        pose = at and RobotPose(
            position=at.position, quaternion=at.quaternion, joints=view.joints, speed=view.speed
        )
        yield view.name, view.picture, pose, view.time


def film(folder: Path, dataset: Dataset, source: str, seconds: float, say: Say) -> dict[str, Any]:
    """Every picture of a live source with its time, and where the arm's flange was then: for the camera's latency."""
    live = live_views(source)
    if live is None or dataset.setup != "camera_only":
        raise UserError("--moving needs a live source, as ros:CAMERA, and --setup camera_only: it measures times alone")
    first = next(live)
    recording, states = Recording(folder, dataset), []
    if recording.dataset.views:
        raise UserError(f"{folder} holds a recording; choose a new folder for one in motion")
    say(f"move the arm briskly and irregularly for {seconds:g} s")
    try:
        for view in chain([first], live):
            if view.time - first.time > seconds:
                break
            recording.add(view.picture, time=round(1e9 * view.time))
            if view.flange is not None:
                states.append((view.time, view.flange.position))
    except KeyboardInterrupt:
        say("interrupted; what was recorded until now is kept")
    times, places = [at for at, _ in states], [list(place) for _, place in states]
    write_json(folder / "states.json", {"time": times, "value": places})
    moved = float(np.ptp(np.array(places), axis=0).max()) if places else 0.0
    count = len(recording.dataset.views)
    advice = f"{count} pictures, {len(times)} with the arm's position, which moved by {100 * moved:.0f} cm"
    return {"views": count, "states": str(folder / "states.json"), "advice": advice}
