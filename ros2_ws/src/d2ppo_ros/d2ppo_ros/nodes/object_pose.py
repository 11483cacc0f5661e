"""Where a tagged object is: camera images -> AprilTags -> its pose in the world and the policy's `object` vector."""

from __future__ import annotations

import sys
from functools import partial

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from d2ppo_core.errors import UserError

from .. import codec, decoding, topics
from ..objects.layout import KEY
from ..objects.scene import intrinsics_of, read_cameras, read_object
from ..objects.settings import ObjectPoseSettings
from ..objects.tracker import GripHistory, ObjectEstimate, ObjectTracker
from ..parameters import declare
from ..records import RobotState
from ..runtime import Listener, run, speaker

POSE = "object/{}/pose"  # PoseStamped of the object by its name
REPORT = 1.0  # s between diagnostics


class ObjectPoseNode(Node):
    """Publishes `object/NAME/pose`, and `object/state` while the robot's state is heard. A stale pose is never sent."""

    def __init__(self) -> None:
        super().__init__("object_pose")
        self.settings = options = declare(self, ObjectPoseSettings)
        if not (options.object_file and options.cameras_file):
            raise UserError("object_pose: set the parameters object_file and cameras_file to the files that say where "
                            "the object's tags and the cameras are")
        self.tracker = ObjectTracker(read_object(options.object_file), read_cameras(options.cameras_file), options)
        self.grips = GripHistory(options.state_tolerance)
        self._images, self._unpaired, self._fault, self._trial = 0, 0, "", None
        name = self.tracker.thing.name
        self._pose = self.create_publisher(PoseStamped, POSE.format(name), topics.NEWEST)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", topics.EVERY)
        self._say_object = speaker(self, RobotState, topics.OBJECT, topics.EVERY)
        self._listen()
        self.create_timer(REPORT, self._report)

    def _listen(self) -> None:
        options, listener = self.settings, Listener(self, self._on_fault)
        profile = topics.NEWEST if options.reliable else topics.SENSOR
        listener.hear(RobotState, topics.STATE, self._on_state, topics.EVERY)
        for name in self.tracker.cameras:
            images, infos = (topic.replace("{}", name) for topic in (options.image_topic, options.info_topic))
            listener.hear_message(Image, images, partial(self._on_image, name), profile)
            listener.hear_message(CameraInfo, infos, partial(self._on_info, name), profile)

    def _on_fault(self, text: str) -> None:
        self._fault = text

    def _on_info(self, camera: str, message: CameraInfo) -> None:
        if camera not in self.tracker.intrinsics:
            sees = intrinsics_of(
                message.width, message.height, message.k, message.distortion_model, message.d, camera
            )
            self.tracker.learn(camera, sees)

    def _on_state(self, state: RobotState) -> None:
        if state.trial != self._trial:
            self._trial = state.trial
            self.tracker.begin()
        if self.settings.task != "none":
            self.grips.add(state)

    def _on_image(self, camera: str, message: Image) -> None:
        picture, _ = decoding.picture_of(message)
        self._images += 1
        estimate = self.tracker.see(camera, decoding.stamp_of(message), picture)
        if estimate is None:
            return
        self._fault = ""
        self._pose.publish(codec.pose_stamped(estimate.stamp, estimate.pose.position, estimate.quaternion))
        if self.settings.task != "none":
            self._publish_vector(estimate)

    def _publish_vector(self, estimate: ObjectEstimate) -> None:
        vector, state = self.grips.vector(self.settings.task, estimate), self.grips.newest
        if vector is None or state is None:
            self._unpaired += 1
            return
        self._say_object(RobotState(estimate.stamp, state.trial, state.step, {KEY: vector}))

    def _report(self) -> None:
        """What was seen last, how well it fits, and whether it is stale."""
        now = self.get_clock().now().nanoseconds
        stale, last = self.tracker.stale(now), self.tracker.last
        blind = sorted(set(self.tracker.cameras) - set(self.tracker.intrinsics))
        values = {
            "images": self._images, "age": f"{self.tracker.age(now):.3f} s", "without a robot state": self._unpaired,
            "cameras without intrinsics": ", ".join(blind) or "none", "last fault": self._fault or "none",
        }
        if last is not None:
            values |= {
                "tags": ", ".join(f"{s.camera}/{s.tag}" for s in last.fused.used),
                "tags rejected": ", ".join(f"{s.camera}/{s.tag}" for s in last.fused.rejected) or "none",
                "reprojection error": f"{last.fused.error:.3f} px", "spread": f"{1e3 * last.fused.spread:.2f} mm",
            }
        level = DiagnosticStatus.WARN if blind or self._fault else DiagnosticStatus.OK
        status = DiagnosticStatus(
            level=DiagnosticStatus.STALE if stale else level, name=f"object {self.tracker.thing.name}",
            message="no tag is seen" if stale else "tracked",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        self._diagnostics.publish(DiagnosticArray(header=codec.header(now), status=[status]))


def main() -> int:
    return run(ObjectPoseNode)


if __name__ == "__main__":
    sys.exit(main())
