"""Demonstrations with images: what is recorded, what the reader accepts, and the picture that `doctor` shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from d2ppo_core import doctor, picture
from d2ppo_core.contract import Camera
from d2ppo_core.data.robomimic import RENDERING, read_demonstrations
from d2ppo_core.errors import UserError
from d2ppo_core.inspect_file import describe_dataset
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_sim import demos
from d2ppo_sim.robosuite_env import RobosuiteEnv

pytestmark = pytest.mark.sim
TASK = load_task("lift_image")
CAMERAS = observation_spec(TASK).cameras
KEY = CAMERAS[0].key


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short recordings of Lift with its wrist camera."""
    out = tmp_path_factory.mktemp("demos") / "lift.hdf5"
    cameras = [camera.model_dump() for camera in CAMERAS]
    settings = demos.Settings("robosuite", "Lift", 0, 0.1, 0.05, 300, cameras=cameras)
    parts = demos.open_parts(out, settings, overwrite=False)
    demos.record(settings, 2, out, parts=parts, workers=1, on_trial=lambda trials: None)
    return out


def read(path: Path, **changes: object):
    spec = observation_spec(TASK)
    cameras = tuple(camera.model_copy(update=changes) for camera in spec.cameras)
    observation = spec.model_copy(update={"cameras": cameras})
    return read_demonstrations(path, "Lift", observation, action_spec(TASK))


def test_images_are_stored_as_robomimic_stores_them(file: Path) -> None:
    with h5py.File(file) as opened:
        data, demo = opened["data"], opened["data/demo_0"]
        stored = demo[f"obs/{KEY}"]
        assert stored.shape == (len(demo["actions"]), 96, 96, 3) and stored.dtype == np.uint8
        assert stored.compression == "gzip"
        assert KEY not in demo["next_obs"] and "object" in demo["obs"]
        assert json.loads(data.attrs[RENDERING]) == [camera.model_dump() for camera in CAMERAS]
        kwargs = json.loads(data.attrs["env_args"])["env_kwargs"]
        assert kwargs["use_camera_obs"] and kwargs["camera_names"] == ["robot0_eye_in_hand"]
        env = RobosuiteEnv("Lift", CAMERAS)
        env.reset(int(demo.attrs["seed"]))
        for time in range(3):  # each image shows what was there when its action was chosen
            np.testing.assert_array_equal(env.images(env.view())[KEY], stored[time])
            env.step(demo["actions"][time])
        env.close()


def test_reader_gives_states_without_the_object_and_images(file: Path) -> None:
    found = read(file)
    assert found.states[0].shape == (len(found.actions[0]), 9)
    (images,) = found.images.values()
    assert [image.shape for image in images] == [(len(a), 96, 96, 3) for a in found.actions]
    described = describe_dataset(file)
    assert described["observations"][KEY]["dtype"] == "uint8" and described["attributes"][RENDERING]


def change(file: h5py.File, what: str) -> None:
    demo = file["data/demo_1"]
    if what == "silent":
        del file["data"].attrs[RENDERING]
        return
    image = demo[f"obs/{KEY}"][:]
    del demo[f"obs/{KEY}"]
    if what != "missing":
        demo[f"obs/{KEY}"] = {"float": image / 255.0, "small": image[:, ::2], "short": image[1:]}[what]


@pytest.mark.parametrize(("what", "expected"), [
    ("silent", r"robosuite's settings are assumed .*reflections: False \| True.*multisampling: 0 \| 4"),
    ("missing", "robot0_eye_in_hand_image is missing; the task has this camera"),
    ("float", r"is float64 .*expected uint8"),
    ("small", r"is uint8 \(\d+, 48, 96, 3\), expected uint8 \(\d+, 96, 96, 3\)"),
    ("short", "expected uint8"),
])
def test_wrong_images_are_refused(what: str, expected: str, file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(file, tmp_path / "bad.hdf5"))
    with h5py.File(path, "r+") as opened:
        change(opened, what)
    with pytest.raises(UserError, match=expected):
        read(path)
    if what == "silent":  # robomimic's own data, for a task that states robosuite's own settings
        assert read(path, reflections=True, multisampling=4).images


def test_other_render_settings_are_refused(file: Path) -> None:
    with pytest.raises(UserError, match=r"robot0_eye_in_hand\.multisampling: 4 \| 0"):
        read(file, multisampling=4)


def test_simulators_without_images_do_not_record_them(tmp_path: Path) -> None:
    settings = demos.Settings("toy", "Reach", 0, 0.1, 0.05, 300, cameras=[CAMERAS[0].model_dump()])
    with pytest.raises(UserError, match="'toy' has no camera images"):
        demos.build_simulation(settings)


def test_doctor_shows_the_picture_and_says_which_way_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--picture", str(tmp_path / "eye.png")]) == 0
    printed = capsys.readouterr().out
    assert "row 0 is the upper edge, channels r, g, b" in printed and "top left (" in printed
    assert (tmp_path / "eye.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="task 'reach' has no cameras"):
        doctor.main(["--picture", str(tmp_path / "eye.png"), "--task", "reach"])


@pytest.mark.parametrize(("origin", "colour"), [("top_left", "rgb"), ("bottom_left", "rgb"), ("top_left", "bgr")])
def test_described_corners_are_those_of_the_picture(origin: str, colour: str) -> None:
    camera = Camera(name="c", height=2, width=2, origin=origin, colour=colour, field_of_view=45.0)
    wanted = np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]], dtype=np.uint8)
    stored = wanted[::-1] if origin == "bottom_left" else wanted
    stored = stored[:, :, ::-1] if colour == "bgr" else stored
    np.testing.assert_array_equal(picture.upright(stored, camera), wanted)
    lines = picture.describe(stored, camera)
    assert ("upper" if origin == "top_left" else "lower") in lines[0]
    assert "top left (1, 2, 3), top right (4, 5, 6), bottom left (7, 8, 9)" in lines[1]
