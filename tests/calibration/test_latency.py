"""Known delays are found between the samples, whatever the units and axes; what says nothing is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_calibration import synthetic
from d2ppo_calibration.board import BoardSpec
from d2ppo_calibration.commands import CALIBRATE
from d2ppo_calibration.dataset import Dataset, Recording
from d2ppo_calibration.latency import Estimate, Pair, Signal, estimate, named_parameters
from d2ppo_calibration.poses import pose
from d2ppo_core.errors import UserError

SECONDS = 5.0
AXES = np.array([[420.0, -130.0], [90.0, 610.0]])  # pixels a metre


def path(times: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n, 2) m: a brisk motion that does not repeat itself."""
    rng = np.random.default_rng(seed)
    pace, phase, size = rng.uniform(1.0, 9.0, (6, 2)), rng.uniform(0, 6, (6, 2)), rng.uniform(0.01, 0.04, (6, 2))
    return (size * np.sin(pace * times[:, None, None] + phase)).sum(1)


def signal(rate: float, delay: float, seed: int, axes: np.ndarray | None = None, noise: float = 0.0) -> Signal:
    """What a sensor says that is `delay` late, at uneven times."""
    rng = np.random.default_rng(seed)
    times = np.arange(0, SECONDS, 1 / rate) + rng.uniform(0, 0.2 / rate, round(SECONDS * rate))
    values = path(times - delay) @ (np.eye(2) if axes is None else axes)
    values = values + noise * rng.normal(size=values.shape)
    return Signal(time=tuple(times.tolist()), value=tuple(map(tuple, values.tolist())))


@settings(max_examples=12, deadline=None)
@given(delay=st.floats(-0.05, 0.35), seed=st.integers(0, 99))
def test_a_cameras_delay_is_found_within_milliseconds(delay, seed):
    """30 pictures a second, half a pixel of noise, against an arm at 100 Hz with 0.1 mm of noise."""
    found = estimate(signal(100, 0, seed, noise=0.0001), signal(30, delay, seed + 1, AXES, noise=0.5))
    assert abs(found.seconds - delay) < 0.002 and found.spread < 0.006 and found.explained > 0.99


@given(delay=st.floats(0.0, 0.3))
@settings(max_examples=8, deadline=None)
def test_one_number_is_enough(delay):
    """As with a gripper's width; its scale and sign do not matter."""
    first, second = signal(50, 0, 1), signal(50, delay, 2)
    widths = (tuple(v[0] for v in first.value), tuple(-40 * v[0] + 3 for v in second.value))
    one = Signal(time=first.time, value=widths[0])
    assert abs(estimate(one, Signal(time=second.time, value=widths[1])).seconds - delay) < 0.002


def constant(times: tuple[float, ...]) -> Signal:
    return Signal(time=times, value=(1.0,) * len(times))


def circle(delay: float) -> Signal:
    times = np.arange(0, SECONDS, 0.02)
    values = np.stack([np.cos(5 * (times - delay)), np.sin(5 * (times - delay))], axis=1)
    return Signal(time=tuple(times.tolist()), value=tuple(map(tuple, values.tolist())))


@pytest.mark.parametrize(("reference", "delayed", "says"), [
    (signal(50, 0, 0), constant(signal(50, 0, 0).time), "do not belong together"),
    (constant(signal(50, 0, 0).time), signal(50, 0, 0), "do not belong together"),
    (signal(50, 0, 0), signal(50, 0, 0, noise=1.0), "do not belong together"),
    (circle(0.0), circle(0.1), "does not repeat itself"),
    (signal(50, 0, 0), signal(50, 0.52, 1), "at the end of the range"),
    (Signal(time=signal(50, 0, 0).time[:30], value=signal(50, 0, 0).value[:30]), signal(50, 0.1, 1), "overlap"),
])  # fmt: skip
def test_what_says_nothing_is_refused(reference, delayed, says):
    with pytest.raises(UserError, match=says):
        estimate(reference, delayed)


def test_named_parameters_hold_what_the_simulator_reads():
    found = {"camera": Estimate(0.062, 0.002, 0.99, 400), "robot_observation": Estimate(-0.001, 0.001, 0.99, 400),
             "robot_action": Estimate(0.4, 0.002, 0.99, 400)}  # fmt: skip
    values = named_parameters(found, control_hz=20)
    assert values["latency"] == {"camera": 0.062, "robot_observation": -0.001, "robot_action": 0.4}
    assert values["simulator"] == {"image_latency": 0.062, "state_latency": 0.0}
    assert values["randomise"] == {"least": 0, "most": 2}  # 66 ms of observations at 50 ms a step
    assert values["measured"]["camera"]["spread"] == 0.002


def test_the_simulators_node_has_these_parameters():
    faults = pytest.importorskip("d2ppo_ros.nodes.sim_faults").Faults
    values = named_parameters({"camera": Estimate(0.1, 0, 1, 9), "robot_observation": Estimate(0.1, 0, 1, 9)}, 20)
    assert set(values["simulator"]) <= set(faults.__dataclass_fields__)


def write_signals(path: Path, **delays: float) -> Path:
    first = signal(50, 0, 3)
    pairs = [Pair(name=name, reference=first, delayed=signal(50, delay, 4)) for name, delay in delays.items()]
    path.write_text(json.dumps({"pairs": [pair.model_dump() for pair in pairs]}))
    return path


def test_the_command_keeps_what_was_measured_before(tmp_path: Path):
    out, ros = tmp_path / "latency.yaml", tmp_path / "sim.yaml"
    first = write_signals(tmp_path / "a.json", robot_action=0.11, gripper_action=0.2)
    second = write_signals(tmp_path / "b.json", camera=0.07)
    assert CALIBRATE.run(["latency", str(first), "--out", str(out)]) == 0
    assert CALIBRATE.run(["latency", str(second), "--out", str(out), "--ros", str(ros)]) == 0
    values = yaml.safe_load(out.read_text())
    wanted = {"robot_action": 0.11, "gripper_action": 0.2, "camera": 0.07}
    assert values["latency"] == pytest.approx(wanted, abs=0.002) and set(values["measured"]) == set(wanted)
    assert yaml.safe_load(ros.read_text())["/**/sim"]["ros__parameters"] == values["simulator"]


@pytest.mark.parametrize(("text", "says"), [
    ("{", "is not JSON"), ("{}", "is not valid"), ('{"pairs": []}', "is not valid"),
    ('{"pairs": [{"name": "lens", "reference": 1}]}', "is not valid"),
])  # fmt: skip
def test_bad_files_are_answered_in_a_sentence(text, says, tmp_path: Path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=says):
        CALIBRATE.run(["latency", str(tmp_path / "s.json"), "--out", str(tmp_path / "l.yaml")])
    assert not (tmp_path / "l.yaml").exists()


def test_bad_signals_and_options_are_answered_in_a_sentence(tmp_path: Path):
    times = tuple(np.arange(25) / 10)
    for values, says in (
        ({"time": times, "value": times[:-1]}, "25 times, but 24 values"),
        ({"time": times[::-1], "value": times}, "do not increase"),
        ({"time": times, "value": ((1.0,), *times[1:])}, "differ in length"),
    ):
        with pytest.raises(ValueError, match=says):
            Signal(**values)
    good = write_signals(tmp_path / "a.json", camera=0.1)
    for arguments, says in (
        ([], "nothing to measure"), ([str(good), "--range", "0.5", "0.1"], "is empty"),
        (["--pictures", str(tmp_path)], "belong together"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            CALIBRATE.run(["latency", *arguments, "--out", str(tmp_path / "l.yaml")])
    (tmp_path / "l.yaml").write_text("- a list")
    with pytest.raises(UserError, match="no file of latencies"):
        CALIBRATE.run(["latency", str(good), "--out", str(tmp_path / "l.yaml")])


def test_a_cameras_delay_is_found_from_pictures_of_a_moving_board(tmp_path: Path):
    """The board hangs on the arm; each picture bears the stamp of its arrival, 80 ms after the light."""
    board = BoardSpec(columns=5, rows=4, square=0.04, marker=0.03)
    sees, delay = synthetic.webcam(focal=300.0, size=(320, 240)), 0.08
    renderer = synthetic.Renderer(board, sees)
    recording = Recording(tmp_path / "rec", Dataset(camera="front", setup="camera_only", board=board))
    for at in np.arange(0.0, 3.2, 0.08):
        where = path(np.array([at - delay]))[0]
        picture = renderer.picture(pose((where[0] - 0.1, where[1] - 0.08, 0.5), np.array([0.1, 0.1, 0.05])))
        recording.add(picture, time=round(1e9 * at))
    times = np.arange(-0.5, 4.0, 0.01)
    states = {"time": times.tolist(), "value": path(times).tolist()}
    (tmp_path / "states.json").write_text(json.dumps(states))
    out = tmp_path / "latency.yaml"
    assert CALIBRATE.run(["latency", "--pictures", str(tmp_path / "rec"), "--states", str(tmp_path / "states.json"),
                          "--out", str(out), "--range", "0", "0.25"]) == 0  # fmt: skip
    assert yaml.safe_load(out.read_text())["latency"]["camera"] == pytest.approx(delay, abs=0.004)
