"""The stand-in's hand: franky-sim's gripper server with fingers that may get stuck."""

from __future__ import annotations

from typing import Any

from franky_sim.franka_gripper_protocol import GripperCommandStatus
from franky_sim.franka_gripper_server import FrankaGripperServer
from franky_sim.franka_server import BaseCommand

from .faults import Faults


class GripperServer(FrankaGripperServer):
    """A stuck hand takes commands, does not move, and does not say that they have ended.

    A stop, or another command, ends one that runs as aborted (franky-sim would never answer it).
    """

    def __init__(self, robot: Any, host: str, faults: Faults) -> None:
        super().__init__(robot, host)
        self._faults = faults
        self._meant: float | None = None  # m, where stuck fingers were sent
        self._held = 0.0  # m, where they are
        self.commands = 0  # moves and grasps that were begun

    def _abort(self) -> None:
        """Answer the command under way."""
        if self._pending_tcp_socket is None:
            return
        BaseCommand.send_response(
            self._pending_tcp_socket, self._pending_command_type, self._pending_command_id,
            GripperCommandStatus.kAborted, command_type_struct="H", status_type_struct="H",
        )  # fmt: skip
        self._pending_tcp_socket = self._pending_command_id = None

    def stop(self, *arguments: Any) -> None:
        self._abort()
        super().stop(*arguments)

    def _start_motion(self, *arguments: Any) -> None:
        self._abort()
        self.commands += 1
        super()._start_motion(*arguments)

    def _post_process_commands(self) -> None:
        robot = self._robot
        if self._faults.stuck_gripper:
            if self._meant is None or robot._hand_goal_width != self._held:
                self._meant, self._held = robot._hand_goal_width, robot.hand_width
            robot._hand_goal_width, self._settling_steps = self._held, 0
            return
        if self._meant is not None:  # free again: on to where it was sent
            robot._hand_goal_width, self._meant = self._meant, None
        super()._post_process_commands()
