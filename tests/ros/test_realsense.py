"""The driver's thread with the real library: software devices and recordings through real pipelines."""

from __future__ import annotations

import json
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyrealsense2", reason="there is no wheel of pyrealsense2 for this machine (Linux, x86_64 or ARM)")

from d2ppo_core import doctor as every_doctor
from d2ppo_core.errors import UserError
from d2ppo_core.machine import OK, WARNING
from d2ppo_ros.environment import share
from d2ppo_ros.realsense import doctor, library
from d2ppo_ros.realsense.driver import CameraThread, Picture, Setup
from d2ppo_ros.realsense.settings import RealsenseSettings, wanted
from d2ppo_ros.realsense.software import SoftwareCamera

SIZE = {"width": 160, "height": 120}


def until(done: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it is done by then."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.002)
    return done()


def noise(seed: int) -> np.ndarray:
    """(h, w, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (SIZE["height"], SIZE["width"], 3), dtype=np.uint8)


class Bench:
    """Software cameras with a driver's thread each."""

    def __init__(self, *names: str, **changes: object) -> None:
        options = SIZE | {"readback": 0.1} | changes
        self.settings = RealsenseSettings(cameras=list(names), device="software", **options)
        self.pictures: dict[str, list[Picture]] = {name: [] for name in names}
        self.setups: list[tuple[str, dict]] = []
        cameras = wanted(self.settings)
        self.soft = {camera.name: SoftwareCamera(camera) for camera in cameras}
        attach = library.attach_software({name: soft.device for name, soft in self.soft.items()})
        self.threads = {
            camera.name: CameraThread(camera, attach, self.settings, self.pictures[camera.name].append, self._heard)
            for camera in cameras
        }
        self.numbers = dict.fromkeys(names, 0)
        for thread in self.threads.values():
            thread.start()
        assert until(lambda: all(thread.link.open and thread.setup.options for thread in self.threads.values()))

    def _heard(self, setup: Setup) -> None:
        self.setups.append((threading.current_thread().name, setup.changed))

    def feed(self, name: str, number: int | None = None, **options: object) -> None:
        """One frame, and wait until it has been looked at."""
        number = self.numbers[name] + 1 if number is None else number
        self.numbers[name] = number
        account, clock = self.threads[name].account, self.threads[name].clock
        before = account.passed + account.repeated
        self.soft[name].feed(noise(number), options.pop("stamp", time.time_ns()), number, **options)
        assert until(lambda: account.passed + account.repeated > before), (number, self.threads[name].said)
        assert until(lambda: len(self.pictures[name]) == account.passed - clock.backward)

    def close(self) -> None:
        for thread in self.threads.values():
            thread.end()
            assert not thread.is_alive()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*names: str, **changes: object) -> Bench:
        made.append(Bench(*names, **changes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_pictures_come_through_with_their_times_gaps_and_repeats_counted(bench) -> None:
    cameras = bench("front")
    stamps = []
    for number in (1, 2, 2, 3, 7, 7, 6, 8):
        stamps.append(time.time_ns())
        cameras.feed("front", number, stamp=stamps[-1])
    pictures, thread = cameras.pictures["front"], cameras.threads["front"]
    assert [picture.number for picture in pictures] == [1, 2, 3, 7, 8]
    assert (pictures[-1].dropped, pictures[-1].repeated) == (3, 3)
    for picture in pictures:
        np.testing.assert_array_equal(picture.pixels, noise(picture.number))
    assert abs(pictures[-1].time - stamps[-1]) < 1000 and thread.clock.ours == 0  # ms as a float: some hundred ns
    assert thread.exposure == pytest.approx(12.0) and thread.link.phase == "live"


def test_frames_whose_time_is_not_global_are_stamped_by_arrival(bench) -> None:
    cameras = bench("front", receive_latency=0.2, latency=0.03)
    cameras.feed("front")
    cameras.feed("front", domain="system_time")
    late = cameras.pictures["front"]
    assert len(late) == 1 and cameras.threads["front"].clock.backward == 1  # 0.2 s ago: before the one that we had
    time.sleep(0.25)
    begin = time.time_ns()
    cameras.feed("front", domain="hardware_clock")
    assert -0.001 < (late[-1].time - begin) / 1e9 + 0.2 < 0.2 and "hardware_clock" in cameras.threads["front"].clock.why
    time.sleep(0.25)
    stamp = time.time_ns()
    cameras.feed("front", stamp=stamp)
    assert abs(late[-1].time - (stamp - 30_000_000)) < 1000


def test_silence_is_stale_then_it_is_opened_anew_and_no_old_frame_comes(bench) -> None:
    cameras = bench("front", rebuild=0.6, wait=0.1)
    thread, pictures = cameras.threads["front"], cameras.pictures["front"]
    for _ in range(3):
        cameras.feed("front")
    begin = time.monotonic()
    assert until(lambda: thread.link.stale)
    stale = time.monotonic() - begin
    assert until(lambda: thread.link.rebuilds == 1)
    rebuilt = time.monotonic() - begin
    assert 0.25 < stale < 0.5 < rebuilt < 1.5 and len(pictures) == 3
    assert thread.link.stale  # until a frame comes
    assert len(pictures) == 3 and thread.setup.changed == {}
    cameras.feed("front", 1)  # the camera counts anew
    assert [picture.number for picture in pictures] == [1, 2, 3, 1] and pictures[-1].dropped == 0
    assert thread.link.phase == "live"


def test_two_cameras_do_not_wait_for_one_another(bench) -> None:
    cameras = bench("front", "wrist", rebuild=0.5, exposure=[5.0, 8.0])
    for _ in range(5):
        cameras.feed("front")
        cameras.feed("wrist")
    front, wrist = cameras.threads.values()
    deadline = time.monotonic() + 10.0
    while not front.link.rebuilds and time.monotonic() < deadline:
        cameras.feed("wrist")
        time.sleep(0.03)
    assert front.link.rebuilds == 1 and wrist.link.rebuilds == 0 and wrist.account.dropped == 0
    assert (front.setup.options["exposure"], wrist.setup.options["exposure"]) == (50.0, 80.0)
    assert cameras.numbers["wrist"] == len(cameras.pictures["wrist"]) > 10


def test_settings_are_read_back_and_a_change_is_said(bench) -> None:
    cameras = bench("front", exposure=[9.0], gain=[30.0], white_balance=[5100.0], power_line="60Hz")
    thread = cameras.threads["front"]
    assert thread.setup.options == {
        "enable_auto_exposure": 0.0, "auto_exposure_priority": 0.0, "exposure": 90.0, "gain": 30.0,
        "enable_auto_white_balance": 0.0, "white_balance": 5100.0, "power_line_frequency": 2.0,
        "global_time_enabled": 1.0,
    }  # fmt: skip
    assert cameras.setups == [("camera front", {})]
    cameras.soft["front"].set_option("exposure", 156)
    cameras.soft["front"].set_option("enable_auto_white_balance", 1)
    assert until(lambda: cameras.setups[-1][1] == {"exposure": (90.0, 156.0), "enable_auto_white_balance": (0.0, 1.0)})


def test_what_a_camera_cannot_do_is_refused(bench) -> None:
    settings = RealsenseSettings(cameras=["front"], device="software", gain=[200.0], **SIZE)
    (asked,) = wanted(settings)
    thread = CameraThread(asked, library.attach_software({"front": SoftwareCamera(asked).device}), settings,
                          lambda picture: None, lambda setup: None)  # fmt: skip
    thread.start()
    assert until(lambda: thread.failure is not None)
    thread.end()
    assert "gain is 200; this camera takes 0 to 128" in str(thread.failure)
    (real,) = wanted(RealsenseSettings(cameras=["front"], serials=["000"]))
    with pytest.raises(UserError, match=r"000.* is not plugged in; there are none"):
        library.Camera(real, library.attach_real)
    with pytest.raises(UserError, match=r"it must be uint8 \(120, 160, 3\)"):
        SoftwareCamera(asked).feed(np.zeros((2, 2, 3), dtype=np.uint8), 0, 1)
    bare = library.load().software_device()  # a camera without options
    bare.register_info(library.load().camera_info.serial_number, asked.serial)
    bare.add_sensor("RGB Camera").add_video_stream(SoftwareCamera(asked)._stream(), True)
    camera = library.Camera(asked, library.attach_software({"front": bare}))
    with pytest.raises(UserError, match="does not let its exposure be fixed"):
        camera.fix()
    camera.close()
    (size,) = wanted(RealsenseSettings(cameras=["front"], device="software", width=200, height=100))
    with pytest.raises(UserError, match="does not start with 200 x 100"):
        library.Camera(size, library.attach_software({"front": SoftwareCamera(asked).device}))


def test_a_stop_that_hangs_is_left_to_itself(bench) -> None:
    cameras = bench("front", rebuild=0.3, stop_patience=0.1)
    thread, gate = cameras.threads["front"], threading.Event()
    cameras.feed("front")
    old = thread._camera
    close, old.close = old.close, lambda: gate.wait(20.0)
    assert until(lambda: thread.link.stuck == 1)
    gate.set()
    close()
    assert until(lambda: thread.link.open)
    cameras.feed("front")
    assert thread.link.phase == "live" and thread._camera is not old


def test_a_recording_plays_the_same_pixels(tmp_path: Path) -> None:
    path, (asked,) = tmp_path / "film.db3", wanted(RealsenseSettings(cameras=["front"], device="software", **SIZE))
    soft = SoftwareCamera(asked)
    film = soft.record(str(path))
    begin = time.time_ns()
    for number in range(1, 16):
        soft.feed(noise(number), begin + number * 33_333_333, number)
        assert until(lambda count=number: film.frames >= count)
    film.close()
    settings = RealsenseSettings(cameras=["front"], device="playback", files=[str(path)], **SIZE)
    (played,) = wanted(settings)
    pictures: list[Picture] = []
    thread = CameraThread(played, library.attach_file, settings, pictures.append, lambda setup: None)
    thread.start()
    try:
        # a queue of one loses what a busy machine does not fetch in time; the film begins anew until enough was seen
        assert until(lambda: any(picture.number == 15 for picture in pictures), 30.0), thread.said
        assert until(lambda: thread.link.rebuilds >= 1 and len({picture.number for picture in pictures}) >= 10, 30.0)
    finally:
        thread.end()
    assert thread.setup.about["serial"] == asked.serial and thread.setup.lens.width == SIZE["width"]
    for picture in pictures:
        np.testing.assert_array_equal(picture.pixels, noise(picture.number))


def test_the_doctor_knows_what_a_picture_needs_of_sockets(tmp_path: Path) -> None:
    """As much as the profile of Fast DDS asks for, and the kernel gives."""
    asked = {e.text for e in ET.parse(share() / "params" / "this_machine.xml").iter() if "BufferSize" in e.tag}
    assert asked == {str(doctor.BUFFER)}
    limit = tmp_path / "rmem_max"
    assert doctor._sockets_row(limit).state == OK
    for given, state in ((212_992, WARNING), (doctor.BUFFER - 1, WARNING), (doctor.BUFFER, OK)):
        limit.write_text(f"{given}\n")
        assert doctor._sockets_row(limit).state == state


def test_the_doctor_looks_at_a_stand_in_and_says_what_is_not_there(tmp_path: Path, capsys) -> None:
    assert doctor.main(["--software", "--json", "--seconds", "0.6", "--width", "160", "--height", "120",
                        "--run-dir", str(tmp_path)]) == 0  # fmt: skip
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["camera stand-in: settings"]["state"] == "ok" and "exposure 120" in str(rows)
    assert json.loads((tmp_path / "doctor-camera.json").read_text())["ok"]
    assert doctor.main(["--serial", "000"]) == 1
    assert "camera 000" in capsys.readouterr().out
    with pytest.raises(UserError, match="--seconds 0 must be"):
        doctor.main(["--seconds", "0"])
    with pytest.raises(UserError, match=r"no `d2ppo doctor cameras`; did you mean camera"):
        every_doctor.main(["cameras"])
