"""Domain randomisation: each term changes what it says and nothing else, and leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from d2ppo_core import cli
from d2ppo_core.conf.schema import ObservationNoiseConfig, RandomiseConfig
from d2ppo_core.contract import Camera
from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.errors import UserError
from d2ppo_core.hydra_command import CONF
from d2ppo_core.randomise import randomisation
from d2ppo_sim import demos
from d2ppo_sim.randomise import parse
from d2ppo_sim.randomised_env import RandomisedEnv
from d2ppo_sim.robosuite_env import RobosuiteEnv

pytestmark = pytest.mark.sim
FRONT = Camera(name="agentview", height=48, width=48, field_of_view=45.0)
TERMS = {
    "camera": {"camera": {"position": 0.05, "rotation": 5.0}},
    "light": {"light": {"position": 0.3, "diffuse": 0.5}},
    "colour": {"colour": {"rgb": 0.3}},
    "mass": {"mass": {"factor": 3.0}},
    "friction": {"friction": {"factor": 2.0}},
    "observation_noise": {"observation_noise": {"eef_pos": 0.01, "eef_quat": 0.01}},
    "action_noise": {"action_noise": {"std": 0.1}},
    "latency": {"latency": {"least": 3, "most": 3}},
}
CHANGED = {  # the fields of the model that a term may change
    "camera": {"cam_pos", "cam_quat"},
    "light": {"light_pos", "light_diffuse"},
    "colour": {"geom_rgba"},
    "mass": {"body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"},
    "friction": {"geom_friction"},
}
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 7)) - [0, 0, 0.4, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def lift():
    env = RobosuiteEnv("Lift", (FRONT,))
    yield env
    env.close()


def fields(model) -> dict[str, np.ndarray]:
    """Every array of the model but the meshes and textures."""
    names = [n for n in dir(model) if not n.startswith(("_", "mesh", "tex", "bvh", "oct", "hfield", "flex", "skin"))]
    return {n: np.array(v) for n in names if isinstance(v := getattr(model, n), np.ndarray)}


def play(env, seed: int) -> dict[str, list]:
    """What is seen, pictured and true along six steps."""
    seen, kept = env.reset(seed), {"seen": [], "image": [], "state": []}
    for action in [None, *ACTIONS]:
        seen = seen if action is None else env.step(action).observation
        kept["seen"].append(np.concatenate([seen[key.name] for key in env.observation.lowdim]))
        kept["image"].append(env.images(env.view())[FRONT.key])
        kept["state"].append(env.state())
    return kept


def same(left: dict, right: dict, what: str) -> bool:
    return np.array_equal(left[what], right[what])


@pytest.mark.parametrize("term", TERMS)
def test_each_term_changes_what_it_says_and_leaves_no_trace(term, lift):
    nominal, before = play(lift, 3), fields(lift.model)
    env = RandomisedEnv(lift, parse(TERMS[term]))
    first = play(env, 3)
    with env._applied():
        inside = fields(lift.model)
    assert {name for name in before if not np.array_equal(before[name], inside[name])} <= CHANGED.get(term, set())
    assert bool(CHANGED.get(term)) == any(not np.array_equal(before[name], inside[name]) for name in before)
    after = fields(lift.model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    other, again, untouched = play(env, 4), play(env, 3), play(lift, 3)
    assert all(same(first, again, what) for what in first), "the same seed, the same world"
    assert all(same(nominal, untouched, what) for what in nominal), "nothing is left behind"
    assert not all(same(first, other, what) for what in first)
    assert np.array_equal(first["state"][0], nominal["state"][0]), "starts depend on the seed alone"
    assert same(first, nominal, "image") == (term in ("mass", "friction", "observation_noise"))
    if term == "mass":  # nothing is lifted in these six steps: the cube only comes to rest a little differently
        np.testing.assert_allclose(first["state"], nominal["state"], atol=1e-4)
        return
    assert same(first, nominal, "state") == (term != "action_noise")
    assert same(first, nominal, "seen") == (term in ("camera", "light", "colour", "friction"))


def test_mass_and_friction_reach_the_physics(lift):
    cube = lift.model.body("cube_main").id
    env = RandomisedEnv(lift, parse(TERMS["mass"] | TERMS["friction"]))
    env.reset(3)
    mass, sliding = float(lift.model.body_mass[cube]), float(lift.model.geom_friction[lift.model.geom("cube_g0").id, 0])
    with env._applied():
        drawn = float(lift.model.body_mass[cube])
        assert drawn != mass and mass / 3 <= drawn <= 3 * mass
        assert lift.model.body_subtreemass[cube] == drawn and lift.model.opt.timestep == 0.002
        assert lift.model.geom_friction[lift.model.geom("cube_g0").id, 0] != sliding
        pads = [lift.model.geom(f"gripper0_finger{n}_pad_collision").id for n in (1, 2)]
        assert lift.model.geom_friction[pads[0], 0] == lift.model.geom_friction[pads[1], 0] != 2.0
        assert (lift.model.geom_friction[pads, 1:] == [0.05, 0.0001]).all()


def test_mass_of_factor_one_is_the_compiled_model(lift):
    from d2ppo_sim.randomise import Mass, _mass, generator

    for name, value in _mass(Mass(), lift.model, lift.data, generator(0, "mass")).items():
        np.testing.assert_array_equal(value, getattr(lift.model, name), err_msg=name)


def test_noise_has_the_deviation_asked_for(lift):
    env = RandomisedEnv(lift, parse({"observation_noise": {
        "gripper_qpos": 0.5, "eef_quat": 0.1, "measured": {"robot0_eef_pos": [0.01, 0.02, 0.0]}}}))  # fmt: skip
    env.reset(1)
    truth = env.truth
    noisy = [env._noisy(truth) for _ in range(2000)]
    error = np.stack([n["robot0_eef_pos"] - truth["robot0_eef_pos"] for n in noisy])
    np.testing.assert_allclose(error.std(axis=0), [0.01, 0.02, 0.0], rtol=0.06)
    assert all(abs(np.linalg.norm(n["robot0_eef_quat"]) - 1) < 1e-12 for n in noisy)
    assert np.array_equal(noisy[0]["object"], truth["object"])
    grip = np.stack([n["robot0_gripper_qpos"] - truth["robot0_gripper_qpos"] for n in noisy])
    np.testing.assert_allclose(grip.std(axis=0), 0.5, rtol=0.06)


def test_late_observations_and_images_are_those_of_earlier_steps(lift):
    nominal, late = play(lift, 5), play(RandomisedEnv(lift, parse(TERMS["latency"])), 5)
    for what in ("seen", "image"):
        for time in range(7):
            np.testing.assert_array_equal(late[what][time], nominal[what][max(0, time - 3)])


def test_action_noise_leaves_the_gripper_alone(lift, monkeypatch):
    done = []
    monkeypatch.setattr(lift, "step", lambda action: done.append(action) or RobosuiteEnv.step(lift, action))
    env = RandomisedEnv(lift, parse(TERMS["action_noise"]))
    env.reset(1)
    env.step(np.array([0.5, 0.5, 0.5, 0, 0, 0, -1.0]))
    assert done[0][6] == -1 and (done[0][:6] != [0.5, 0.5, 0.5, 0, 0, 0]).all() and abs(done[0]).max() <= 1


def rollout(workers: int) -> list[dict]:
    terms = {k: v for term in TERMS.values() for k, v in term.items()} | {"latency": {"least": 0, "most": 2}}
    env = make_env("robosuite", EnvRequest("Lift", 2, 20, workers=workers, cameras=(FRONT,), randomise=terms))
    seen = [env.reset([0, 1], [5, 6]), env.step([0, 1], np.tile(ACTIONS[:4], (2, 1, 1))).observation]
    env.close()
    return seen


def test_all_terms_for_any_number_of_workers():
    for one, two in zip(rollout(1), rollout(2), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(("terms", "expected"), [
    ({"mass": {"factor": 0.5}}, "randomise is not valid: mass.factor"),
    ({"wind": {}}, "wind: Extra inputs"),
    ({"latency": {"least": 2, "most": 1}}, "more than most"),
    ({"observation_noise": {"measured": {"nose": [1.0]}}}, "there is no observation nose; there are robot0_eef_pos"),
    ({"observation_noise": {"measured": {"robot0_eef_pos": [1.0]}}}, "robot0_eef_pos has 3 numbers, not 1"),
])
def test_wrong_terms_are_refused(terms, expected, lift):
    with pytest.raises(UserError, match=expected):
        RandomisedEnv(lift, parse(terms))


def test_geoms_are_chosen_by_name(lift):
    env = RandomisedEnv(lift, parse({"colour": {"rgb": 0.3, "geoms": ["cube_g0_vis"]}}))
    env.reset(0)
    before = lift.model.geom_rgba.copy()
    with env._applied():
        changed = np.flatnonzero((lift.model.geom_rgba != before).any(axis=1))
    assert changed.tolist() == [lift.model.geom("cube_g0_vis").id]
    with pytest.raises(UserError, match=r"no geom nose to be seen; there are .*cube_g0_vis"):
        RandomisedEnv(lift, parse({"colour": {"rgb": 0.3, "geoms": ["nose"]}})).reset(0)


def test_other_simulators_refuse_it():
    with pytest.raises(UserError, match="'toy' has no domain randomisation"):
        make_env("toy", EnvRequest("Reach", 1, 10, randomise=TERMS["mass"]))
    with pytest.raises(UserError, match="'toy' has no domain randomisation"):
        demos.build_simulation(demos.Settings("toy", "Reach", 0, 0.1, 0.05, 300, randomise=TERMS["mass"]))


def test_a_refused_recording_leaves_nothing_behind(tmp_path, capsys):
    arguments = ["demos", f"demos.out={tmp_path / 'lift.hdf5'}", f"run_dir={tmp_path / 'run'}"]
    for wrong, expected in {
        ("task=reach", "randomise=light"): "'toy' has no domain randomisation",
        ("task=lift", "randomise.mass.factor=0.5"): "mass.factor: Input should be greater than",
        ("task=lift", "randomise.observation_noise.file=/nowhere.json"): "no such file",
    }.items():
        assert cli.main([*arguments, *wrong]) == 2
        assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_configuration_becomes_plain_numbers(tmp_path: Path):
    assert randomisation(RandomiseConfig()) == {}
    file = tmp_path / "noise.json"
    file.write_text(json.dumps({"robot0_eef_pos": [0.001, 0.002, 0.003]}))
    config = RandomiseConfig(observation_noise=ObservationNoiseConfig(file=str(file)))
    assert parse(randomisation(config)).observation_noise.measured == {"robot0_eef_pos": (0.001, 0.002, 0.003)}
    assert randomisation(config, wanted=False) == {}
    file.write_text("[1]")
    with pytest.raises(UserError, match="no list of measured noise"):
        randomisation(config)


@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(CONF) / "randomise").glob("*.yaml")))
def test_demonstrations_of_every_shipped_group(name, tmp_path, capsys):
    out = tmp_path / "lift.hdf5"
    arguments = ["demos", "task=lift", f"randomise={name}", "demos.episodes=1"]
    arguments += ["demos.workers=1", f"demos.out={out}", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    assert out.exists()
