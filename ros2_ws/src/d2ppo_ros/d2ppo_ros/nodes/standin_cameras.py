"""What the cameras of a stand-in would see: the simulator's scene, drawn with the stand-in's arms and objects in it.

Pictures go to `standin/CAMERA/picture`, where the driver's software cameras take them as a sensor takes light. At the
contract's size and field of view the policy sees pixel for pixel what the simulator would show it. Only stand-ins may
know the simulator.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import Image

from d2ppo_core.errors import UserError
from d2ppo_core.tasks import load_task, observation_spec
from d2ppo_sim.staged import StagedScene

from .. import codec, topics
from ..parameters import declare, parameter
from ..realsense.stage import Placement, Stage
from ..runtime import run

SAID = 5.0  # s between two complaints


@dataclass(frozen=True)
class StandinCamerasSettings:
    """Parameters of the node that draws."""

    task: str = parameter("lift_image", "whose scene and cameras these are")
    cameras: list[str] = parameter([], "which of the task's cameras; empty: all")
    control: str = parameter("127.0.0.2:1400", "where the stand-in's arm says how it stands, HOST:PORT")
    width: int = parameter(0, "of the pictures; 0: the contract's", unit="pixels", low=0, high=4096)
    height: int = parameter(0, "of the pictures; 0: the contract's", unit="pixels", low=0, high=4096)
    rate: float = parameter(20.0, "pictures a second", unit="Hz", low=1.0, high=60.0)


class StandinCamerasNode(Node):
    """See the module. Everything is done by the main thread, which owns the OpenGL context."""

    def __init__(self) -> None:
        super().__init__("standin_cameras")
        self.settings = declare(self, StandinCamerasSettings)
        task = load_task(self.settings.task)
        known = {camera.name: camera for camera in observation_spec(task).cameras}
        if absent := [name for name in self.settings.cameras if name not in known]:
            raise UserError(
                f"task '{self.settings.task}' has no camera '{absent[0]}'; it has {', '.join(known) or 'none'}"
            )
        self.cameras = [known[name] for name in self.settings.cameras or known]
        self.scene = StagedScene(task.environment)
        self.stage = Stage(self.settings.control, len(self.scene.facts.arms), self.scene.objects)
        self._pictures = {
            camera.name: self.create_publisher(Image, topics.STANDIN_PICTURE.format(camera.name), topics.NEWEST)
            for camera in self.cameras
        }
        self.placement: Placement | None = None  # the last one that was drawn
        self._said = 0.0
        self.create_timer(1 / self.settings.rate, self._film)

    def _film(self) -> None:
        """One picture of each camera; none while the stand-in is silent."""
        try:
            placement, stamp = self.stage.look(), self.get_clock().now().nanoseconds
        except OSError as error:
            if time.monotonic() - self._said > SAID:
                self._said = time.monotonic()
                self.get_logger().warning(f"no pictures: {error}")
            return
        self.placement = placement
        for number, (q, width) in enumerate(placement.arms):
            self.scene.put_arm(number, q, width)
        for name, pose in placement.objects.items():
            self.scene.put_object(name, *pose)
        for camera in self.cameras:
            self._send(camera, stamp)

    def _send(self, camera: Any, stamp: int) -> None:
        height, width = self.settings.height or camera.height, self.settings.width or camera.width
        picture = self.scene.picture(camera, height, width)
        self._pictures[camera.name].publish(codec.image_msg(stamp, camera.name, picture))

    def close(self) -> None:
        """Hang up, and free the OpenGL context."""
        self.stage.close()
        self.scene.close()


def main() -> int:
    return run(StandinCamerasNode)


if __name__ == "__main__":
    sys.exit(main())
