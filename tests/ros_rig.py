"""The whole real-time graph in its processes, with a policy that drifts, and how the arm reacts to what is done to it.

The judge is the simulator's own word on where the arm is (`sim/arm0`), which no injected fault touches.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from d2ppo_interfaces.action import RunTrial

from d2ppo_core.checkpoint import save_policy
from d2ppo_core.contract import PolicySpec, Provenance, SimulatorSpec
from d2ppo_core.network_specs import GaussianMLPSpec, GaussianSpec, VisionSpec
from d2ppo_core.policies.build import build_policy
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_ros import graph, topics
from d2ppo_ros.records import SECOND, State
from ros_observer import Observer, first, result_of, speeds, wait

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


class Rig:
    """Graph and observer together: one trial after the other, each ended by a fault."""

    def __init__(self, folder: Path, domain: int, processes: list[graph.Process]) -> None:
        self.graph, self.observer = Graph(processes, folder, domain), Observer(domain)
        self.domain, self._number = domain, 0
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

    def go(self, tries: int = 10, record: bool = False) -> None:
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

    def stalled(self, since: int, safety: bool = True) -> float:
        """s: how late the simulator's servo was at most since then, and safety's heartbeat where it is well."""
        stamps = [np.array([arm.stamp for arm in list(self.observer.arms) if arm.stamp >= since - SECOND // 5])]
        if safety:
            stamps.append(np.array([at for at, _ in list(self.observer.safety) if at >= since - SECOND // 5]))
        gaps = [np.diff(each).max() / SECOND - usual if len(each) > 1 else np.inf
                for each, usual in zip(stamps, (0.01, 0.05), strict=False)]
        return float(max(gaps))

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
