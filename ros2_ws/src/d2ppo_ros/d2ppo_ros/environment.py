"""What every node's process finds around it: our launch and parameter files, and how it talks to the others.

Nodes talk through sockets of this machine alone. Fast DDS would use shared memory as well, and a node that dies by
`kill -9` can leave a lock in it: whoever sends to that node waits a second for each message, its restarted self too.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from d2ppo_core.errors import UserError

BRINGUP = "d2ppo_bringup"  # the ament package of launch files and parameter files
THIS_MACHINE, NETWORK = "this_machine.xml", "network.xml"  # profiles of Fast DDS
PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # its two names of one setting
RANGE, ONLY = "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY"  # of ROS; the second is Humble's
PEERS = "ROS_STATIC_PEERS"


def share() -> Path:
    """Where launch and parameter files lie: in ROS's index, beside an installed package, or in the checkout."""
    ament = [Path(prefix) / "share" / BRINGUP for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)]
    checkout = Path(__file__).resolve().parents[4] / "launch"
    for folder in (*ament, checkout, Path(sysconfig.get_paths()["data"]) / "share" / BRINGUP):
        if (folder / "params").is_dir():
            return folder
    raise UserError(f"the parameter files of {BRINGUP} are missing; build launch/ with colcon, or reinstall d2ppo")


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For the nodes' processes: `base`, with sockets as `_transport` says; idle threads sleep unless it says no."""
    ours = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    return {**ours, **base, **_transport(base)}


def _transport(base: Mapping[str, str]) -> dict[str, str]:
    """By our profile of Fast DDS; with the user's profile, or another DDS, by ROS's own word for this machine alone."""
    here, far = (str(share() / "params" / name) for name in (THIS_MACHINE, NETWORK))
    fast = "fastrtps" in (base.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp")
    if not fast or any(base.get(name, "") not in ("", here, far) for name in PROFILES):
        return {} if base.get(RANGE) or base.get(ONLY) else _range(base, "LOCALHOST", "1")
    if base.get(RANGE) == "SUBNET" or base.get(PEERS):
        return dict.fromkeys(PROFILES, far) | _range(base, "SUBNET", "0")
    # not ROS's LOCALHOST: it adds shared memory to the profile, and sockets once more, each message then sent twice
    return dict.fromkeys(PROFILES, here) | _range(base, "SYSTEM_DEFAULT", "0")


def _range(base: Mapping[str, str], words: str, only: str) -> dict[str, str]:
    """The same for ROS of today and for Humble, whose word also others still obey."""
    return {RANGE: words} | ({ONLY: only} if ONLY in base or base.get("ROS_DISTRO") == "humble" else {})
