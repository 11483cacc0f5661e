"""Recorded trials are replayed bit for bit, exported to train on, and shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from d2ppo_core import cli
from d2ppo_core.checkpoint import save_policy
from d2ppo_core.contract import ActionSpec, ObservationSpec
from d2ppo_core.data.robomimic import read_demonstrations
from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256
from d2ppo_core.inference import Actor
from d2ppo_core.response import advance, at_rest
from d2ppo_ros.grid import ObservationGrid
from d2ppo_ros.recording import export, export_lerobot
from d2ppo_ros.recording.commands import TRIALS
from d2ppo_ros.recording.export import Exported
from d2ppo_ros.recording.observations import Observations
from d2ppo_ros.recording.reader import Trial
from d2ppo_ros.recording.replay import PolicyOptions, options_of, replay
from d2ppo_ros.recording.writer import TrialWriter
from d2ppo_ros.records import SECOND, ArmState, ChunkRequest, Command, RobotState, Target
from d2ppo_sim.toy import Reach
from trials_support import (
    CAMERA,
    OURS,
    STORE,
    TOPICS,
    build,
    chunk,
    command,
    header,
    image,
    metadata,
    record_episode,
    request,
    state,
    tiny_policy,
)

STEP = SECOND // 20


@pytest.fixture(autouse=True)
def _without_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """`d2ppo trials`, whether or not this installation knows the command already."""
    known = cli.registered()
    monkeypatch.setattr(cli, "registered", lambda: {**known, "trials": TRIALS})


@pytest.fixture
def policy(tmp_path: Path) -> tuple[Path, Actor]:
    path = tmp_path / "policy.safetensors"
    return path, tiny_policy(path)


def recorded(tmp_path: Path, policy: tuple[Path, Actor], name: str = "t", **options: object) -> Path:
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


@pytest.mark.parametrize(("history", "cameras"), [(1, False), (2, False), (1, True), (2, True)])
def test_a_replay_gives_the_same_bits(tmp_path: Path, history: int, cameras: bool) -> None:
    path = tmp_path / "policy.safetensors"
    actor = tiny_policy(path, history, cameras)
    trial = Trial(recorded(tmp_path, (path, actor), cameras=cameras))
    result = replay(trial, options_of(trial))
    assert result.differences == dict.fromkeys(range(4), 0.0)
    assert result.same(0.0)
    assert result.unseen == []
    assert not replay(trial, options_of(trial, seed=1)).same(0.0), "another seed is other noise"


def test_what_differs_is_found(tmp_path: Path, policy: tuple[Path, Actor], capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(tmp_path, policy)
    assert cli.main(["trials", "replay", str(folder)]) == 0
    assert "4 of 4 chunks replayed, 4 identical in every bit" in capsys.readouterr().out

    def corrupt(message: object, count: int) -> bytes:
        actions = np.array(message.actions)
        actions[3] += 1e-9 if count == 2 else 0.0
        message.actions = actions
        return bytes(STORE.serialize_cdr(message, OURS + "ActionChunk"))

    bad = again(folder, tmp_path / "bad", "/policy/chunk", corrupt)
    assert cli.main(["trials", "replay", str(bad), "--json", "--run-dir", str(tmp_path / "run")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["compared"], found["identical"], found["worst_chunk"]) == (4, 3, 2)
    assert found["largest_difference"] == pytest.approx(1e-9)
    assert json.loads((tmp_path / "run" / "replay.json").read_text()) == found
    assert cli.main(["trials", "replay", str(bad), "--tolerance", "1e-8"]) == 0


def test_a_lost_observation_is_told(tmp_path: Path, policy: tuple[Path, Actor]) -> None:
    """Chunk 1 looks at state 2; the rest is still compared."""
    folder = recorded(tmp_path, policy)

    def lose(message: object, count: int) -> bytes | None:
        return None if count == 2 else bytes(STORE.serialize_cdr(message, OURS + "StateVector"))

    trial = Trial(again(folder, tmp_path / "holes", "/robot/state", lose))
    result = replay(trial, options_of(trial))
    assert result.missing.keys() == {1}
    assert "no 'position' within" in result.missing[1]
    assert result.differences == {0: 0.0, 2: 0.0, 3: 0.0}
    assert not result.same(1.0)


def test_the_picture_before_is_among_what_the_policy_may_have_seen(tmp_path: Path) -> None:
    """In real time the recorder may have had a picture that the policy had not; the digest then says which it was."""
    path = tmp_path / "policy.safetensors"
    actor = tiny_policy(path, 1, True)
    folder = recorded(tmp_path, (path, actor), cameras=True)

    def a_step_earlier(message: object, count: int) -> bytes:
        at = message.header.stamp.sec * SECOND + message.header.stamp.nanosec - SECOND // 20 - 1
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(at, SECOND)
        return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/Image"))

    def asked(trial: Trial) -> list[list[dict[str, np.ndarray]]]:
        observations = Observations(trial, actor.policy.spec.observation, SECOND // 20)
        requests = list(trial.records(ChunkRequest, "policy/request"))
        return [observations.at(request.stamp, request.start)[0] for request in requests[1:3]]

    late = Trial(again(folder, tmp_path / "late", "/camera/eye/image", a_step_earlier))
    for (seen,), candidates in zip(asked(Trial(folder)), asked(late), strict=True):
        same = [all(np.array_equal(seen[name], one[name]) for name in seen) for one in candidates]
        assert same == [False, False, True]


def test_an_observation_that_the_policy_did_not_see_is_told(tmp_path: Path, policy: tuple[Path, Actor]) -> None:
    """State 2 was changed after the policy had looked at it."""
    folder = recorded(tmp_path, policy)

    def change(message: object, count: int) -> bytes:
        message.values = np.asarray(message.values) + (1e-3 if count == 2 else 0.0)
        return bytes(STORE.serialize_cdr(message, OURS + "StateVector"))

    trial = Trial(again(folder, tmp_path / "changed", "/robot/state", change))
    result = replay(trial, options_of(trial))
    assert result.unseen == [1]
    assert result.differences[1] > 0


def test_another_policy_is_refused_unless_it_is_wanted(tmp_path: Path, policy: tuple[Path, Actor]) -> None:
    trial = Trial(recorded(tmp_path, policy))
    other = tmp_path / "other.safetensors"
    changed = tiny_policy(other).policy
    for parameter in changed.network.parameters():
        parameter.data += 0.1
    save_policy(other, changed.spec, {"raw": changed.network, "ema": changed.network, "normalizer": changed.normalizer})
    with pytest.raises(UserError, match="is not the policy that ran"):
        replay(trial, PolicyOptions(str(other)))
    assert replay(trial, PolicyOptions(str(other)), any_policy=True).largest > 0
    with pytest.raises(UserError, match="is not here any more"):
        options_of(trial, checkpoint="/nowhere/policy.safetensors")


def test_an_export_trains(tmp_path: Path, policy: tuple[Path, Actor], capsys: pytest.CaptureFixture[str]) -> None:
    good = [recorded(tmp_path, policy, f"t{seed}", seed=seed) for seed in (3, 4)]
    out = tmp_path / "recorded.hdf5"
    assert cli.main(["trials", "export", *map(str, good), "--out", str(out)]) == 0
    assert "2 episodes, 16 control steps" in capsys.readouterr().out
    spec = policy[1].policy.spec
    data = read_demonstrations(out, "Reach", spec.observation, spec.action)
    assert [len(actions) for actions in data.actions] == [8, 8]
    twin = Reach()
    seen = twin.reset(3)
    for observed, action in zip(data.states[0], data.actions[0], strict=True):
        np.testing.assert_array_equal(observed, np.concatenate([seen["position"], seen["goal"]]).astype(np.float32))
        exact = next(c.action for c in Trial(good[0]).records(Command, "command/applied")
                     if (c.action.astype(np.float32) == action).all())  # fmt: skip
        seen = twin.step(exact).observation
    with h5py.File(out) as file:
        assert file["data/demo_0/dones"][-1] == 1
        assert file["data/demo_0"].attrs["trial"] == "t"
    run = ["pretrain", "task=reach", "experiment=debug", "threads=1", f"data={out}", f"run_dir={tmp_path / 'run'}"]
    assert cli.main([*run, "train.steps=2", "train.flat_dimensions=centre"]) == 0
    assert (tmp_path / "run" / "policy.safetensors").exists()


def test_failures_are_left_out_unless_all_is_asked(
    tmp_path: Path, policy: tuple[Path, Actor], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded(tmp_path, policy)
    about = json.loads((folder / "trial.json").read_text())
    (folder / "trial.json").write_text(json.dumps({**about, "outcome": {"success": False}}))
    assert cli.main(["trials", "export", str(folder), "--out", str(tmp_path / "x.hdf5")]) == 2
    assert "it did not succeed" in capsys.readouterr().err
    assert not (tmp_path / "x.hdf5").exists()
    assert cli.main(["trials", "export", str(folder), "--out", str(tmp_path / "x.hdf5"), "--all"]) == 0
    assert cli.main(["trials", "export", str(folder), "--out", str(tmp_path / "x.hdf5")]) == 2
    assert "exists; choose another --out" in capsys.readouterr().err


def test_a_trial_with_a_gap_is_left_out_and_the_others_are_exported(
    tmp_path: Path, policy: tuple[Path, Actor], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded(tmp_path, policy)

    def lose(message: object, count: int) -> bytes | None:
        return None if count == 2 else bytes(STORE.serialize_cdr(message, OURS + "StateVector"))

    holes = again(folder, tmp_path / "holes", "/robot/state", lose)
    assert cli.main(["trials", "export", str(folder), str(holes), "--out", str(tmp_path / "x.hdf5")]) == 0
    told = capsys.readouterr()
    assert "1 episodes, 8 control steps" in told.out
    assert f"left out {holes}" in told.err and "no 'position' within" in told.err
    assert cli.main(["trials", "export", str(holes), "--out", str(tmp_path / "y.hdf5")]) == 2
    assert "no 'position' within" in capsys.readouterr().err and not (tmp_path / "y.hdf5").exists()


def test_pictures_are_exported_with_what_made_them(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    actor = tiny_policy(path, cameras=True)
    trial = Trial(recorded(tmp_path, (path, actor), cameras=True))
    report = export.export_robomimic([trial], tmp_path / "x.hdf5")
    assert (report.episodes, report.steps) == (1, 8)
    spec: ObservationSpec = actor.policy.spec.observation
    data = read_demonstrations(tmp_path / "x.hdf5", "Reach", spec, actor.policy.spec.action)
    pictures = [picture for _, _, _, picture in trial.pictures()]
    np.testing.assert_array_equal(data.images["eye"][0], pictures[:8])


def pose_spec(tmp_path: Path) -> object:
    spec = tiny_policy(tmp_path / "p.safetensors").policy.spec
    return spec.model_copy(update={"action": ActionSpec()})


def test_absolute_targets_become_the_deltas_that_they_came_from(tmp_path: Path) -> None:
    """A reference that follows raw actions in closed form, sent as targets at 100 Hz, tracked without error."""
    spec, rng = pose_spec(tmp_path), np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (5, 7))
    motion = at_rest(np.array([0.4, 0.1, 0.3]), Rotation.from_euler("xyz", [3.0, 0.1, 0.2]).as_matrix())
    trial = TrialWriter(tmp_path / "t", TOPICS, metadata(spec, tmp_path / "p.safetensors"))
    for i, action in enumerate(actions):
        goal = motion.position + 0.05 * action[:3]
        turned = Rotation.from_rotvec(0.5 * action[3:6]).as_matrix() @ motion.rotation
        for tick in range(5):
            stamp, now = i * STEP + tick * SECOND // 100, advance(motion, goal, turned, tick / 100)
            trial.write("/robot/arm0", stamp, arm_message(stamp, now))
            trial.write("/command/applied", stamp + 1, command(stamp, stamp, np.zeros(0), 3, (target(now, action[6]),)))
        motion = advance(motion, goal, turned, 0.05)
    trial.close({"success": True})
    report = Exported()
    steps = export.applied_actions(Trial(tmp_path / "t"), spec, report)
    assert [stamp for stamp, _ in steps] == [i * STEP for i in range(5)]
    np.testing.assert_allclose([action for _, action in steps], actions, atol=1e-9)
    assert report.clipped == 0


def arm_message(stamp: int, motion: object) -> bytes:
    t = STORE.types
    zero = t["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
    return build(
        OURS + "ArmState", header=header(stamp), q=np.zeros(7), dq=np.zeros(7), pose=pose(motion), ok=True, fault="",
        wrench=t["geometry_msgs/msg/Wrench"](zero, zero),
    )  # fmt: skip


def pose(motion: object) -> object:
    t, quaternion = STORE.types, Rotation.from_matrix(motion.rotation).as_quat()
    return t["geometry_msgs/msg/Pose"](
        t["geometry_msgs/msg/Point"](*motion.position), t["geometry_msgs/msg/Quaternion"](*quaternion)
    )


def target(motion: object, gripper: float) -> object:
    t = STORE.types
    vector = t["geometry_msgs/msg/Vector3"]
    v, a = motion.velocity, motion.acceleration
    return t[OURS + "Target"](
        pose(motion), t["geometry_msgs/msg/Twist"](vector(*v[:3]), vector(*v[3:])),
        t["geometry_msgs/msg/Accel"](vector(*a[:3]), vector(*a[3:])), float(gripper),
    )  # fmt: skip


def test_targets_out_of_reach_are_clipped_and_counted(tmp_path: Path) -> None:
    spec = pose_spec(tmp_path)
    far = Target(np.array([1.0, 0, 0]), np.array([0, 0, 0, 1.0]), np.zeros(6), np.zeros(6), 1.0)
    arm = ArmState(0, np.zeros(7), np.zeros(7), np.zeros(3), np.eye(3))
    assert export.delta_of(far, arm, spec)[0] == pytest.approx(20.0)


def test_targets_without_measured_poses_are_refused(tmp_path: Path) -> None:
    spec = pose_spec(tmp_path)
    trial = TrialWriter(tmp_path / "t", TOPICS, metadata(spec, tmp_path / "p.safetensors"))
    motion = at_rest(np.zeros(3), np.eye(3))
    trial.write("/command/applied", 1, command(0, 0, np.zeros(0), 3, (target(motion, 0.0),)))
    trial.write("/robot/state", 2, state(0, 0, {"position": np.zeros(2), "goal": np.zeros(2)}))
    trial.close({"success": True})
    with pytest.raises(UserError, match="no measured poses"):
        export.export_robomimic([Trial(tmp_path / "t")], tmp_path / "x.hdf5")


def test_lerobot_has_the_structure_of_v3(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "policy.safetensors"
    actor = tiny_policy(path, cameras=True)
    trials = [Trial(recorded(tmp_path, (path, actor), f"t{n}", seed=n, cameras=True)) for n in (1, 2)]
    out = tmp_path / "set"
    report = export_lerobot.export_lerobot(trials, out)
    assert (report.episodes, report.steps) == (2, 16)
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 20, 16)
    assert info["splits"] == {"train": "0:2"}
    frames = [parquet.read_table(out / info["data_path"].format(chunk_index=0, file_index=n)) for n in (0, 1)]
    assert set(frames[0].column_names) == set(info["features"])
    assert frames[1]["index"].to_pylist() == list(range(8, 16))
    assert frames[1]["episode_index"].to_pylist() == [1] * 8
    np.testing.assert_allclose(frames[0]["timestamp"].to_pylist(), np.arange(8) / 20, atol=1e-6)
    actions = np.array([c.action for c in trials[0].records(Command, "command/applied")], dtype=np.float32)
    np.testing.assert_array_equal(frames[0]["action"].to_pylist(), actions)
    cv2 = pytest.importorskip("cv2")
    stored = frames[0][f"observation.images.{CAMERA.name}"][3].as_py()["bytes"]
    picture = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(picture, [p for _, _, _, p in trials[0].pictures()][3])
    episodes = parquet.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"], e["length"]) for e in episodes] == [(0, 8, 8), (8, 16, 8)]
    assert episodes[1]["data/file_index"] == 1
    stats = json.loads((out / "meta/stats.json").read_text())
    both = np.concatenate([f["action"].to_pylist() for f in frames])
    assert set(stats) == set(info["features"])
    np.testing.assert_allclose(stats["action"]["mean"], both.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], both.std(0), atol=1e-6)
    assert stats["action"]["count"] == [16]
    assert np.shape(stats["observation.images.eye"]["mean"]) == (3, 1, 1)
    tasks = parquet.read_table(out / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    with pytest.raises(UserError, match="exists; choose another --out"):
        export_lerobot.export_lerobot(trials, out)


def test_without_pyarrow_one_sentence_says_what_to_install(
    tmp_path: Path, policy: tuple[Path, Actor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded(tmp_path, policy)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    arguments = ["trials", "export", str(folder), "--format", "lerobot", "--out", str(tmp_path / "set")]
    assert cli.main(arguments) == 2
    assert "pip install pyarrow" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_show_counts_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.safetensors"
    folder = recorded(tmp_path, (path, tiny_policy(path, cameras=True)), cameras=True)

    def lose(message: object, count: int) -> bytes | None:
        return None if count in (2, 3) else bytes(STORE.serialize_cdr(message, OURS + "FrameInfo"))

    holes = again(folder, tmp_path / "holes", "/camera/eye/frame", lose)
    assert cli.main(["trials", "show", str(folder), str(holes), "--json"]) == 0
    whole, torn = json.loads(capsys.readouterr().out)
    assert whole["lossy"] is False
    assert torn["lossy"] is True
    assert torn["topics"]["/camera/eye/frame"]["missing"] == 2
    assert whole["topics"]["/command/applied"] | {"rate": 0} == {
        "type": OURS + "Command", "seen": 8, "written": 8, "dropped": 0, "lost": 0, "missing": 0, "rate": 0
    }  # fmt: skip
    assert whole["chunks"]["inference_ms"]["median"] == 2.0
    assert whole["commands"] == {"requested": {"DELTA": 8}, "applied": {"DELTA": 8}}
    assert (whole["success"], whole["episode"]["control_steps"], whole["task"]) == (True, 8, "reach")
    assert cli.main(["trials", "show", str(folder)]) == 0
    assert "inference 2.0 ms" in capsys.readouterr().out


def test_recover_is_a_command(tmp_path: Path, policy: tuple[Path, Actor], capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(tmp_path, policy)
    (folder / "metadata.yaml").unlink()
    mcap = folder / "t.mcap"
    mcap.write_bytes(mcap.read_bytes()[:-2000])
    assert cli.main(["trials", "show", str(folder)]) == 2
    assert "d2ppo trials recover" in capsys.readouterr().err
    assert cli.main(["trials", "recover", str(folder)]) == 0
    assert "recovered" in capsys.readouterr().out
    assert cli.main(["trials", "show", str(folder)]) == 0
    assert cli.main(["trials", "replay", str(tmp_path)]) == 2
    assert "is no recorded trial" in capsys.readouterr().err


def test_in_real_time_the_replay_sees_what_had_arrived(tmp_path: Path) -> None:
    """Pictures of a camera with its own rhythm and delay, some received only after the policy had begun."""
    path, now, start = tmp_path / "policy.safetensors", 10**18, 5 * SECOND
    actor = tiny_policy(path, cameras=True)
    spec, rng = actor.policy.spec, np.random.default_rng(0)
    grid = ObservationGrid(spec.observation, STEP, SECOND // 10)
    trial = TrialWriter(tmp_path / "t", TOPICS, metadata(spec, path))
    events = [(start + n * 10_000_000, 1_000_000, "state") for n in range(100)]
    events += [(start + n * 33_000_000, int(rng.integers(5, 60)) * 1_000_000, "eye") for n in range(30)]
    events += [(start + 7 + n * 2 * STEP, 0, "ask") for n in range(8)]
    waiting, index = None, 0
    for stamp, delay, kind in sorted(events, key=lambda event: event[0] + event[1]):
        received = now + stamp + delay
        if kind == "state":
            values = {name: rng.uniform(-1, 1, 2) for name in ("position", "goal")}
            grid.add_state(RobotState(stamp, "t", 0, values))
            trial.write("/robot/state", received, state(stamp, 0, values))
        elif kind == "eye":
            picture = rng.integers(0, 256, (16, 17, 3), dtype=np.uint8)
            grid.add_image("eye", stamp, picture)
            trial.write("/camera/eye/image", received, image(stamp, picture))
        else:
            waiting = stamp
            trial.write("/policy/request", received, request(stamp, index, 3, start))
        if waiting and grid.ready(waiting, start):
            actions = actor.predict(grid.assemble(waiting, start), [3], [index])[0]
            trial.write("/policy/chunk", received + 2_000_000, chunk(waiting, index, actions, 2, sha256(path)))
            waiting, index = None, index + 1
    trial.close({})
    result = replay(Trial(tmp_path / "t"), options_of(Trial(tmp_path / "t")))
    assert len(result.differences) == 8
    assert result.largest == 0.0
