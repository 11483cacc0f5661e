"""Two systems on one ROS domain would move one robot in turns, each by what the other one's cameras see. So whoever
brings nodes up looks first whether nodes of these names are there. `python -m d2ppo_ros.alone NAME ...` prints those.

It is asked in a process of its own, so that the one that starts and stops the nodes never joins their graph.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2ppo_core.errors import UserError

if TYPE_CHECKING:
    from .graph import System  # it knows torch, and the process that looks need not

LOOKS = 40  # 0.05 s apart: nodes of one machine are discovered within a few tenths, and an overloaded one looks longer


def require_alone(system: System) -> None:
    """Raises a `UserError` where a node of this system is already running on its ROS domain."""
    command = [sys.executable, "-m", "d2ppo_ros.alone", *(process.name for process in system.processes)]
    answer = subprocess.run(command, check=False, env=system.environment, capture_output=True, text=True)
    if answer.returncode:
        why = (answer.stderr.strip() or "no reason given").splitlines()[-1]
        raise UserError(f"ROS does not start here ({why}); run `make ros`, or source ROS's setup file (docs/ros.md)")
    if found := answer.stdout.split():
        domain = system.environment.get("ROS_DOMAIN_ID", "0")
        raise UserError(
            f"on ROS domain {domain} there is {', '.join(found)} already, and two systems must not move one robot; "
            "stop the other one, or choose another domain with domain=NUMBER"
        )


def seen(names: Sequence[str]) -> list[str]:
    """Which of these nodes are there, as they are called with their namespace."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("looking_for_others", start_parameter_services=False, enable_rosout=False)
    found: set[str] = set()
    for _ in range(LOOKS):
        time.sleep(0.05)
        found = {f"{space.rstrip('/')}/{name}" for name, space in node.get_node_names_and_namespaces() if name in names}
        if found:
            break
    node.destroy_node()
    rclpy.shutdown()
    return sorted(found)


if __name__ == "__main__":
    print(*seen(sys.argv[1:]))
