"""Scripted experts and the recording of their demonstrations."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest

from d2ppo_core import cli
from d2ppo_core.data.robomimic import read_demonstrations
from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_sim import demos
from d2ppo_sim.experts import EXPERTS, ActionNoise
from d2ppo_sim.experts.can import CanExpert
from d2ppo_sim.experts.square import SquareExpert
from d2ppo_sim.experts.transport import TransportExpert

REACH = demos.Settings("toy", "Reach", 0, 0.3, 0.0, 40)
LIFT = demos.Settings("robosuite", "Lift", 0, 0.1, 0.05, 300)
CAN = demos.Settings("robosuite", "PickPlaceCan", 0, 0.1, 0.05, 300)
SQUARE = demos.Settings("robosuite", "NutAssemblySquare", 0, 0.1, 0.05, 400)
TRANSPORT = demos.Settings("robosuite", "TwoArmTransport", 0, 0.1, 0.05, 800)
FRESH = range(50_000, 50_200)  # seeds that no expert was tuned on


def record(settings, episodes, out, workers=1, overwrite=False):
    parts = demos.open_parts(out, settings, overwrite)
    return demos.record(settings, episodes, out, parts=parts, workers=workers, on_trial=lambda trials: None)


def test_noise_has_the_deviation_asked_for_and_is_clipped():
    noise = ActionNoise(np.random.default_rng(0), np.array([0.2, 0.0]))
    drawn = np.array([noise.perturb(np.zeros(2)) for _ in range(20_000)])
    assert drawn[:, 0].std() == pytest.approx(0.2, rel=0.05)
    assert np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1] == pytest.approx(0.7, abs=0.03)
    assert not drawn[:, 1].any()
    assert noise.perturb(np.array([5.0, -5.0])).tolist() == [1.0, -1.0]


def test_file_does_not_depend_on_the_number_of_workers(tmp_path):
    one = record(REACH, 12, tmp_path / "one.hdf5", workers=1)
    two = record(REACH, 12, tmp_path / "two.hdf5", workers=2)
    assert one == two
    assert sum(not t.success for t in one) > 0  # at this noise some fail, and are left out
    assert sha256(tmp_path / "one.hdf5") == sha256(tmp_path / "two.hdf5")
    with h5py.File(tmp_path / "one.hdf5") as file:
        seeds = [file[f"data/demo_{i}"].attrs["seed"] for i in range(12)]
        assert seeds == [t.seed for t in one if t.success]
        accepted = json.loads(file["data"].attrs["acceptance"])
        assert sum(c["kept"] for c in accepted.values()) == 12
        assert sum(c["tried"] for c in accepted.values()) == len(one)
        assert {demo.attrs["mode"] for demo in file["data"].values()} == {"left", "right"}


def test_recorded_actions_lead_from_each_observation_to_the_next(tmp_path):
    record(REACH, 3, tmp_path / "reach.hdf5")
    with h5py.File(tmp_path / "reach.hdf5") as file:
        for demo in file["data"].values():
            simulation = demos.build_simulation(REACH)
            seen, done = simulation.reset(int(demo.attrs["seed"])), []
            for t, action in enumerate(demo["actions"]):
                np.testing.assert_array_equal(seen["position"], demo["obs/position"][t])
                np.testing.assert_array_equal(simulation.state(), demo["states"][t])
                outcome = simulation.step(action)
                seen = outcome.observation
                np.testing.assert_array_equal(seen["position"], demo["next_obs/position"][t])
                assert outcome.reward == demo["rewards"][t]
                done.append(outcome.success)
            assert done[-1] and demo["dones"][-1] == 1
            assert 5 <= len(done) - done.index(True) - 1 <= 10 or len(done) == 40


@pytest.mark.parametrize("task_name,settings", [("reach", REACH), pytest.param("lift", LIFT, marks=pytest.mark.sim)])
def test_our_reader_accepts_the_file(tmp_path, task_name, settings):
    record(settings, 2, tmp_path / "demos.hdf5")
    task = load_task(task_name)
    read = read_demonstrations(tmp_path / "demos.hdf5", task.environment, observation_spec(task), action_spec(task))
    assert len(read.states) == 2
    assert read.states[0].shape == (len(read.actions[0]), observation_spec(task).state_size)
    assert read.simulator.name == settings.simulator


@pytest.mark.sim
def test_lift_file_holds_what_robomimic_needs(tmp_path):
    record(LIFT, 1, tmp_path / "lift.hdf5")
    with h5py.File(tmp_path / "lift.hdf5") as file:
        args, demo = json.loads(file["data"].attrs["env_args"]), file["data/demo_0"]
        assert (args["env_name"], args["env_version"], args["type"]) == ("Lift", "1.4.1", 1)
        assert args["env_kwargs"]["controller_configs"]["type"] == "OSC_POSE"
        assert demo["states"].shape == (len(demo["actions"]), 1 + 16 + 15)
        assert demo.attrs["model_file"].lstrip().startswith("<mujoco")
        assert demo["obs/object"].dtype == np.float64
        assert sorted(demo["obs"]) == sorted(k.name for k in observation_spec(load_task("lift")).lowdim)


@pytest.mark.sim
def test_lift_expert_succeeds(tmp_path):
    trials = record(LIFT, 6, tmp_path / "lift.hdf5")
    assert len(trials) == 6
    assert len({t.mode for t in trials}) >= 2


@pytest.mark.sim
@pytest.mark.parametrize("settings", [CAN, SQUARE], ids=["can", "square"])
def test_can_and_square_experts_succeed(tmp_path, settings):
    trials = record(settings, 3, tmp_path / "demos.hdf5")
    assert len(trials) <= 4
    assert len({t.mode for t in trials}) >= 2
    with h5py.File(tmp_path / "demos.hdf5") as file:
        assert all(demo["rewards"][-1] == 1.0 for demo in file["data"].values())


@pytest.mark.sim
def test_transport_expert_drives_both_arms(tmp_path):
    record(replace(TRANSPORT, first_seed=1), 1, tmp_path / "transport.hdf5")
    with h5py.File(tmp_path / "transport.hdf5") as file:
        demo = file["data/demo_0"]
        assert demo["actions"].shape[1] == 14
        assert demo["rewards"][-1] == 1.0
        assert (np.ptp(demo["actions"][:, [6, 13]], axis=0) == 2).all()  # both grippers open and close


@pytest.mark.sim
def test_scenes_are_as_the_experts_were_told():
    can, square = demos.build_simulation(CAN).env, demos.build_simulation(SQUARE).env
    low, high = np.array(CanExpert.QUARTER)
    np.testing.assert_allclose((low + high) / 2, can.target_bin_placements[can.object_id][:2], atol=0.01)
    np.testing.assert_allclose(low, can.bin2_pos[:2])
    assert can.bin2_pos[2] + 0.02 == pytest.approx(CanExpert.BIN_FLOOR)  # its floor is 4 cm thick
    peg = square.sim.data.body_xpos[square.peg1_body_id] + [0, 0, square.sim.model.geom_size[_geom(square, "peg1")][2]]
    np.testing.assert_allclose(SquareExpert.PEG, peg)
    for settings in (LIFT, CAN, SQUARE, TRANSPORT):
        env, expert = demos.build_simulation(settings).env, EXPERTS[settings.simulator, settings.environment]
        bases = [env.sim.data.get_body_xpos(robot.robot_model.root_body)[:2] for robot in env.robots]
        np.testing.assert_allclose(getattr(expert, "BASES", None) or (expert.BASE,), bases, atol=1e-6)
    wall = env.sim.data.get_geom_xpos("transport_start_bin_wall0")[2] + env.sim.model.geom_size[
        env.sim.model.geom_name2id("transport_start_bin_wall0")][2]
    assert wall == pytest.approx(TransportExpert.WALL_TOP, abs=1e-3)


def _geom(env, body):
    """A body's first geom that takes part in contacts."""
    model = env.sim.model
    geoms = np.flatnonzero((model.geom_bodyid == model.body_name2id(body)) & (model.geom_contype > 0))
    return int(geoms[0])


def test_worse_quality_is_noisier_and_refused_if_unknown(tmp_path, capsys):
    better, worse = (demos.Recorder(replace(REACH, quality=q), str(tmp_path)) for q in ("better", "worse"))
    np.testing.assert_allclose(worse._deviations(), 1.6 * better._deviations())
    arguments = ["demos", "task=reach", "demos.quality=best", f"run_dir={tmp_path}/run", f"demos.out={tmp_path}/r.hdf5"]
    assert cli.main(arguments) == 2
    assert "better, okay, worse" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sim
def test_worse_lift_demonstrations_are_longer_and_retried(tmp_path):
    steps, grasps = {}, {}
    for quality in ("better", "worse"):
        out = tmp_path / f"{quality}.hdf5"
        trials = record(replace(LIFT, quality=quality), 12, out)
        steps[quality] = np.mean([t.steps for t in trials if t.success])
        with h5py.File(out) as file:
            grasps[quality] = sum((np.diff(demo["actions"][:, 6]) > 1).sum() for demo in file["data"].values())
    assert steps["worse"] > 1.3 * steps["better"]
    assert grasps["worse"] > grasps["better"] == 12


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("settings,least", [
    (LIFT, 198),
    (replace(LIFT, position_noise=0.3, rotation_noise=0.15), 170),
    (CAN, 194),
    (SQUARE, 180),
    (TRANSPORT, 150),
], ids=["lift", "noisy-lift", "can", "square", "transport"])
def test_experts_succeed_on_200_fresh_seeds_in_every_mode(tmp_path, settings, least):
    recorder = demos.Recorder(settings, str(tmp_path))
    trials = [recorder.record(seed) for seed in FRESH]
    wins = sum(t.success for t in trials)
    assert wins >= least
    assert min(count["kept"] for count in demos.acceptance(trials).values()) >= 0.05 * wins


def command(folder, run, *more):
    return [sys.executable, "-m", "d2ppo_core.cli", "demos", "task=reach", "demos.episodes=400", "demos.workers=2",
            f"demos.out={folder}/reach.hdf5", f"run_dir={folder}/{run}", *more]


def test_killed_recording_goes_on_and_gives_the_same_file(tmp_path):
    parts = tmp_path / "killed/reach.hdf5.parts"
    process = subprocess.Popen(command(tmp_path / "killed", "run"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert done and not (tmp_path / "killed/reach.hdf5").exists()
    resumed = subprocess.Popen(command(tmp_path / "killed", "run", "resume=true"), stderr=subprocess.DEVNULL)
    kept = {}
    while resumed.poll() is None:
        for path in done:
            with contextlib.suppress(FileNotFoundError):  # removed once the file is whole
                kept[path] = path.stat().st_mtime_ns
        time.sleep(0.002)
    assert resumed.returncode == 0
    assert kept == done  # none was recorded a second time
    subprocess.run(command(tmp_path / "whole", "run"), check=True, stderr=subprocess.DEVNULL)
    assert sha256(tmp_path / "killed/reach.hdf5") == sha256(tmp_path / "whole/reach.hdf5")
    assert not parts.exists()
    assert json.loads((tmp_path / "killed/run/summary.json").read_text())["kept"] == 400


def test_parts_of_other_settings_are_refused_or_replaced(tmp_path):
    out = tmp_path / "reach.hdf5"
    parts = demos.open_parts(out, REACH, overwrite=False)
    (parts / "0000000000.npz").write_bytes(b"old")
    other = demos.Settings("toy", "Reach", 0, 0.2, 0.0, 40)
    with pytest.raises(UserError, match=r"another position_noise.*overwrite=true"):
        demos.open_parts(out, other, overwrite=False)
    assert not list(demos.open_parts(out, other, overwrite=True).glob("*.npz"))


def test_damaged_part_is_named(tmp_path):
    parts = demos.open_parts(tmp_path / "reach.hdf5", REACH, overwrite=False)
    (parts / "0000000003.npz").write_bytes(b"half an episode")
    with pytest.raises(UserError, match=r"0000000003\.npz is damaged"):
        record(REACH, 2, tmp_path / "reach.hdf5")


def test_existing_file_is_kept_unless_told_otherwise(tmp_path):
    out = tmp_path / "reach.hdf5"
    record(REACH, 2, out)
    before = sha256(out)
    with pytest.raises(UserError, match="exists"):
        record(REACH, 3, out)
    assert sha256(out) == before
    record(REACH, 3, out, overwrite=True)
    assert sha256(out) != before


def test_expert_that_never_succeeds_is_stopped(tmp_path):
    with pytest.raises(UserError, match="failed 50 times"):
        record(demos.Settings("toy", "Reach", 0, 0.1, 0.0, 3), 1, tmp_path / "reach.hdf5")


def test_task_without_expert_is_refused_before_a_run_folder_appears(tmp_path, capsys):
    arguments = ["demos", "task=lift", "task.environment=Door", f"run_dir={tmp_path}/run"]
    assert cli.main([*arguments, f"demos.out={tmp_path}/door.hdf5"]) == 2
    assert "no scripted expert for Door" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
