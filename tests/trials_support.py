"""Trials written without ROS: messages serialised by rosbags, fed to the recorder's writer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rosbags.highlevel import AnyReader

from d2ppo_core.checkpoint import save_policy
from d2ppo_core.contract import ActionSpec, Camera, LowDim, ObservationSpec, PolicySpec, Provenance, SimulatorSpec
from d2ppo_core.files import sha256
from d2ppo_core.inference import Actor, load_policy
from d2ppo_core.network_specs import MLPSpec, SamplerSpec, VisionSpec
from d2ppo_core.observation import model_observation
from d2ppo_core.policies.build import build_policy
from d2ppo_ros.recording.message_types import typestore
from d2ppo_ros.recording.reader import Trial
from d2ppo_ros.recording.writer import Topic, TrialWriter
from d2ppo_ros.records import SECOND
from d2ppo_sim.toy import Reach

STORE = typestore()
OURS = "d2ppo_interfaces/msg/"
TOPICS = [
    Topic("/robot/state", OURS + "StateVector"), Topic("/policy/request", OURS + "ChunkRequest"),
    Topic("/policy/chunk", OURS + "ActionChunk"), Topic("/command/requested", OURS + "Command"),
    Topic("/command/applied", OURS + "Command"), Topic("/robot/arm0", OURS + "ArmState"),
    Topic("/safety/state", OURS + "SafetyState"), Topic("/episode", OURS + "EpisodeState"),
    Topic("/camera/eye/image", "sensor_msgs/msg/Image"), Topic("/camera/eye/frame", OURS + "FrameInfo"),
]  # fmt: skip
CAMERA = Camera(name="eye", height=16, width=17, field_of_view=45.0)


def when(stamp: int) -> Any:
    return STORE.types["builtin_interfaces/msg/Time"](stamp // SECOND, stamp % SECOND)


def span(length: int) -> Any:
    return STORE.types["builtin_interfaces/msg/Duration"](length // SECOND, length % SECOND)


def header(stamp: int, frame: str = "world") -> Any:
    return STORE.types["std_msgs/msg/Header"](when(stamp), frame)


def build(message: str, /, **fields: Any) -> bytes:
    """One message of this type, serialised."""
    return bytes(STORE.serialize_cdr(STORE.types[message](**fields), message))


def state(stamp: int, step: int, values: dict[str, np.ndarray], trial: str = "t") -> bytes:
    sizes, numbers = np.array([len(v) for v in values.values()], dtype=np.uint32), np.concatenate(list(values.values()))
    return build(
        OURS + "StateVector", header=header(stamp), trial=trial, step=step, names=list(values), sizes=sizes,
        values=numbers,
    )  # fmt: skip


def request(stamp: int, index: int, seed: int, start: int) -> bytes:
    return build(
        OURS + "ChunkRequest", header=header(stamp), trial="t", seed=seed, index=index, start=when(start), frozen=0,
        size=0, prefix=np.zeros(0),
    )  # fmt: skip


def chunk(stamp: int, index: int, actions: np.ndarray, executed: int, checkpoint: str, seen: str = "") -> bytes:
    return build(
        OURS + "ActionChunk", header=header(stamp), trial="t", index=index, step=span(SECOND // 20),
        inference=span(2_000_000), checkpoint=checkpoint, seen=seen, delta_reference="measured", horizon=len(actions),
        executed=executed, size=actions.shape[1], actions=actions.ravel(),
    )  # fmt: skip


def command(stamp: int, sequence: int, action: np.ndarray, kind: int = 2, targets: tuple = ()) -> bytes:
    return build(
        OURS + "Command", header=header(stamp), trial="t", sequence=sequence, kind=kind, chunk=0, step=0,
        observation=when(stamp), reason="", action=np.asarray(action, dtype=np.float64), targets=list(targets),
    )  # fmt: skip


def safety(stamp: int, state: int, changed: int, check: str = "") -> bytes:
    return build(
        OURS + "SafetyState", header=header(stamp), state=state, profile="sim", check=check, reason="", value=0.0,
        limit=0.0, since=when(stamp), passed=0, changed=changed, refused=0, DISARMED=0, READY=1, ARMED=2, HOLD=3,
        STOPPED=4,
    )  # fmt: skip


def episode(stamp: int, step: int, success: bool, seed: int = 0) -> bytes:
    return build(
        OURS + "EpisodeState", header=header(stamp), trial="t", seed=seed, step=step, success=success,
        terminated=success, truncated=False, reward=float(success),
    )  # fmt: skip


def image(stamp: int, picture: np.ndarray) -> bytes:
    height, width, _ = picture.shape
    return build(
        "sensor_msgs/msg/Image", header=header(stamp, "eye"), height=height, width=width, encoding="rgb8",
        is_bigendian=0, step=3 * width, data=picture.ravel(),
    )  # fmt: skip


def frame(stamp: int, number: int) -> bytes:
    return build(OURS + "FrameInfo", header=header(stamp, "eye"), number=number, dropped=0, repeated=0)


def tiny_policy(path: Path, history: int = 1, cameras: bool = False, horizon: int = 4, task: str = "reach") -> Actor:
    """A policy with random weights for the toy task, whatever it calls itself, saved as `path`."""
    keys = (LowDim(name="position", size=2, body="point"), LowDim(name="goal", size=2, body="goal"))
    simulator = SimulatorSpec(name="toy", version="1", environment="Reach", controller="none")
    spec = PolicySpec(
        task=task,
        observation=ObservationSpec(lowdim=keys, cameras=(CAMERA,) if cameras else (), history=history),
        action=ActionSpec(meaning="planar_delta", position_scale=0.1, rotation_scale=0.0, gripper="none"),
        horizon=horizon,
        executed=2,
        network=MLPSpec(
            hidden=(8, 8, 8), time_size=4, vision=VisionSpec(width=8, heads=2, features=6) if cameras else None
        ),
        sampler=SamplerSpec(train_steps=4, steps=4),
        provenance=Provenance(
            stage="pretrain", dataset="none", dataset_digest="0" * 64, code_version="0", seed=0, simulator=simulator
        ),
    )
    torch.manual_seed(0)
    policy = build_policy(spec)
    save_policy(path, spec, {"raw": policy.network, "ema": policy.network, "normalizer": policy.normalizer})
    return Actor(load_policy(path), 0)


def metadata(contract: PolicySpec, checkpoint: Path) -> dict[str, Any]:
    """As the nodes put it into trial.json."""
    return {
        "trial": "t", "seed": 3, "policy": json.loads(contract.model_dump_json()),
        "policy_node": {"checkpoint": str(checkpoint), "seed": 0},
    }  # fmt: skip


def record_episode(
    folder: Path, actor: Actor, checkpoint: Path, simulation: Any, seed: int = 3, chunks: int = 4, cameras: bool = False
) -> None:
    """A lockstep trial as the nodes would record it: state, request, chunk, commands, and again."""
    spec, digest, start, step = actor.policy.spec, sha256(checkpoint), 5 * SECOND, SECOND // 20
    writer = TrialWriter(folder, TOPICS, metadata(spec, checkpoint))
    now, sequence, history = start, 0, []

    def put(topic: str, data: bytes) -> None:
        assert writer.write(topic, time.time_ns(), data)

    def look(values: dict[str, np.ndarray]) -> None:
        seen = {name: value for name, value in values.items() if value.ndim == 1}
        put("/robot/state", state(now, sequence, seen))
        if cameras:
            picture = np.random.default_rng((9, sequence)).integers(0, 256, (16, 17, 3), dtype=np.uint8)
            put("/camera/eye/image", image(now, picture))
            put("/camera/eye/frame", frame(now, sequence))
            seen = {**seen, CAMERA.key: picture}
        history.extend([seen] * (1 if history else spec.observation.history))

    look(simulation.reset(seed))
    done = False
    for index in range(chunks):
        recent = history[-spec.observation.history :]
        raw = {name: np.stack([seen[name] for seen in recent])[None] for name in recent[0]}
        actions = actor.predict(raw, [seed], [index])[0]
        put("/policy/request", request(now, index, seed, start))
        seen = model_observation(spec.observation, raw).digest()
        put("/policy/chunk", chunk(now, index, actions, spec.executed, digest, seen))
        for number, action in enumerate(actions[: spec.executed]):
            put("/command/requested", command(now, sequence, action))
            put("/command/applied", command(now, sequence, action))
            now, sequence = now + step, sequence + 1
            done = index == chunks - 1 and number == spec.executed - 1
            look(simulation.step(action).observation)
            put("/episode", episode(now, sequence, done, seed))
    writer.close({"success": done})


def recorded(tmp_path: Path, policy: tuple[Path, Actor], name: str = "t", **options: object) -> Path:
    """A trial of Reach by this policy."""
    record_episode(tmp_path / name, policy[1], policy[0], Reach(), **options)
    return tmp_path / name


def again(folder: Path, target: Path, topic: str, change: Callable[[object, int], bytes | None]) -> Path:
    """The same trial with the messages on one topic changed; None leaves one out."""
    trial, count = Trial(folder), 0
    copy = TrialWriter(target, TOPICS, trial.metadata)
    with AnyReader([folder]) as bag:
        for connection, when, data in bag.messages():
            message: bytes | None = bytes(data)
            if connection.topic == topic:
                message, count = change(bag.deserialize(data, connection.msgtype), count), count + 1
            if message is not None:
                copy.write(connection.topic, when, message)
    copy.close(trial.about["outcome"])
    return target
