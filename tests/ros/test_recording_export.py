"""Recorded trials are exported to train on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from d2ppo_core import cli
from d2ppo_core.contract import ActionSpec, ObservationSpec
from d2ppo_core.data.robomimic import read_demonstrations
from d2ppo_core.errors import UserError
from d2ppo_core.inference import Actor
from d2ppo_core.response import advance, at_rest
from d2ppo_ros.recording import export, export_lerobot
from d2ppo_ros.recording.export import Exported
from d2ppo_ros.recording.reader import Trial
from d2ppo_ros.recording.writer import TrialWriter
from d2ppo_ros.records import SECOND, ArmState, Command, Target
from d2ppo_sim.toy import Reach
from trials_support import (
    CAMERA,
    OURS,
    STORE,
    TOPICS,
    again,
    build,
    command,
    header,
    metadata,
    recorded,
    state,
    tiny_policy,
)

STEP = SECOND // 20


@pytest.fixture
def policy(tmp_path: Path) -> tuple[Path, Actor]:
    path = tmp_path / "policy.safetensors"
    return path, tiny_policy(path)



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
    assert "1 episodes, 8 control steps" in told.out and "(1 of 2 trials left out)" in told.out
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
