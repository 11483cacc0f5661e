"""A recorded folder: pictures of the board, and where the robot was at each.

    folder/dataset.json   what was recorded (`Dataset`); replaced whole after each view
    folder/view-000.png   one picture a view

Robot poses are those of the end effector as the robot reports it (Franka's O_T_EE, measured). `flange_effector` is the
effector's pose in the flange (F_T_EE), so that results hold for the flange, whatever tool is set.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256, write_json
from d2ppo_core.frozen import Frozen

from .board import BoardSpec
from .files import read, read_picture, write_picture
from .poses import IDENTITY, Placed, inverse

Setup = Literal["eye_in_hand", "eye_to_hand", "camera_only"]
FILE = "dataset.json"


class View(Frozen):
    """One picture and what the robot said at that time."""

    image: Annotated[str, Field(min_length=1)]  # a file in the folder
    base_effector: Placed | None = None
    joints: tuple[float, ...] = ()  # rad
    time: int | None = None  # ns, of the picture


class Dataset(Frozen):
    """What a folder holds."""

    format: Literal[1] = 1
    camera: Annotated[str, Field(min_length=1)]
    setup: Setup
    board: BoardSpec
    base_frame: str = "panda_link0"
    flange_frame: str = "panda_link8"
    flange_effector: Placed = IDENTITY
    views: tuple[View, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Dataset:
        names = [view.image for view in self.views]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]} is there twice; each view needs its own picture")
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"'{outside[0]}' is no file of this folder; views name pictures beside {FILE}")
        if self.setup != "camera_only" and (bare := [v.image for v in self.views if v.base_effector is None]):
            raise ValueError(
                f"{bare[0]} has no base_effector; hand-eye calibration needs the robot's pose of each view"
            )
        return self

    def base_flange(self, view: View) -> np.ndarray:
        """(4, 4): the flange's pose when this view was taken."""
        assert view.base_effector is not None  # the model demands it
        return view.base_effector.matrix @ inverse(self.flange_effector.matrix)


def read_dataset(folder: str | Path) -> Dataset:
    """The folder's dataset, with every picture there."""
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} holds no {FILE}; record one with `d2ppo calibrate capture`, or correct the path")
    dataset = read(Dataset, folder / FILE)
    if missing := [view.image for view in dataset.views if not (folder / view.image).is_file()]:
        raise UserError(f"{folder} lacks {missing[0]}, which {FILE} names; put it back or take the view out")
    return dataset


def digest(folder: str | Path) -> str:
    """Names these very views: hex sha256 of what was recorded and of every picture's bytes."""
    folder, dataset = Path(folder), read_dataset(folder)
    found = hashlib.sha256(dataset.model_dump_json().encode())
    for view in dataset.views:
        found.update(sha256(folder / view.image).encode())
    return found.hexdigest()


def read_pictures(folder: str | Path, dataset: Dataset) -> list[np.ndarray]:
    """(h, w, 3) BGR of each view, all of one size."""
    pictures = [read_picture(Path(folder) / view.image) for view in dataset.views]
    for view, picture in zip(dataset.views, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            here, there = (f"{p.shape[1]} x {p.shape[0]}" for p in (picture, pictures[0]))
            raise UserError(
                f"{Path(folder) / view.image} is {here}, but the first picture {there}; all views must come from one "
                "camera at one resolution"
            )
    return pictures


class Recording:
    """A folder that grows by views; whatever kills the program, the views until then are whole."""

    def __init__(self, folder: str | Path, dataset: Dataset) -> None:
        """Begin a folder, or go on with one that states the same camera, setup, board and frames."""
        self.folder, self.dataset = Path(folder), dataset
        if (self.folder / FILE).exists():
            there = read_dataset(self.folder)
            if there.model_copy(update={"views": ()}) != dataset.model_copy(update={"views": ()}):
                raise UserError(f"{self.folder} holds another camera, setup, board or frames; choose a new folder")
            self.dataset = there
        else:
            write_json(self.folder / FILE, dataset.model_dump(mode="json"))

    def add(self, picture: np.ndarray, base_effector: Placed | None = None, joints: tuple[float, ...] = (),
            time: int | None = None) -> Path:  # fmt: skip
        """One more view: its picture first, then the file that names it."""
        view = View(
            image=f"view-{len(self.dataset.views):03d}.png", base_effector=base_effector, joints=joints, time=time
        )
        values = self.dataset.model_dump() | {"views": (*self.dataset.model_dump()["views"], view.model_dump())}
        grown = Dataset.model_validate(values)
        write_picture(self.folder / view.image, picture)
        write_json(self.folder / FILE, grown.model_dump(mode="json"))
        self.dataset = grown
        return self.folder / view.image
