"""The stand-in arm (`d2ppo_ros.standin.arm`) with its settings as ROS parameters, so that a launch can start it.

It speaks the robot's own protocol and no topic: the driver's node finds it at its address, as it would find a robot.
"""

from __future__ import annotations

import sys
import threading

from rclpy.node import Node

from ..parameters import declare
from ..runtime import run
from ..standin.arm import StandIn
from ..standin.settings import StandInSettings


class StandInNode(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("standin_arm")
        self.standin = StandIn(declare(self, StandInSettings))
        self.finished, self.code = threading.Event(), 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="robot time")
        self._thread.start()
        host, port = self.standin.control.address
        self.get_logger().info(f"a stand-in arm is at {self.standin.settings.host}, its faults at {host}:{port}")

    def _run(self) -> None:
        try:
            self.standin.run()
        except Exception as error:
            self.get_logger().fatal(f"the stand-in failed: {error!r}")
            self.code = 1
            self.finished.set()
            raise

    def close(self) -> None:
        """End its time, free its ports."""
        self.standin.stop()
        self._thread.join(2.0)
        self.standin.close()


def main() -> int:
    return run(StandInNode)


if __name__ == "__main__":
    sys.exit(main())
