"""The whole real-time graph in its processes, and an observer that measures how the arm reacts to what is done to it.

The judge is the simulator's own word on where the arm is (`sim/arm0`), which no injected fault touches.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from d2ppo_interfaces.action import RunTrial
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from d2ppo_core.checkpoint import save_policy
from d2ppo_core.contract import PolicySpec, Provenance, SimulatorSpec
from d2ppo_core.network_specs import GaussianMLPSpec, GaussianSpec, VisionSpec
from d2ppo_core.policies.build import build_policy
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_ros import codec, graph, topics
from d2ppo_ros.records import SECOND, ArmState, ChunkRequest, Command, PolicyReport, SafetyReport, State
from d2ppo_ros.runtime import Listener

CAMERA = "robot0_eye_in_hand"
STILL, STILL_TURN, STAYS = 0.005, 0.02, 0.3  # m/s, rad/s, s: at rest is slower than this, for so long
MOVING = 0.02  # m/s: well under way
DRIFT = np.array([0.0, 0.25, 0.1, 0.0, 0.0, 0.0, -1.0])  # of the test's policy: sideways and up, where nothing is


def drifting_policy(path: Path, task: str = "lift_image", actions: np.ndarray = DRIFT) -> Path:
    """A policy file that always answers with the same action: the arm drifts until something stops it."""
    config = load_task(task)
    observation = observation_spec(config)
    simulator = SimulatorSpec(name="none", version="0", environment=config.environment, controller="none")
    vision = VisionSpec(width=8, depth=1, heads=2, features=8) if observation.cameras else None
    spec = PolicySpec(
        task=task, observation=observation, action=action_spec(config), horizon=4, executed=4,
        network=GaussianMLPSpec(hidden=(8, 8, 8), vision=vision), sampler=GaussianSpec(),
        provenance=Provenance(
            stage="pretrain", dataset="none", dataset_digest="0" * 64, code_version="0", seed=0, simulator=simulator
        ),
    )  # fmt: skip
    policy = build_policy(spec)
    last = [module for module in policy.network.means.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        means = np.arctanh(np.clip(actions, -1 + 1e-6, 1 - 1e-6))
        last.bias.copy_(torch.as_tensor(np.tile(means, spec.horizon)))  # [Da] -> [H * Da]
    save_policy(path, spec, {"raw": policy.network, "ema": policy.network, "normalizer": policy.normalizer})
    return path


@contextmanager
def free_domain() -> Iterator[int]:
    """A ROS domain that no other test on this machine uses: each is held by a port."""
    for domain in range(90, 102):
        with socket.socket() as lock:
            try:
                lock.bind(("127.0.0.1", 29300 + domain))
            except OSError:
                continue
            yield domain
            return
    raise RuntimeError("no ROS domain is free")


def first(process: int = 0) -> None:
    """Let a process go before everything else that keeps this machine busy, where that is allowed."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, process, -10)


class Graph:
    """Node processes by name; what they print goes to FOLDER/NAME.log."""

    def __init__(self, processes: list[graph.Process], folder: Path, domain: int) -> None:
        self.wanted = {process.name: process for process in processes}
        self.folder, self.running = folder, {}
        self._files = graph.parameter_files("sim", "")
        self._environment = {**graph.environment(), "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}

    def start(self, name: str) -> None:
        """Start this node's process (again)."""
        with open(self.folder / f"{name}.log", "a", encoding="utf-8") as log:
            self.running[name] = subprocess.Popen(
                graph.command(self.wanted[name], self._files), env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        first(self.running[name].pid)

    def send(self, name: str, kind: signal.Signals) -> None:
        """A signal to this node's process; a killed one is buried."""
        self.running[name].send_signal(kind)
        if kind == signal.SIGKILL:
            self.running.pop(name).wait()

    def dead(self) -> list[str]:
        """The nodes whose processes have ended."""
        return [name for name, process in self.running.items() if process.poll() is not None]

    def log(self, name: str) -> str:
        """What this node has printed so far."""
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        """End all, those that command first."""
        processes = [self.running.pop(name) for name in reversed(self.wanted) if name in self.running]
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in processes:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Observer:
    """A node of the test's own process, spun by a thread: keeps what it hears with the time of arrival (ns)."""

    def __init__(self, domain: int) -> None:
        for name, value in graph.environment().items():
            os.environ.setdefault(name, value)
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("observer", context=self._context)
        self._listener = Listener(self.node)
        self.arms: list[ArmState] = []  # the truth
        self.safety: list[tuple[int, SafetyReport]] = []
        self.applied: list[tuple[int, Command]] = []
        self.policy: PolicyReport | None = None
        self._hear(ArmState, topics.TRUTH.format(0), self.arms.append)
        self._hear(SafetyReport, topics.SAFETY, lambda r: self.safety.append((time.time_ns(), r)), topics.LATCHED)
        self._hear(Command, topics.APPLIED, lambda c: self.applied.append((time.time_ns(), c)))
        self._hear(ChunkRequest, topics.REQUEST, lambda request: self.answer and self.answer(request))
        self._hear(PolicyReport, topics.POLICY, lambda r: setattr(self, "policy", r), topics.LATCHED)
        names = (topics.ARM_SAFETY, topics.REARM, topics.DISARM, topics.ESTOP_CALL, topics.RECORD_END)
        self._calls = {name: self.node.create_client(Trigger, name) for name in names}
        self.button = self.node.create_publisher(Empty, topics.ESTOP, topics.EVERY)  # for the emergency stop
        self._parameters: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}
        self.answer: Callable[[ChunkRequest], None] | None = None  # in place of the policy
        self.trials = ActionClient(self.node, RunTrial, topics.RUN_TRIAL)
        first()  # threads inherit it
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True, name="observer")
        self._thread.start()
        os.setpriority(os.PRIO_PROCESS, 0, 0)

    def _hear(self, record: type, topic: str, keep: Callable[[Any], Any], qos: Any = topics.EVERY) -> None:
        self._listener.hear(record, topic, keep, qos)

    @property
    def state(self) -> State | None:
        """Safety's last word."""
        return self.safety[-1][1].state if self.safety else None

    @property
    def cause(self) -> str:
        """The check behind a HOLD or STOPPED, and the reason in words."""
        report = self.safety[-1][1]
        return f"{report.check}: {report.reason}"

    def voices(self, node: str) -> set[tuple[int, ...]]:
        """Every process that this node had so far: the dead are known for a while too."""
        known = self.node.get_publishers_info_by_topic("/rosout")
        return {tuple(info.endpoint_gid) for info in known if info.node_name == node}

    def publish(self, topic: str, record: Any, qos: Any = topics.EVERY) -> None:
        """Say something in place of a node."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(codec.MESSAGES[type(record)], topic, qos)
            wait(self._publishers[topic].get_subscription_count, 5.0)
        self._publishers[topic].publish(codec.ENCODERS[type(record)](record))

    def forget(self) -> None:
        """Begin to watch anew."""
        self.arms[:] = self.arms[-50:]
        self.safety[:] = self.safety[-1:]
        self.applied.clear()

    def call(self, name: str, patience: float = 2.0) -> tuple[bool, str]:
        """Call a Trigger service."""
        client = self._calls[name]
        if not client.wait_for_service(timeout_sec=patience):
            return False, f"nobody offers {name}"
        answer = result_of(client.call_async(Trigger.Request()), patience)
        return (answer.success, answer.message) if answer else (False, f"{name} does not answer")

    def set(self, node: str, **values: Any) -> None:
        """Set parameters of a running node, as `ros2 param set` does."""
        client = self._parameters.get(node)
        if client is None:
            client = self._parameters[node] = self.node.create_client(SetParameters, f"{node}/set_parameters")
        assert client.wait_for_service(timeout_sec=5.0), f"{node} takes no parameters"
        wanted = [Parameter(name=name, value=_value(value)) for name, value in values.items()]
        answer = result_of(client.call_async(SetParameters.Request(parameters=wanted)), 5.0)
        assert answer and all(result.successful for result in answer.results), answer

    def close(self) -> None:
        """Stop listening."""
        self._executor.shutdown()
        self._thread.join(timeout=2.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)


def _value(value: Any) -> ParameterValue:
    if isinstance(value, bool):
        return ParameterValue(type=1, bool_value=value)
    return ParameterValue(type=3, double_value=float(value))


def result_of(future: Any, patience: float) -> Any:
    """What another thread spins for; None when it does not come."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return future.result() if done.wait(patience) else None


def wait(until: Callable[[], Any], seconds: float) -> Any:
    """The first true answer, or the last one."""
    deadline = time.monotonic() + seconds
    while not (answer := until()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return answer


def speeds(arms: list[ArmState], window: int = 30_000_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (n,) ns, and over the `window` before each the linear (n,) m/s and angular (n,) rad/s speed."""
    times, rows, first = [], [], 0
    for arm in arms:
        while arm.stamp - arms[first].stamp > window:
            first += 1
        base, seconds = arms[max(0, first - 1)], (arm.stamp - arms[max(0, first - 1)].stamp) / SECOND
        if seconds > 0:
            cosine = (np.trace(arm.rotation @ base.rotation.T) - 1) / 2
            turn = np.arccos(np.clip(cosine, -1, 1)) if cosine < 1 - 1e-10 else 0.0
            times.append(arm.stamp)
            rows.append((np.linalg.norm(arm.position - base.position) / seconds, turn / seconds))
    linear, angular = np.array(rows).reshape(-1, 2).T
    return np.array(times), linear, angular


class Rig:
    """Graph and observer together: one trial after the other, each ended by a fault."""

    def __init__(self, folder: Path, domain: int, processes: list[graph.Process]) -> None:
        self.graph, self.observer = Graph(processes, folder, domain), Observer(domain)
        self._number = 0
        self._trial: Any = None
        self._handle: Any = None
        for process in processes:
            self.graph.start(process.name)

    def close(self) -> None:
        """End everything."""
        self.observer.close()
        self.graph.stop()

    def restart(self, name: str, seconds: float = 30.0) -> None:
        """Start a node whose process was killed, and wait until it is up."""
        before = self.observer.voices(name)
        if name == "policy":
            self.observer.policy = None
        self.graph.start(name)
        assert wait(lambda: self.observer.voices(name) - before, seconds), f"{name} does not come up"
        if name == "policy":
            self.ready(seconds)
        if name == "recorder":
            said = wait(lambda: "recorded" in self.observer.call(topics.RECORD_END)[1], seconds)
            assert said, "the recorder does not answer"

    def rearm(self, seconds: float = 15.0) -> None:
        """What a person does after a stop: see that nothing is wrong any more, re-arm, arm."""
        observer, said = self.observer, ""

        def armed() -> bool:
            nonlocal said
            if observer.state is State.STOPPED:
                said = observer.call(topics.REARM)[1]
            elif observer.state is State.READY:
                said = observer.call(topics.ARM_SAFETY)[1]
            time.sleep(0.05)
            return observer.state is State.ARMED

        assert wait(armed, seconds), f"cannot be armed: {said or observer.cause}"

    def ready(self, seconds: float = 60.0) -> None:
        """Wait until every process is up and the policy is active."""

        def up() -> bool:
            assert not self.graph.dead(), {name: self.graph.log(name) for name in self.graph.dead()}
            report, others = self.observer.policy, set(self.observer.node.get_node_names())
            return bool(report and report.state == "active" and others >= set(self.graph.wanted))

        assert wait(up, seconds), f"not up: {self.observer.node.get_node_names()}"

    def go(self, tries: int = 5, record: bool = False) -> None:
        """Re-arm, begin a trial, and return when the arm is well under way."""
        why = ""
        for _ in range(tries):  # a machine that is busy with other things may stop it before we do
            self.ended()
            self.rearm()
            self._number += 1
            self.observer.forget()
            goal = RunTrial.Goal(trial=self.trial, seed=100_000, max_duration=20.0, record=record)
            assert self.observer.trials.wait_for_server(timeout_sec=10.0), "nobody runs trials"
            handle = self._handle = result_of(self.observer.trials.send_goal_async(goal), 5.0)
            self._trial = handle.get_result_async() if handle and handle.accepted else None
            if self._trial and wait(lambda: self.moving() or self._trial.done(), 5.0) and not self._trial.done():
                time.sleep(0.2)
                if wait(self.moving, 1.0):
                    return
            why = self.observer.cause
            self.observer.call(topics.DISARM)  # ends a trial of which we know nothing, too
            why = self.ended() or why
            time.sleep(0.3)
        raise AssertionError(f"the arm does not move: {why}")

    def ended(self, seconds: float = 8.0) -> str:
        """Wait for the running trial's end; its reason. One whose node has died has none."""
        trial, self._trial = self._trial, None
        if trial is None:
            return ""
        wait(trial.done, seconds)
        return trial.result().result.reason if trial.done() else ""

    @property
    def trial(self) -> str:
        """Name of the last trial."""
        return f"fault-{self._number}"

    def abandon(self) -> None:
        """The running trial has nobody left who could say how it ended."""
        self._trial = None

    def cancel(self) -> None:
        """Ask for the running trial's end."""
        if self._trial is not None and not self._trial.done():
            result_of(self._handle.cancel_goal_async(), 2.0)

    def moving(self) -> bool:
        """Whether the arm is well under way now."""
        arms = self.observer.arms[-20:]
        return len(arms) > 5 and bool((speeds(arms)[1][-3:] > MOVING).all())

    def rest_after(self, since: int, seconds: float = 4.0) -> float | None:
        """s from `since` (ns) until the arm was at rest and stayed so; None when it did not come to rest."""

        def rest() -> float | None:
            times, linear, angular = speeds([arm for arm in list(self.observer.arms) if arm.stamp >= since])
            fast = np.flatnonzero((linear > STILL) | (angular > STILL_TURN))
            first = 0 if not len(fast) else fast[-1] + 1
            if first >= len(times) or times[-1] - times[first] < STAYS * SECOND:
                return None
            return max((times[first] - since) / SECOND, 1e-3)

        return wait(rest, seconds)

    def latched_after(self, since: int, seconds: float = 4.0) -> tuple[float, str] | None:
        """s from `since` until safety said STOPPED, and the check behind it."""

        def latched() -> tuple[float, str] | None:
            for at, report in list(self.observer.safety):
                if at >= since and report.state is State.STOPPED:
                    return (at - since) / SECOND, report.check
            return None

        return wait(latched, seconds)

    def stalled(self, since: int) -> float:
        """s: the longest that the simulator, which no fault touches, was not run since then. That is the machine's."""
        stamps = np.array([arm.stamp for arm in list(self.observer.arms) if arm.stamp >= since - SECOND // 5])
        return float(np.diff(stamps).max()) / SECOND if len(stamps) > 1 else np.inf

    def travelled(self, seconds: float) -> float:
        """m that the arm moves from now on for so long."""
        begin = time.time_ns()
        time.sleep(seconds)
        places = [arm.position for arm in list(self.observer.arms) if arm.stamp >= begin]
        assert places, "the simulator does not say where the arm is"
        return float(max(np.linalg.norm(place - places[0]) for place in places))


@contextmanager
def rig(folder: Path, profile: str = "sim", task: str = "lift_image") -> Iterator[Rig]:
    """The graph of `d2ppo up sim` against the simulator with the drifting policy, up and ready; nobody arms it."""
    checkpoint = drifting_policy(folder / "policy.safetensors", task)
    options = graph.SimulationOptions(
        checkpoint=str(checkpoint), profile=profile, any_limits=True, record=str(folder / "records"), rate=50.0
    )
    processes = graph.simulation(options)
    next(process for process in processes if process.name == "trial").parameters.update(arm=False, patience=2.0)
    with free_domain() as domain:
        made = Rig(folder, domain, processes)
        try:
            made.ready()
            yield made
        finally:
            made.close()
