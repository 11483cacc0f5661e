"""What may go wrong while the arm moves, and what is expected then: stated here, before anything is measured.

The arm moves under the profile `sim` in real time with chunks of 4 steps. Each time below is the sum of the limit that
notices the fault (`d2ppo_ros.safety.settings`, `.watchdog`, `executor.settings`) and of what follows from it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from std_msgs.msg import Empty

from d2ppo_core.files import sha256
from d2ppo_ros import graph, topics
from d2ppo_ros.records import SECOND, Chunk, ChunkRequest, Command, Kind, State
from ros_observer import wait
from ros_rig import CAMERA, DRIFT, Rig, drifting_policy

SETTLE = 0.6  # s that the simulated controller needs to bring the arm to rest once it is told to hold
FAST = 1.0  # s: the same from the highest speed that clipped actions reach
SLACK = 0.25  # s for messages, ticks and a machine that has other things to do
CHUNK = 0.2  # s that a chunk of 4 steps lasts
STRAY = 0.003  # m: what the controller may creep after that; the policy's drift takes 0.05 s for it
NODES = {"camera": f"camera_{CAMERA}"} | {name: name for name in ("policy", "executor", "safety", "trial", "recorder")}
# What a busy machine may trip too.
BUSY = {"tick", "state_age", "arm_age", "command_age", "image_age", "starved"}
STALL = 0.25  # s, of a fault
STALLED = 0.08  # s: a servo cycle, or a heartbeat of safety, that comes so much late is the machine's doing


@dataclass(frozen=True)
class Fault:
    """One fault: what is done, who reacts how, and when."""

    name: str
    reaction: str
    noticed: float  # s until the arm is told to hold; negative: it goes on
    check: str  # that is latched, or several of which one is; empty: none by safety
    latched: float  # s until it is
    strike: Callable[[Rig], int | None]  # answers with the time (ns) at which it struck, where that is not at once
    mend: Callable[[Rig], None] = lambda rig: None
    settle: float = SETTLE
    stalls: float = 0.0  # s that the robot's side itself stands still by the fault

    @property
    def rest(self) -> float:
        """s within which the arm is at rest."""
        return self.noticed + self.settle + SLACK


@dataclass(frozen=True)
class Outcome:
    """What was measured."""

    rest: float | None  # s; None: it did not come to rest
    latched: float | None  # s
    check: str
    reason: str
    moved: float  # m after it was at rest, while commands came and the node came back
    stalled: float  # s: how late the simulator was at most, and safety

    def row(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


# --- processes --------------------------------------------------------------------------------------------------------


def killed(node: str) -> dict[str, Any]:
    """kill -9, and its restart."""

    def strike(rig: Rig) -> None:
        rig.graph.send(NODES[node], signal.SIGKILL)
        if node == "trial":
            rig.abandon()

    return {"name": f"kill -9 {node}", "strike": strike, "mend": lambda rig: rig.restart(NODES[node])}


def frozen(node: str) -> dict[str, Any]:
    """kill -STOP, and -CONT."""
    return {
        "name": f"kill -STOP {node}",
        "strike": lambda rig: rig.graph.send(NODES[node], signal.SIGSTOP),
        "mend": lambda rig: rig.graph.send(NODES[node], signal.SIGCONT),
    }


def wrong_checkpoint(rig: Rig) -> int:
    """Another policy takes the place of the running one; it must refuse to act, and say why."""
    right = rig.graph.wanted["policy"]
    other = drifting_policy(rig.graph.folder / "other.safetensors", "can")
    rig.graph.wanted["wrong"] = graph.Process("policy", right.module, right.parameters | {"checkpoint": str(other)})
    struck = time.time_ns()
    rig.graph.send("policy", signal.SIGKILL)
    rig.graph.start("wrong")
    return struck


def stalled(rig: Rig) -> int:
    """The robot's side stands still for longer than its watchdog allows, and shorter than safety latches for."""
    struck = time.time_ns()
    rig.graph.send("sim", signal.SIGSTOP)
    time.sleep(STALL)
    rig.graph.send("sim", signal.SIGCONT)
    return struck


def right_checkpoint(rig: Rig) -> None:
    """What it said; then the right one again."""
    assert rig.graph.running.pop("wrong").wait(30.0) == 2
    said = rig.graph.log("wrong").strip().splitlines()[-1]
    assert "object" in said and "robot" in said, said
    del rig.graph.wanted["wrong"]
    rig.restart("policy")


# --- what is said -----------------------------------------------------------------------------------------------------


def put_in(**faults: Any) -> dict[str, Any]:
    """Into what the simulator sends (parameters of its node); taken out again."""
    return {
        "strike": lambda rig: rig.observer.set("sim", **faults),
        "mend": lambda rig: rig.observer.set("sim", **{name: type(value)(0) for name, value in faults.items()}),
    }


def policy_says(actions: np.ndarray) -> dict[str, Any]:
    """The policy is silenced, and somebody else answers for it."""

    def strike(rig: Rig) -> int | None:
        digest, struck = sha256(rig.graph.folder / "policy.safetensors"), []

        def answer(request: ChunkRequest) -> None:
            struck.append(time.time_ns())
            chunk = Chunk(request.stamp, request.trial, request.index, SECOND // 20, 0, digest, 4, actions)
            rig.observer.publish(topics.CHUNK, chunk)

        rig.graph.send("policy", signal.SIGSTOP)
        rig.observer.answer = answer
        return struck[0] if wait(lambda: struck, 2.0) else None

    def mend(rig: Rig) -> None:
        rig.observer.answer = None
        rig.graph.send("policy", signal.SIGCONT)

    return {"strike": strike, "mend": mend}


def commands(action: np.ndarray, times: int = 30, apart: float = 0.005) -> Callable[[Rig], int]:
    """Somebody commands beside the executor: one in between that is older than the executor's last is dropped."""

    def strike(rig: Rig) -> int:
        rig.observer.publish(topics.REQUESTED, Command(1, "", 0, Kind.KEEP))  # to nobody, until safety listens
        struck = time.time_ns()
        for number in range(times):
            now = time.time_ns()
            rig.observer.publish(topics.REQUESTED, Command(now, rig.trial, number, Kind.DELTA, action=action))
            time.sleep(apart)
        return struck

    return strike


NAN, WILD = np.full(7, np.nan), 30.0 * DRIFT
AGES = "picture age: held at 0.3 s, latched at 1 s"
LEASE = "the robot's own watchdog: 0.2 s without a heartbeat"
FAULTS = [
    Fault(**killed("camera"), reaction=f"safety, {AGES}", noticed=0.35, check="image_age|starved",
          latched=1.0),
    Fault(**frozen("camera"), reaction=f"safety, {AGES}", noticed=0.35, check="image_age|starved",
          latched=1.0),
    Fault(**killed("policy"), reaction="its last chunk ends; safety, no motion for 1 s", noticed=CHUNK,
          check="starved", latched=1.0 + CHUNK),
    Fault(**frozen("policy"), reaction="its last chunk ends; safety, no motion for 1 s", noticed=CHUNK,
          check="starved", latched=1.0 + CHUNK),
    Fault(**killed("executor"), reaction="safety, command age: held at 0.1 s, latched at 0.3 s", noticed=0.1,
          check="command_age", latched=0.3),
    Fault(**frozen("executor"), reaction="safety, command age: held at 0.1 s, latched at 0.3 s", noticed=0.1,
          check="command_age", latched=0.3),
    Fault(**killed("safety"), reaction=LEASE, noticed=0.2, check="", latched=0.2),
    Fault(**frozen("safety"), reaction=f"{LEASE}; safety itself when it goes on", noticed=0.2, check="", latched=0.2),
    Fault(**killed("trial"), reaction="executor, nobody runs the trial for 0.3 s: asks safety to stop", noticed=0.3,
          check="requested", latched=0.3),
    Fault(**frozen("trial"), reaction="executor, nobody runs the trial for 0.3 s: asks safety to stop", noticed=0.3,
          check="requested", latched=0.3),
    Fault(**killed("recorder"), reaction="shown; the arm goes on", noticed=-1.0, check="", latched=0.0),
    Fault(**frozen("recorder"), reaction="shown; the arm goes on", noticed=-1.0, check="", latched=0.0),
    Fault("wrong checkpoint", "the policy's node refuses it and ends with code 2; as when the policy is killed",
          CHUNK, "starved", 1.0 + CHUNK, wrong_checkpoint, right_checkpoint),
    Fault("NaN from the policy", "executor refuses the chunk; safety, no motion for 1 s", 0.0, "starved", 1.0,
          **policy_says(np.tile(NAN, (4, 1)))),
    Fault("NaN commands", "safety refuses each, latches the third in a row", 0.05, "malformed", 0.05, commands(NAN)),
    Fault("out-of-range chunk", "safety clips each step, latches the third", 3 * 0.05, "range", 3 * 0.05,
          **policy_says(np.tile(WILD, (4, 1))), settle=FAST),
    Fault("out-of-range commands", "safety clips each, latches the third in a row", 0.05, "range", 0.05,
          commands(WILD), settle=FAST),
    Fault("silent camera", f"safety, {AGES}", 0.35, "image_age|starved", 1.0, **put_in(silent_camera=True)),
    Fault("stale camera", "safety, pictures 0.6 s old: held at 0.3 s, latched after 1 s of holding", 0.35,
          "image_age|starved", 1.35, **put_in(image_latency=0.6)),
    Fault("frozen camera", "safety, 5 equal pictures over 1 cm of motion: held, latched after 1 s of holding", 0.4,
          "frozen", 1.4, **put_in(frozen_camera=True)),
    Fault("silent state", "safety, state age: held at 0.06 s, latched at 0.3 s", 0.07, "state_age", 0.3,
          **put_in(silent_state=True)),
    Fault("stale state", "safety, states 0.5 s old: held at 0.06 s, latched at 0.3 s", 0.07, "state_age", 0.3,
          **put_in(state_latency=0.5)),
    Fault("robot's clock jumps ahead", "safety drops stamps of the future; state age", 0.07, "state_age", 0.3,
          **put_in(clock_jump=30.0)),
    Fault("robot's clock jumps back", "safety drops stamps that go back; state age", 0.07, "state_age", 0.3,
          **put_in(clock_jump=-30.0)),
    Fault(f"robot's side stalls for {STALL} s", f"{LEASE}; safety, held, latched after 1 s of holding", STALL,
          "watchdog|state_age|arm_age", 1.35, stalled, stalls=STALL),
    Fault("safety's clock jumps", "safety, its clock against the steady one", 0.0, "clock", 0.0,
          lambda rig: rig.observer.set("safety", use_sim_time=True),
          lambda rig: rig.observer.set("safety", use_sim_time=False)),
    Fault("emergency stop", "safety, from any state", 0.0, "stop", 0.0,
          lambda rig: rig.observer.button.publish(Empty())),
]  # fmt: skip


def endure(rig: Rig, fault: Fault) -> Outcome:
    """Put the fault in while the arm moves; measure; mend it; see that nothing moves although commands come."""
    goes_on = fault.noticed < 0
    rig.go(record=goes_on)
    since = time.time_ns()
    since = fault.strike(rig) or since
    if goes_on:
        return _go_on(rig, fault, since)
    rest = rig.rest_after(since)
    latched, check, reason = _latched(rig, fault, since)
    stalled = rig.stalled(since, "safety" not in fault.name)
    places = len(rig.observer.arms)
    fault.mend(rig)
    commands(DRIFT, times=10, apart=0.02)(rig)
    if "safety" in fault.name:
        wait(lambda: rig.observer.state in (State.READY, State.STOPPED), 5.0)
    moved = rig.travelled(0.2)
    whole = np.array([arm.position for arm in list(rig.observer.arms)[places:]])
    moved = max(moved, float(np.linalg.norm(whole - whole[0], axis=1).max()))
    return Outcome(rest, latched, check, reason, moved, stalled)


def _latched(rig: Rig, fault: Fault, since: int) -> tuple[float | None, str, str]:
    """When, by which check, and why."""
    if fault.check:
        found = rig.latched_after(since)
        return (*found, rig.observer.cause) if found else (None, "", rig.observer.cause)
    found = wait(lambda: next((arm for arm in list(rig.observer.arms) if arm.stamp > since and arm.fault), None), 2.0)
    return ((found.stamp - since) / SECOND, "", found.fault) if found else (None, "", "the robot's watchdog is content")


def _go_on(rig: Rig, fault: Fault, since: int) -> Outcome:
    """The arm keeps moving; at the trial's end it is said what is missing."""
    rest, before = rig.rest_after(since, 1.5), len(rig.graph.log("trial"))
    assert wait(rig.moving, 1.0), rig.observer.cause
    rig.cancel()
    rig.ended()
    shown = "recorder" in rig.graph.log("trial")[before:]
    fault.mend(rig)
    return Outcome(rest, None, "", "shown" if shown else "not shown", 0.0, rig.stalled(since))


def judge(fault: Fault, outcome: Outcome) -> str:
    """What is not as expected; empty: nothing."""
    if fault.noticed < 0:
        return "" if (outcome.rest, outcome.reason) == (None, "shown") else f"{outcome}"
    if outcome.rest is None or outcome.rest > fault.rest:
        return f"at rest after {outcome.rest} s, not within {fault.rest:.2f} s"
    if outcome.moved > STRAY:
        return f"moved {outcome.moved * 1000:.1f} mm after it was stopped"
    late = outcome.latched is None or outcome.latched > fault.latched + SLACK
    if late or outcome.check not in fault.check.split("|"):
        return f"latched {outcome.check or 'nothing'} after {outcome.latched} s ({outcome.reason})"
    return ""


def busy(fault: Fault, outcome: Outcome) -> bool:
    """Whether the machine did it: everything stood still for a while, or a node had no time for another reason."""
    starved = outcome.check in BUSY and outcome.check not in fault.check.split("|")
    return outcome.stalled - fault.stalls > STALLED or starved
