"""`d2ppo calibrate` beside a running camera and arm: views with the flange's pose, and a film for the latency."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.ros
rclpy = pytest.importorskip("rclpy")
pytest.importorskip("d2ppo_interfaces")

from sensor_msgs.msg import Image  # noqa: E402

from d2ppo_calibration import synthetic  # noqa: E402
from d2ppo_calibration.board import BoardSpec  # noqa: E402
from d2ppo_calibration.commands import CALIBRATE  # noqa: E402
from d2ppo_calibration.dataset import read_dataset  # noqa: E402
from d2ppo_calibration.files import read_picture  # noqa: E402
from d2ppo_calibration.poses import pose  # noqa: E402
from d2ppo_core.errors import UserError  # noqa: E402
from d2ppo_core.live import live_views  # noqa: E402
from d2ppo_ros import codec, live, topics  # noqa: E402
from d2ppo_ros.records import SECOND, ArmState  # noqa: E402

BOARD = BoardSpec(columns=6, rows=4, square=0.04, marker=0.03)
PLACES = ((-0.12, -0.08, 0.5), (-0.2, -0.08, 0.5), (-0.12, -0.08, 0.75))
Q = (np.array([0.0, 0.2, 0.0, -2.5, 0.0, 2.9, 0.8]), np.array([0.3, 0.1, 0.0, -2.4, 0.5, 2.8, 0.4]),
     np.array([0.1, 0.3, 0.4, -2.2, 0.1, 2.6, 0.9]))  # fmt: skip


def arm_state(stamp: int, q: np.ndarray, speed: float = 0.0) -> ArmState:
    return ArmState(stamp, q, np.full(7, speed), np.zeros(3), np.eye(3))


class Cell:
    """A camera at 20 Hz and an arm at 100 Hz, which rest at one place after the other, or sway."""

    def __init__(self, sway: bool = False) -> None:
        renderer = synthetic.Renderer(BOARD, synthetic.webcam(focal=420.0, size=(400, 300)))
        turn, rng = np.array([0.1, 0.2, 0.1]), np.random.default_rng(0)
        grey = [renderer.picture(pose(place, turn), rng) for place in PLACES]  # (300, 400) each
        self.pictures = [np.repeat(picture[..., None], 3, axis=2) for picture in grey]
        self._context, self._sway, self._ended = rclpy.Context(), sway, threading.Event()
        rclpy.init(context=self._context)
        node = self._node = rclpy.create_node("cell", context=self._context)
        self._images = node.create_publisher(Image, topics.SOURCE.format("wrist"), topics.NEWEST)
        self._arms = node.create_publisher(codec.MESSAGES[ArmState], topics.ARM.format(0), topics.EVERY)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        begin, number = time.monotonic(), 0
        while not self._ended.wait(0.01):
            elapsed, stamp = time.monotonic() - begin, time.time_ns()
            place, since = divmod(elapsed, 1.2)
            number, place = number + 1, int(place) % len(PLACES)
            q, speed = Q[place], 0.3 if since < 0.15 and not self._sway else 0.0
            if self._sway:
                q = Q[0] + 0.1 * np.sin(3.0 * elapsed)
            self._arms.publish(codec.arm_msg(arm_state(stamp, q, speed)))
            if number % 5 == 0:
                self._images.publish(codec.image_msg(stamp, "wrist", self.pictures[place], "bgr"))

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._node.destroy_node()
        self._context.try_shutdown()


@pytest.fixture
def cell(request: pytest.FixtureRequest):
    made = Cell(getattr(request, "param", False))
    yield made
    made.close()


def command(folder: Path, *words: str) -> list[str]:
    (folder / "board.json").write_text(BOARD.model_dump_json())
    return ["capture", str(folder / "rec"), "--source", "ros:wrist", "--camera", "wrist", "--board",
            str(folder / "board.json"), *words]  # fmt: skip


def test_good_views_are_taken_with_the_flange_where_the_arm_rested(cell: Cell, tmp_path: Path, capsys) -> None:
    assert CALIBRATE.run(command(tmp_path, "--setup", "eye_in_hand", "--views", "3")) == 0
    assert "the robot moves (0.300 rad/s)" in capsys.readouterr().out
    recorded = read_dataset(tmp_path / "rec")
    assert len(recorded.views) == 3 and recorded.setup == "eye_in_hand"
    for view in recorded.views:
        place = int(np.argmin([np.abs(np.array(view.joints) - q).max() for q in Q]))
        np.testing.assert_allclose(view.joints, Q[place], atol=1e-9)
        expected = live.flange_of(Q[place])
        np.testing.assert_allclose(view.base_effector.position, expected.position, atol=1e-9)
        np.testing.assert_allclose(view.base_effector.quaternion, expected.quaternion, atol=1e-9)
        np.testing.assert_array_equal(read_picture(tmp_path / "rec" / view.image), cell.pictures[place])
        assert abs(view.time - time.time_ns()) < 120 * SECOND


@pytest.mark.parametrize("cell", [True], indirect=True)
def test_a_film_has_times_and_the_arms_positions(cell: Cell, tmp_path: Path) -> None:
    assert CALIBRATE.run(command(tmp_path, "--moving", "1.5", "--json")) == 0
    recorded, states = read_dataset(tmp_path / "rec"), json.loads((tmp_path / "rec/states.json").read_text())
    times = [view.time / SECOND for view in recorded.views]
    assert len(times) >= 5 and (np.diff(times) > 0).all()
    assert len(states["time"]) == len(states["value"]) >= len(times) - 2  # the first states may not have come yet
    assert np.ptp(np.array(states["value"]), axis=0).max() > 0.02
    with pytest.raises(UserError, match="choose a new folder"):
        CALIBRATE.run(command(tmp_path, "--moving", "1.0"))


def test_the_arm_between_two_states() -> None:
    joints = live.Joints()
    for time_ms, angle in ((0, 0.0), (10, 0.1), (20, 0.3), (15, 9.0)):  # the last one comes too late
        joints.hear(arm_state(time_ms * 10**6, np.full(7, angle), speed=angle))
    q, speed = joints.at(15 * 10**6)
    np.testing.assert_allclose(q, 0.2)
    assert speed == 0.3 and joints.at(200 * 10**6) is None
    view = live.live_view("a", 200 * 10**6, np.zeros((1, 1, 3), dtype=np.uint8), joints)
    assert view.flange is None and view.time == 0.2


def test_sources_that_make_no_sense(tmp_path: Path, monkeypatch) -> None:
    assert live_views("folder") is None and live_views("c:/folder") is None
    for rest in ("", "wrist:2"):
        with pytest.raises(UserError, match="write ros:CAMERA"):
            live.views(rest)
    wrong = {"leave --poses": ["--poses", "p.json"], "camera_only": ["--moving", "3", "--setup", "eye_in_hand"]}
    for says, words in wrong.items():
        with pytest.raises(UserError, match=says):
            CALIBRATE.run(command(tmp_path, *words))
    monkeypatch.setattr(live, "PATIENCE", 0.2)
    with pytest.raises(UserError, match="no picture comes on /source/wrist/image"):
        next(live.views("wrist"))
