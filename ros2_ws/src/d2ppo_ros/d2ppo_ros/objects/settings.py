"""Parameters of the object pose node."""

from __future__ import annotations

from dataclasses import dataclass

from ..parameters import parameter
from .layout import LAYOUTS


@dataclass(frozen=True)
class ObjectPoseSettings:
    """What the node is told at its start."""

    object_file: str = parameter("", "YAML or JSON file: the object's name and its tags' ids, sizes and poses on it")
    cameras_file: str = parameter("", "YAML or JSON file: the cameras' poses in the world, and intrinsics if measured")
    image_topic: str = parameter("camera/{}/raw", "where each camera's images come from; {} stands for its name")
    info_topic: str = parameter("camera/{}/camera_info", "where intrinsics come from that the file does not give")
    reliable: bool = parameter(True, "ask for every image; false fits drivers that send as sensors do")
    task: str = parameter(
        "lift", "whose object vector is published; none: poses alone", choices=(*LAYOUTS, "none")
    )
    cutoff: float = parameter(
        4.0, "low-pass filter; higher follows faster, lower is calmer; it lags by 1 / (2 pi cutoff), 0 is no filter",
        unit="Hz", low=0.0, high=100.0,
    )
    gap: float = parameter(0.5, "so long without a tag, and the filter starts anew", unit="s", low=0.0, high=60.0)
    window: float = parameter(
        0.04, "images of several cameras that are so close in time are averaged", unit="s", low=0.0, high=1.0
    )
    stale_after: float = parameter(
        0.3, "so long without a tag, and the pose is reported as stale", unit="s", low=0.01, high=60.0
    )
    worst_error: float = parameter(
        1.5, "a tag whose corners fit a square worse than this is not believed", unit="px", low=0.05, high=20.0
    )
    outlier_distance: float = parameter(
        0.02, "tags that place the object further apart than this do not agree", unit="m", low=0.001, high=1.0
    )
    outlier_angle: float = parameter(
        0.25, "tags that turn the object further apart than this do not agree", unit="rad", low=0.01, high=3.2
    )
    state_tolerance: float = parameter(
        0.02, "how much older than an image the newest robot state may be", unit="s", low=0.0, high=1.0
    )
