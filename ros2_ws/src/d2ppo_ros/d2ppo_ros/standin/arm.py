"""A Franka arm that is not there: the FR3's protocol, MuJoCo's physics, and faults on request, in a process of its own.

    python -m d2ppo_ros.standin.arm host=127.0.0.2 control=1400

Time is the robot's own: an arm in motion waits for the command that answers its last state, up to 5 ms, and a machine
that cannot keep up makes the clock slower than the wall's. Whoever judges a motion reads the state's time.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from d2ppo_core.errors import UserError

from .arm_server import ArmServer
from .control import Answer, ControlServer
from .faults import RECOVERIES, error_name, six
from .physics import Place, Scene
from .settings import StandInSettings, parse

TICK = 0.001  # s of robot time
BEHIND = 0.05  # s: further behind than this, the wall clock is not caught up with any more
TRACE = 3_600_000  # ticks that are remembered: an hour, 0.4 GB
ROW = 11  # numbers of a tick and an arm


class StandIn:
    """The arms of one robot, their scene, and the loop that moves time."""

    def __init__(self, settings: StandInSettings) -> None:
        self.settings = settings
        hosts = settings.host.split(",")
        if len(settings.base) < 3 * len(hosts) or len(settings.yaw) < len(hosts):
            raise UserError(f"the stand-in has {len(hosts)} arms; give base 3 numbers and yaw one number for each")
        places = [Place(tuple(settings.base[3 * n : 3 * n + 3]), settings.yaw[n]) for n in range(len(hosts))]
        self.scene = Scene(places, None if settings.table == -1.0 else settings.table, settings.cube)
        self.scene.init()
        self.arms = [ArmServer(arm, host) for arm, host in zip(self.scene.arms, hosts, strict=True)]
        for arm, host in zip(self.arms, hosts, strict=True):
            try:
                arm.init()
            except OSError as error:
                raise UserError(f"{host}:1337 is not free ({error}); is another stand-in running?") from error
        self.scene.start()
        self.control = ControlServer(hosts[0], settings.control, self.handle)
        self._trace: deque[bytes] | None = None
        self._speed, self._running = settings.speed, threading.Event()
        self._running.set()
        self.tick()  # a whole one, so that every field has a value

    # --- time ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Tick until `stop`."""
        due = time.monotonic()
        while self._running.is_set():
            self.tick()
            if not self._speed:
                continue
            due += TICK / self._speed
            ahead = due - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            elif ahead < -BEHIND:
                due = time.monotonic()  # slower than the wall's clock: so be it

    def tick(self) -> None:
        """1 ms of robot time."""
        for arm in self.arms:
            arm.process_commands()
        for arm in self.arms:
            arm.physics.push(arm.faults.force(arm.physics.seconds))
        self.scene.step()
        for arm in self.arms:
            arm.send_state()
        if self._trace is not None:
            self._trace.append(np.array(self._row()).tobytes())
        self.control.serve()

    def stop(self) -> None:
        """From another thread, or a signal."""
        self._running.clear()

    def close(self) -> None:
        """Free ports."""
        self.control.close()
        for arm in self.arms:
            arm.cleanup()
        self.scene.cleanup()

    def _row(self) -> list[float]:
        """Of each arm, its client's clock in s, then O_T_EE's position (3,) and q (7,)."""
        row = []
        for arm in self.arms:
            row += [arm.clock, *arm.physics.pose()[12:15], *arm.physics.joints()[0]]
        return row

    # --- what may be asked --------------------------------------------------------------------------------------------

    def handle(self, request: dict[str, Any]) -> Answer:
        """Carry out one request; the answer has the time of the client's last state."""
        do, number = request["do"], request.get("arm", 0)
        asked = getattr(self, f"_do_{do}", None) if isinstance(do, str) and not do.startswith("_") else None
        if asked is None:
            known = ", ".join(name[4:] for name in dir(self) if name.startswith("_do_"))
            raise UserError(f"there is no request '{do}'; choose one of {known}")
        if not isinstance(number, int) or not 0 <= number < len(self.arms):
            raise UserError(f"there is no arm {number}; there are {len(self.arms)}")
        arm = self.arms[number]
        return {"time": arm.clock, **(asked(arm, request) or {})}

    def _do_state(self, arm: ArmServer, request: dict[str, Any]) -> Answer:
        """Everything that is true of an arm at this tick."""
        q, dq = arm.physics.joints()
        return {"q": q.tolist(), "dq": dq.tolist(), "pose": arm.physics.pose().tolist(), "mode": arm.mode,
                "errors": list(arm.faults.errors), "width": arm.physics.hand_width, "lost": arm.worst_lost,
                "connected": arm.udp_connected, "grips": arm.gripper_server.commands}  # fmt: skip

    def _do_reflex(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """The robot aborts its motion, by this error or a Cartesian reflex."""
        arm.faults.reflex = error_name(request.get("error", "cartesian_reflex"))

    def _do_user_stop(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """Somebody presses (or with on=false releases) the stop button."""
        arm.faults.user_stopped = bool(request.get("on", True))

    def _do_recovery(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """What automatic recovery will answer."""
        if request["answer"] not in RECOVERIES:
            raise UserError(f"a recovery answers {' or '.join(RECOVERIES)}")
        arm.faults.recovery = request["answer"]

    def _do_force(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """Push at the EE with a wrench (6,) in the base's frame for some seconds of robot time."""
        arm.faults.wrench = six(request["wrench"])
        arm.faults.wrench_until = arm.physics.seconds + float(request.get("seconds", 0.5))

    def _do_silence(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """No states for some seconds of wall time."""
        arm.faults.silent_until = time.monotonic() + float(request["seconds"])

    def _do_drop(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """The connection breaks."""
        arm.drop()

    def _do_deaf(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """New connections hang."""
        arm.faults.deaf = bool(request.get("on", True))

    def _do_version(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """Speak another server version; 0: the real one."""
        arm.faults.version = int(request["version"])

    def _do_success(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """The share of commands that came in time."""
        arm.faults.success = float(request["rate"])

    def _do_gripper(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """Stuck fingers, or free ones."""
        arm.faults.stuck_gripper = bool(request["stuck"])

    def _do_place(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """Put an idle arm somewhere at once, and with `width` (m) its fingers."""
        if arm.moving:
            raise UserError("the arm is in motion; let go of it first")
        data, physics = self.scene.data, arm.physics
        data.qpos[physics._qpos_addrs] = request["q"]
        data.qvel[physics._dof_addrs] = 0.0
        if "width" in request:
            data.qpos[physics._finger_qpos_addrs] = request["width"] / 2
            data.qvel[physics._finger_dof_addrs] = 0.0
            physics._hand_goal_width = float(request["width"])
        arm.stop_motion(False)

    def _do_cube(self, arm: ArmServer, request: dict[str, Any]) -> Answer:
        """Where the cube is; with `position` (and `quaternion` xyzw) it is put there."""
        if not self.settings.cube:
            raise UserError("there is no cube; start the stand-in with cube=true")
        if "position" in request:
            self.scene.put_cube(request["position"], request.get("quaternion", [0, 0, 0, 1]))
        position, quaternion = self.scene.body("cube")
        return {"position": position.tolist(), "quaternion": quaternion.tolist()}

    def _do_speed(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """Robot time to wall time."""
        self._speed = float(request["speed"])

    def _do_record(self, arm: ArmServer, request: dict[str, Any]) -> None:
        """Remember every tick from now on."""
        self._trace = deque(maxlen=TRACE)

    def _do_trace(self, arm: ArmServer, request: dict[str, Any]) -> Answer:
        """What was remembered of an arm since `record`: rows of time, position (3,), q (7,).

        From tick `first` on, at most `count` of them; `ticks` says how many there are.
        """
        trace, first = self._trace or deque(), int(request.get("first", 0))
        chosen = b"".join(islice(trace, first, first + int(request.get("count", TRACE))))
        rows = np.frombuffer(chosen).reshape(-1, ROW * len(self.arms))  # [T * 11 arms] -> [T, 11 arms]
        column = ROW * self.arms.index(arm)
        return {"rows": rows[:, column : column + ROW].tolist(), "ticks": len(trace)}


def main(words: Sequence[str]) -> int:
    """Run until a signal."""
    try:
        standin = StandIn(parse(words))
    except UserError as error:
        print(f"d2ppo: {error}", file=sys.stderr)
        return 2
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: standin.stop())
    host, port = standin.control.address
    print(f"stand-in: {standin.settings.host}, faults at {host}:{port}", flush=True)
    try:
        standin.run()
    finally:
        standin.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
