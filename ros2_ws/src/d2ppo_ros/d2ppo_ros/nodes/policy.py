"""The policy: answers the executor's requests with action chunks, from observations on the topics.

`configure` loads the checkpoint and warms the network up; `activate` compares its contract with what robot and cameras
state, fatally. A request names the time of the observation; it waits until everything of that time has come, goes
through the very pipeline of `d2ppo evaluate` (`ObservationGrid` -> `Actor`), and is answered from a thread of its own,
so that states are still heard while the network runs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from sensor_msgs.msg import Image
from std_msgs.msg import String

from d2ppo_core.contract import Camera
from d2ppo_core.envs import RawObservation
from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256
from d2ppo_core.inference import Actor, load_policy
from d2ppo_core.observation import Observation

from .. import codec, decoding, topics
from ..contracts import RobotContract, parse, require_agreement
from ..grid import ObservationGrid
from ..lifecycle import AutoNode
from ..parameters import declare, parameter
from ..records import SECOND, Chunk, ChunkRequest, PolicyReport, RobotState
from ..runtime import Listener, run, speaker
from ..trace import Trace

WARM_UP = 3  # predictions before activation: the first ones are slower
RECENT = 1000  # inference times that the report's quantiles are of


@dataclass(frozen=True)
class PolicySettings:
    """Parameters of the policy's node."""

    checkpoint: str = parameter("", "the policy's file (policy.safetensors)")
    weights: str = parameter("", "which weights act; empty: what the contract says", choices=("", "ema", "raw"))
    steps: int = parameter(0, "DDIM steps instead of the contract's sampler; 0: the contract's", low=0, high=100)
    seed: int = parameter(0, "names the policy's noise, together with trial and chunk", low=0, high=2**31 - 1)
    device: str = parameter("cpu", "where the network runs: cpu, cuda or cuda:N")
    threads: int = parameter(1, "threads of the network on a CPU; the same number gives the same bits", low=1, high=64)
    lockstep: bool = parameter(False, "every part of an observation has the very same stamp")
    max_age: float = parameter(0.1, "how old a part of an observation may be", unit="s", low=0.001, high=2.0)
    patience: float = parameter(1.0, "then a request still without its observation is given up", unit="s", low=0.01)
    any_limits: bool = parameter(False, "run under other limits than those the policy was trained under")
    delay: float = parameter(0.0, "added to the inference time, to try a slower computer", unit="s", low=0.0, high=2.0)
    autostart: bool = parameter(True, "configure and activate without being asked")


class PolicyNode(AutoNode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("policy")
        self.settings = declare(self, PolicySettings)
        self.actor: Actor | None = None
        self._digest = ""
        self._times: deque[float] = deque(maxlen=RECENT)
        self._chunks = self._late = 0
        self._say_status = speaker(self, PolicyReport, topics.POLICY, topics.REPORT)
        self.create_timer(1.0, self._report)
        self.begin(self.settings.autostart)

    # --- life cycle ---------------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Load the policy and warm it up; listen to what it will look at."""
        options = self.settings
        if not options.checkpoint:
            raise UserError("the policy's node has no checkpoint; give it one with checkpoint:=FILE")
        torch.set_num_threads(options.threads)
        policy = load_policy(options.checkpoint, options.device, options.weights, options.steps)
        self.actor, self.spec, self._digest = Actor(policy, options.seed), policy.spec, sha256(options.checkpoint)
        self.actor.watch = self._saw
        max_age = 0 if options.lockstep else int(options.max_age * SECOND)
        self._grid = ObservationGrid(self.spec.observation, SECOND // self.spec.action.control_hz, max_age)
        self._warm_up()
        self._robot: RobotContract | None = None
        self._cameras: dict[str, Camera] = {}
        self._request: tuple[ChunkRequest, float] | None = None  # the one that waits, and since when
        self._working: tuple[str, int] | None = None  # the one that the network is busy with
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._trace = Trace("policy")
        self._make_topics()
        threading.Thread(target=self._work, daemon=True, name="inference").start()

    def _warm_up(self) -> None:
        seen = self.spec.observation
        raw: RawObservation = {key.name: np.zeros((1, seen.history, key.size)) for key in seen.lowdim}
        for camera in seen.cameras:
            raw[camera.key] = np.zeros((1, seen.history, camera.height, camera.width, 3), dtype=np.uint8)
        for _ in range(WARM_UP):
            self.actor.predict(raw, [0], [0])

    def _make_topics(self) -> None:
        self._say_chunk = speaker(self, Chunk, topics.CHUNK, topics.EVERY)
        self._spec_text = self.create_publisher(String, topics.POLICY_CONTRACT, topics.LATCHED)
        listener = Listener(self)
        listener.hear_message(String, topics.CONTRACT, self._on_robot, topics.LATCHED)
        listener.hear(RobotState, topics.STATE, self._on_state, topics.EVERY)
        listener.hear(RobotState, topics.OBJECT, self._on_state, topics.EVERY)
        for camera in self.spec.observation.cameras:
            name = camera.name
            on_image = partial(self._on_image, name)
            listener.hear_message(String, topics.CAMERA.format(name), self._on_camera, topics.LATCHED)
            listener.hear_message(Image, topics.IMAGE.format(name), on_image, topics.NEWEST)
        listener.hear(ChunkRequest, topics.REQUEST, self._on_request, topics.EVERY)
        self.create_timer(0.02, self._give_up)

    def ready(self) -> bool:
        """Whether robot and cameras have stated their sides."""
        return self._robot is not None and {c.name for c in self.spec.observation.cameras} <= set(self._cameras)

    def activate(self) -> None:
        """The contract, before anything moves."""
        if self._robot is None:
            raise UserError("no robot has stated its side of the contract yet; start its node first")
        require_agreement(self.spec, self._robot, self._cameras, self.settings.any_limits)
        self._spec_text.publish(codec.text_msg(self.spec.model_dump_json()))

    def close(self) -> None:
        """The last word."""
        if self.configured:
            self._jobs.put(None)
            self._trace.write()

    # --- what is seen -------------------------------------------------------------------------------------------------

    def _on_robot(self, message: String) -> None:
        self._robot = parse(RobotContract, message.data, topics.CONTRACT)

    def _on_camera(self, message: String) -> None:
        camera = parse(Camera, message.data, "a camera's contract")
        self._cameras[camera.name] = camera

    def _on_state(self, state: RobotState) -> None:
        self._trace.mark("state", state.stamp)
        self._grid.add_state(state)
        self._try()

    def _on_image(self, camera: str, message: Image) -> None:
        stamp = decoding.stamp_of(message)
        self._trace.mark(f"image {camera}", stamp)
        self._grid.add_image(camera, stamp, decoding.picture_of(message)[0].copy())
        self._try()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _on_request(self, request: ChunkRequest) -> None:
        """Keep the newest request; one that still waits is answered no more."""
        if not self.active or _name(request) == self._working:
            return
        self._trace.mark("request", request.stamp)
        self._late += self._request is not None
        self._request = request, time.monotonic()
        self._try()

    def _give_up(self) -> None:
        if self._request and time.monotonic() - self._request[1] > self.settings.patience:
            lacking = self._grid.lacking(self._request[0].stamp, self._request[0].start)
            self.get_logger().warning(f"a request was given up: {lacking}")
            self._late, self._request = self._late + 1, None

    def _try(self) -> None:
        """Hand the waiting request to the network as soon as its observation is whole."""
        if self._request and self._grid.ready(self._request[0].stamp, self._request[0].start):
            (request, _), self._request = self._request, None
            self._working = _name(request)
            self._jobs.put((request, self._grid.assemble(request.stamp, request.start)))

    def _work(self) -> None:
        """The network's thread. The number of threads that OpenMP uses is set for each thread that calls it."""
        torch.set_num_threads(self.settings.threads)
        while (job := self._jobs.get()) is not None:
            try:
                self._answer(*job)
            except UserError as error:
                self.get_logger().error(str(error))
            if self._working == _name(job[0]):  # not the next one's, which may wait already
                self._working = None

    def _answer(self, request: ChunkRequest, raw: RawObservation) -> None:
        """One chunk."""
        begin, stamp = time.monotonic_ns(), request.stamp
        self._trace.mark("inference", stamp)
        actions = self.actor.predict(raw, [request.seed], [request.index], request.prefix, request.frozen)[0]
        if self.settings.delay:
            time.sleep(self.settings.delay)
        took = time.monotonic_ns() - begin
        self._times.append(took / SECOND)
        self._chunks += 1
        self._trace.mark("chunk", stamp)
        action = self.spec.action
        self._say_chunk(
            Chunk(stamp, request.trial, request.index, SECOND // action.control_hz, took, self._digest,
                  self.spec.executed, actions, action.delta_reference, self._seen)
        )

    def _saw(self, observation: Observation) -> None:
        """Called with the very tensors that go into the network."""
        self._seen = observation.digest()

    def _report(self) -> None:
        now, times = self.get_clock().now().nanoseconds, np.array(self._times or [0.0])
        state = "active" if self.active else "inactive" if self.configured else "unconfigured"
        quantiles = (float(times[-1]), float(np.median(times)), float(np.quantile(times, 0.99)))
        task = self.spec.task if self.configured else ""
        self._say_status(PolicyReport(now, state, task, self._digest, self._chunks, quantiles, self._late, self.error))


def _name(request: ChunkRequest) -> tuple[str, int]:
    """A repeat asks for the same chunk of a newer observation; the executor takes the older one as well."""
    return request.trial, request.index


def main() -> int:
    return run(PolicyNode)


if __name__ == "__main__":
    sys.exit(main())
