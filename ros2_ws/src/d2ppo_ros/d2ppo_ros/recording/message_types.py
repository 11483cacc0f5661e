"""Definitions of the messages that are recorded: ROS's own, and those of packages found on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from d2ppo_core.errors import UserError

OURS = "d2ppo_interfaces"
SOURCES = Path(__file__).resolve().parents[3]  # ros2_ws/src, where this package runs from its source tree


def typestore(*types: str) -> Typestore:
    """All of ROS 2 Jazzy's messages, ours, and the packages of `types` ("package/msg/Name")."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for package in {OURS, *(name.split("/")[0] for name in types if name not in store.fielddefs)}:
        folder = _definitions(package)
        found = {}
        for path in sorted(folder.glob("*.msg")):
            found.update(get_types_from_msg(path.read_text(encoding="utf-8"), f"{package}/msg/{path.stem}"))
        store.register({name: fields for name, fields in found.items() if name not in store.fielddefs})
    unknown = sorted(name for name in types if name not in store.fielddefs)
    if unknown:
        raise UserError(f"there is no message type {', '.join(unknown)}; check its spelling and source its workspace")
    return store


def _definitions(package: str) -> Path:
    """The folder with a package's .msg files: installed (AMENT_PREFIX_PATH, this environment) or in the source tree."""
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    candidates = [Path(prefix) / "share" / package / "msg" for prefix in prefixes] + [SOURCES / package / "msg"]
    for folder in candidates:
        if any(folder.glob("*.msg")):
            return folder
    raise UserError(
        f"the message definitions of {package} are not on this machine; build it (`make ros`, or colcon) or source its "
        "workspace"
    )
