"""One stand-in arm behind the FR3's protocol: franky-sim's server with faults, and with checks as the robot has them.

What franky-sim leaves out and drivers must survive: reflexes, a pressed stop button, external forces, collision
thresholds, joints beyond their limits, torques that jump, 20 lost commands in a row, a connection that hangs, falls
silent or breaks. Made for franky-sim 1.0.4, whose protected names it uses.
"""

from __future__ import annotations

import select
import struct
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from franky_sim.franka_robot_protocol import (
    AutomaticErrorRecoveryCommand,
    AutomaticErrorRecoveryStatus,
    MoveCommand,
    MoveStatus,
    RobotCommand,
    SetCollisionBehaviorCommand,
    UDPCommand,
)
from franky_sim.franka_robot_server import ControlMode, FrankaRobotServer
from franky_sim.franka_server import BaseCommand, Command, ConnectCommand, ConnectStatus, MessageHeader

from ..robot.limits import TORQUE_RATE
from ..safety.kinematics import LIMITS
from .faults import Faults
from .gripper_server import GripperServer
from .physics import ArmPhysics
from .wire import StateWriter, flags

LOST = 20  # commands in a row until the robot gives up
MODES = {"idle": 1, "move": 2, "reflex": 4, "user_stopped": 5}  # as the protocol numbers them
EXTERNAL, OTHER, NONE, IDLE = 2, 3, 5, 0  # controller and motion generator modes
LIMITS_FR3 = LIMITS["fr3"]


@dataclass
class _Connect(ConnectCommand):
    """Connect, with the answer that a robot of another server version gives."""

    def handle(self, server: ArmServer, command_type_struct: str = "I") -> None:
        if not server.faults.version:
            super().handle(server, command_type_struct)
            return
        header = MessageHeader(self.command_type, self.command_id, 3).to_bytes(command_type_struct)
        answer = struct.pack("<BH", ConnectStatus.kIncompatibleLibraryVersion.value, server.faults.version)
        self.client_socket.sendall(header + answer)


@dataclass
class _Move(MoveCommand):
    """Move, which an arm that is stopped rejects."""

    def handle(self, server: ArmServer) -> None:
        if server.faults.stopped:
            self.reply(MoveStatus.kCommandNotPossibleRejected)
        else:
            super().handle(server)


@dataclass
class _Recover(AutomaticErrorRecoveryCommand):
    """Automatic error recovery: ends a reflex, unless somebody must come."""

    def handle(self, server: ArmServer) -> None:
        if server.faults.user_stopped:
            self.reply(AutomaticErrorRecoveryStatus.kCommandNotPossibleRejected)
        elif server.faults.recovery == "manual" and server.faults.errors:
            self.reply(AutomaticErrorRecoveryStatus.kManualErrorRecoveryRequiredRejected)
        else:
            server.faults.errors.clear()
            self.reply(AutomaticErrorRecoveryStatus.kSuccess)


@dataclass
class _Collision(SetCollisionBehaviorCommand):
    """Collision thresholds, which count here."""

    def handle(self, server: ArmServer) -> None:
        server.force_threshold = np.array(self.upper_force_thresholds_nominal)
        super().handle(server)


class ArmServer(FrankaRobotServer):
    """See the module.

    Args:
        patience: s of wall time that a tick waits for the client's command before it counts as lost.
    """

    def __init__(self, robot: ArmPhysics, host: str, patience: float = 0.005) -> None:
        self.faults, self.physics, self.patience = Faults(), robot, patience
        self.force_threshold = np.full(6, np.inf)
        self._writer, self._lost, self._answered, self._hand = StateWriter(), 0, True, None
        self._torque = np.zeros(7)
        self.worst_lost = 0  # commands lost in a row
        super().__init__(robot, [host])
        commands = self._FrankaServer__command_class_map
        commands |= {Command.kConnect: _Connect, RobotCommand.kMove: _Move,
                     RobotCommand.kAutomaticErrorRecovery: _Recover,
                     RobotCommand.kSetCollisionBehavior: _Collision}  # fmt: skip

    def _bind_children(self, hostname: str) -> None:
        self._hand = self._FrankaRobotServer__gripper_server = GripperServer(self.physics, hostname, self.faults)
        self._hand.init()

    @property
    def moving(self) -> bool:
        """Whether a motion runs."""
        return self.current_motion_id > 0

    @property
    def mode(self) -> str:
        """As the robot names it."""
        if self.faults.user_stopped:
            return "user_stopped"
        return "reflex" if self.faults.errors else "move" if self.moving else "idle"

    @property
    def clock(self) -> float:
        """s: `time` of the last state that was sent; it begins anew with each connection."""
        return max(0, self._FrankaServer__message_id - 1) / 1000

    # --- one tick -----------------------------------------------------------------------------------------------------

    def process_commands(self) -> None:
        """Hear the client: an arm in motion waits a little for the command that answers its last state."""
        if self.faults.deaf and not self.udp_connected:  # nobody is heard, but the arm goes on being held
            self._pre_process_commands()
            self._post_process_commands()
            return
        if self.moving and not self._answered and time.monotonic() >= self.faults.silent_until:
            select.select([self._FrankaServer__udp_socket, self._tcp_socket], [], [], self.patience)
        super().process_commands()

    def _pre_process_commands(self) -> None:
        super()._pre_process_commands()
        self._answered = False

    def _handle_udp_command(self, command_data: bytes) -> None:
        self._answered = True
        if self.moving:
            self._check_torque(UDPCommand.from_bytes(command_data))
        super()._handle_udp_command(command_data)

    def _post_process_commands(self) -> None:
        """What the robot itself would notice; then its controller acts."""
        self._lost = 0 if self._answered or not self.moving else self._lost + 1
        self.worst_lost = max(self.worst_lost, self._lost)
        if self._lost > LOST:
            self.faults.reflex = "communication_constraints_violation"
        self.faults.reflex = self.faults.reflex or self._violation()
        if self.faults.reflex and not self.faults.errors:
            self.faults.errors = [self.faults.reflex]
        self.faults.reflex = ""
        if self.faults.stopped and self.moving:
            self._abort()
        torque = self._FrankaRobotServer__control_mode in (ControlMode.TORQUE, ControlMode.IDLE)
        self.physics.whole = not torque
        super()._post_process_commands()

    def start_motion(self, controller_mode: Any, motion_generator_mode: Any, motion_id: int) -> None:
        """A new motion owes no commands yet."""
        self._lost, self._answered, self._torque = 0, True, np.zeros(7)
        super().start_motion(controller_mode, motion_generator_mode, motion_id)

    def _abort(self) -> None:
        """End the motion as the robot does: the brakes are ideal here."""
        motion, self._lost = self.current_motion_id, 0
        status = MoveStatus.kPreempted if self.faults.user_stopped else MoveStatus.kReflexAborted
        BaseCommand.send_response(self._tcp_socket, RobotCommand.kMove, motion, status)
        self.reset_current_motion_id()
        self.stop_motion(False)

    # --- what the robot checks ----------------------------------------------------------------------------------------

    def _check_torque(self, command: UDPCommand) -> None:
        """Of torque control: Franka's largest rate. A lost command leaves more time for the same change."""
        torque, cycles = np.array(command.tau_J_d), self._lost + 1
        if self._FrankaRobotServer__control_mode is ControlMode.TORQUE and not command.torque_command_finished:
            if np.abs(torque - self._torque).max() > 1.001 * TORQUE_RATE * 0.001 * cycles:
                self.faults.reflex = "controller_torque_discontinuity"
            self._torque = torque

    def _violation(self) -> str:
        """Name of the limit that the arm has run into, if any."""
        if not self.moving:
            return ""
        q, dq = self.physics.joints()
        if (q < LIMITS_FR3.low).any() or (q > LIMITS_FR3.high).any():
            return "joint_position_limits_violation"
        if (np.abs(dq) > LIMITS_FR3.speed).any():
            return "joint_velocity_violation"
        force = np.abs(self.faults.force(self.physics.seconds))
        return "cartesian_reflex" if (force > self.force_threshold).any() else ""

    # --- what the robot says ------------------------------------------------------------------------------------------

    def send_state(self) -> None:
        """One state, unless it has fallen silent; its clock goes on."""
        if time.monotonic() < self.faults.silent_until:
            self._FrankaServer__message_id += 1
            return
        super().send_state()

    def _get_state_bytes(self) -> bytes:
        faults, physics = self.faults, self.physics
        reflex = flags(faults.errors)
        if physics.whole:
            state = self.robot_state
            self._writer.set_from(state)
            modes = state.motion_generator_mode.value, state.controller_mode.value
        else:
            self._write(physics)
            modes = (NONE, EXTERNAL) if self.moving else (IDLE, OTHER)
        wrench = faults.force(physics.seconds)
        self._writer.set(O_F_ext_hat_K=wrench, K_F_ext_hat_K=wrench, tau_ext_hat_filtered=physics.joint_torque(wrench))
        return self._writer.bytes(*modes, reflex, reflex, MODES[self.mode], faults.success if self.moving else 0.0)

    def _write(self, physics: ArmPhysics) -> None:
        q, dq = physics.joints()
        pose = physics.pose()
        elbow = (q[2], 1.0 if q[3] > 0 else -1.0)
        self._writer.set(
            O_T_EE=pose, O_T_EE_d=pose, O_T_EE_c=pose, q=q, q_d=q, dq=dq, dq_d=dq, theta=q, dtheta=dq, elbow=elbow,
            elbow_d=elbow, elbow_c=elbow, tau_J=physics.torque(), tau_J_d=self._torque, ddq_d=0.0, O_dP_EE_d=0.0,
            O_dP_EE_c=0.0, O_ddP_EE_c=0.0, delbow_c=0.0, ddelbow_c=0.0, **physics.constants(),
        )  # fmt: skip

    def drop(self) -> None:
        """Break the connection."""
        self.reset_state()
