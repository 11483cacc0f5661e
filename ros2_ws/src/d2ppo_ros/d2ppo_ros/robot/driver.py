"""A robot of one arm or two as its servo loop drives it. It knows neither ROS nor the client library: commands and
safety's heartbeat come in from any thread, references go out to `client.ArmClient`, and its own watchdog comes first.

    idle --armed--> taking --in control--> driving --disarmed--> letting go (held until at rest) --> idle

Times: the watchdog and all ages run on the machine's steady clock; references move with the robot's own clock, so that
what the arm is asked for never outruns a robot that is late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np

from d2ppo_core.action import apply_limits
from d2ppo_core.contract import ActionSpec
from d2ppo_core.rotations import rotation_of

from ..records import SECOND, ArmState, Command, Kind, RobotState, State, Target
from ..safety.kinematics import forward
from ..safety.watchdog import Order, Watchdog
from ..safety.workspace import Workspace
from .ceilings import Ceilings
from .client import ArmClient, library
from .frames import FLANGE, HAND_TCP, ArmFrames, finger_positions
from .gripper import GripperWorker
from .reading import Reading
from .reference import References
from .settings import ArmSettings
from .waypoints import PathPoint

TAKING = 2.0  # s: an arm that has not let itself be driven by then is an error


class Phase(Enum):
    """Who has the arms."""

    IDLE = "idle"
    TAKING = "taking"
    DRIVING = "driving"
    LETTING_GO = "letting go"


class Driver:
    """See the module.

    Args:
        clients: one for each arm, not yet started.
        hands: one for each arm, or none.
        clock: ns of the steady clock.
    """

    def __init__(
        self,
        settings: ArmSettings,
        action: ActionSpec,
        clients: Sequence[ArmClient],
        hands: Sequence[GripperWorker] = (),
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        s = self.settings = settings
        self.action, self.clients, self.hands, self._clock = action, list(clients), list(hands), clock
        self.frames = frames_of(s)
        ms = [round(1000 * seconds) for seconds in (s.command_hold, s.command_stop, s.command_disarm, s.lease)]
        self._watchdog = Watchdog(*ms)
        ceilings = Ceilings(s.max_speed, s.max_turn, s.max_acceleration, s.max_turn_acceleration)
        self._references = References(action, ceilings, Workspace(s), s.lag, (s.windup, s.windup_angle))
        self._lock = threading.RLock()
        self.phase, self._since = Phase.IDLE, 0
        self._order = Order.DISARMED
        self._robot_time = 0.0  # s: what the robots' clocks have gone on by since the start
        self._seen: list[float | None] = [None] * len(self.clients)
        self.late = 0  # ns, of the slowest cycle so far
        self._last_tick = 0

    def start(self) -> None:
        """Connect to everything."""
        for part in (*self.clients, *self.hands):
            part.start()

    def close(self) -> None:
        """Hold, let go, disconnect."""
        with self._lock:
            driving = self.phase is Phase.DRIVING
            self.phase = Phase.LETTING_GO
            if driving:
                self._hold()
        end = time.monotonic() + self.settings.rest_time
        while driving and time.monotonic() < end and not self._rested():
            time.sleep(0.01)
        for part in (*self.clients, *self.hands):
            part.close()

    # --- what comes in ------------------------------------------------------------------------------------------------

    def heartbeat(self, state: State) -> None:
        """Safety says how it stands."""
        with self._lock:
            self._watchdog.heartbeat(state, self._clock())

    def obey(self, command: Command, age: int) -> Command | None:
        """A command that safety let through, `age` ns after its stamp; what is taken of it, None: nothing.

        A malformed one raises a `UserError`.
        """
        with self._lock:
            order = self._watchdog.feed(command.kind, self._clock())
            if order is not Order.GO or self.phase is not Phase.DRIVING:
                return None
            if command.kind is Kind.DELTA:
                command = replace(command, action=apply_limits(np.asarray(command.action, dtype=float), self.action))
            if command.kind in (Kind.DELTA, Kind.POSE):
                self._references.obey(command, self._robot_time - age / SECOND, self._measured())
                for hand, value in zip(self.hands, self._references.grippers, strict=False):
                    hand.want(value)
            return command

    def recover(self) -> str:
        """A person asks for the robots' recovery; why it did not come about, empty: it did. Takes seconds."""
        return "; ".join(why for client in self.clients if (why := client.recover()))

    # --- the servo loop -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One cycle."""
        with self._lock:
            now = self._clock()
            gap, self._last_tick = now - (self._last_tick or now), now
            self.late = max(self.late, gap)
            self._advance_clock()
            fault = self.fault(now)
            if fault:
                self._watchdog.trip(fault, now)
            if gap > self.settings.overrun * SECOND:
                self._watchdog.trip(f"the servo loop stood still for {gap / SECOND:.2f} s", now)
            before, self._order = self._order, self._watchdog.poll(now)
            wanted = self._order is not Order.DISARMED and not fault
            {Phase.IDLE: self._idle, Phase.TAKING: self._taking, Phase.DRIVING: self._driving,
             Phase.LETTING_GO: self._letting_go}[self.phase](now, wanted, before)  # fmt: skip

    def _idle(self, now: int, wanted: bool, before: Order) -> None:
        if wanted and self._order in (Order.HOLD, Order.GO) and not any(client.busy for client in self.clients):
            for client in self.clients:
                client.take()
            self._enter(Phase.TAKING, now)

    def _taking(self, now: int, wanted: bool, before: Order) -> None:
        if all(client.driven for client in self.clients):
            self._hold()
            self._enter(Phase.DRIVING, now)
        elif not wanted or now - self._since > TAKING * SECOND:
            self._watchdog.trip("an arm does not let itself be driven", now)
            self._enter(Phase.LETTING_GO, now)

    def _driving(self, now: int, wanted: bool, before: Order) -> None:
        if not all(client.driven for client in self.clients):
            self._watchdog.trip("an arm is no longer in control", now)
            wanted = False
        if not wanted:
            self._hold()
            self._enter(Phase.LETTING_GO, now)
        elif self._order is Order.GO:
            self._send(self._references.advance(self._robot_time))
        elif before is Order.GO:
            self._hold()

    def _letting_go(self, now: int, wanted: bool, before: Order) -> None:
        """The arms are held until they stand still; then the torque motion ends."""
        if not any(client.driven or client.busy for client in self.clients):
            self._enter(Phase.IDLE, now)
            return
        if self._rested() or now - self._since > self.settings.rest_time * SECOND:
            for client in self.clients:
                if client.driven:
                    client.let_go()

    def _rested(self) -> bool:
        return all(self._speed(number) < self.settings.rest_speed for number in range(len(self.clients)))

    def _enter(self, phase: Phase, now: int) -> None:
        self.phase, self._since = phase, now

    def _hold(self) -> None:
        """At once: every arm stays where it is measured."""
        self._send(self._references.hold(self._robot_time, self._measured()))

    def _send(self, points: Sequence[PathPoint]) -> None:
        for client, frames, point in zip(self.clients, self.frames, points, strict=True):
            client.send(frames.ee(point.position, point.rotation), frames.ee_twist(point.twist, point.rotation))

    def _advance_clock(self) -> None:
        """The robots' clocks go on together; the slowest counts."""
        steps = []
        for number, client in enumerate(self.clients):
            reading, seen = client.reading, self._seen[number]
            time_now = None if reading is None else reading.time
            steps.append(0.0 if seen is None or time_now is None else max(0.0, time_now - seen))
            self._seen[number] = time_now
        self._robot_time += min(steps)

    def _speed(self, number: int) -> float:
        """m/s of an arm's EE, as its reading says; 0 where there is none."""
        reading = self.clients[number].reading
        if reading is None:
            return 0.0
        twist = forward(reading.q, FLANGE + HAND_TCP)[2] @ reading.dq
        return float(np.linalg.norm(twist[:3]))

    # --- what is measured ---------------------------------------------------------------------------------------------

    def fault(self, now: int) -> str:
        """What forbids to drive any arm; empty: nothing."""
        return "; ".join(why for client in self.clients if (why := client.fault(now)))

    @property
    def stopped(self) -> str:
        """Why the watchdog has latched a stop; empty: it has not."""
        return self._watchdog.fault

    @property
    def changed(self) -> int:
        """Cycles in which a ceiling held a reference back."""
        return self._references.changed

    def readings(self) -> list[Reading | None]:
        """Each arm's newest now. What belongs together is said of the same ones: others may come meanwhile."""
        return [client.reading for client in self.clients]

    def _measured(self) -> list[ArmState]:
        """Every arm now, for the references; stamps do not matter there."""
        return [self._arm(n, reading, 0, "") for n, reading in enumerate(self.readings()) if reading]

    def arms(self, readings: Sequence[Reading | None], stamp: Callable[[int], int], now: int) -> list[ArmState]:
        """Every arm that has been heard; `stamp` turns the steady clock's ns into the node's."""
        found = []
        for number, (client, reading) in enumerate(zip(self.clients, readings, strict=True)):
            if reading is not None:
                fault = client.fault(now)
                found.append(self._arm(number, reading, stamp(reading.received), fault or self.stopped, fault))
        return found

    def _arm(self, number: int, reading: Reading, stamp: int, why: str, fault: str = "") -> ArmState:
        frames = self.frames[number]
        position, rotation = frames.site(reading.ee)
        wrench = frames.site_wrench(reading.wrench, rotation)
        return ArmState(stamp, reading.q, reading.dq, position, rotation, wrench, ok=not fault, fault=why)

    def state(self, readings: Sequence[Reading | None], stamp: int, count: int) -> RobotState | None:
        """The contract's keys, or None while something that belongs to them has never been heard."""
        values: dict[str, np.ndarray] = {}
        for number, (reading, frames) in enumerate(zip(readings, self.frames, strict=True)):
            if reading is None:
                return None
            values[f"robot{number}_eef_pos"] = frames.site(reading.ee)[0]
            values[f"robot{number}_eef_quat"] = frames.hand_quaternion(reading.ee, reading.q)
            if self.hands:
                hand = self.hands[number].state
                if hand is None:
                    return None
                values[f"robot{number}_gripper_qpos"] = finger_positions(hand.width)
        return RobotState(stamp, "", count, values)

    def sent(self, stamp: int, command: Command | None) -> Command | None:
        """What the controllers have really been given, as a POSE of the last command's origin; None: nothing."""
        with self._lock:
            if self.phase is not Phase.DRIVING:
                return None
            points, grips = self._references.points(), self._references.grippers
        targets = tuple(
            Target(p.position, rotation_of(p.rotation).as_quat(), p.twist, np.zeros(6), g)
            for p, g in zip(points, grips, strict=True)
        )
        about = command or Command(stamp, "", 0, Kind.POSE)
        return replace(about, stamp=stamp, kind=Kind.POSE, targets=targets, action=np.zeros(0))


def frames_of(settings: ArmSettings) -> list[ArmFrames]:
    """Each arm's place in the world."""
    bases = np.reshape(settings.base_position, (-1, 3))  # [3 n] -> [n, 3]
    return [ArmFrames(bases[n], settings.base_yaw[n]) for n in range(len(settings.hosts))]


def robot_of(settings: ArmSettings, action: ActionSpec, clock: Callable[[], int] = time.monotonic_ns) -> Driver:
    """The driver of real arms (or of stand-ins: they are the same to it)."""
    franky = library(settings.robot_model)
    clients = [ArmClient(settings, number) for number in range(len(settings.hosts))]
    hands: list[Any] = []
    if settings.gripper:
        hands = [
            GripperWorker(lambda host=host: franky.Gripper(host), settings, f"hand {number}")
            for number, host in enumerate(settings.hosts)
        ]
    return Driver(settings, action, clients, hands, clock)
