"""One camera's thread: opens it, reads it, counts and stamps its frames, and opens it anew when it falls silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from d2ppo_core.errors import UserError

from .accounting import FrameAccount, Rates
from .clock import FrameClock
from .library import Attach, Camera, Frame, Lens, reset_plugged_in
from .link import Act, Link
from .settings import NS, RealsenseSettings, Wanted
from .watched import Watched

WAIT = 0.02  # s: while there is nothing to do
CLOSING = 5.0  # s that the thread has to end


@dataclass(frozen=True)
class Picture:
    """A new frame, and when it was taken."""

    time: int  # ns
    number: int  # the camera's
    pixels: np.ndarray  # (h, w, 3) uint8 RGB
    dropped: int  # frames lost so far
    repeated: int


@dataclass
class Setup:
    """What forms this camera's pictures, read back: it goes into each trial's record."""

    about: dict[str, str] = field(default_factory=dict)
    options: dict[str, float] = field(default_factory=dict)
    lens: Lens | None = None
    first: dict[str, float] = field(default_factory=dict)  # the options right after they were first set

    @property
    def changed(self) -> dict[str, tuple[float, float]]:
        """Option -> what it was first, what it is now: somebody else has changed it."""
        return {name: (self.first[name], value) for name, value in self.options.items()
                if name in self.first and value != self.first[name]}  # fmt: skip


class CameraThread(threading.Thread):
    """See the module.

    Args:
        on_picture: called by this thread for each new frame.
        on_setup: called by this thread when what was read back differs from before.
    """

    def __init__(self, wanted: Wanted, attach: Attach, settings: RealsenseSettings,
                 on_picture: Callable[[Picture], None], on_setup: Callable[[Setup], None]) -> None:  # fmt: skip
        super().__init__(daemon=True, name=f"camera {wanted.name}")
        self.wanted, self._attach, self._settings = wanted, attach, settings
        self._on_picture, self._on_setup = on_picture, on_setup
        self.link, self.account = Link(settings.patience), FrameAccount()
        self.clock = FrameClock(round(settings.latency * NS), round(settings.receive_latency * NS))
        self.setup, self.exposure = Setup(), None
        self.said = ""  # what went wrong last
        self.failure: UserError | None = None  # it never opened: nothing to wait for
        self._camera: Camera | None = None
        self._ended, self._looked = threading.Event(), 0

    def run(self) -> None:
        """Until it is ended."""
        while not self._ended.is_set():
            act = self.link.next(time.monotonic_ns())
            {Act.OPEN: self._open, Act.READ: self._read, Act.STOP: self._give_up, Act.RESET: self._restart,
             Act.WAIT: lambda: self._ended.wait(WAIT)}[act]()  # fmt: skip
        if self._camera is not None:
            self._give_up()

    def end(self) -> None:
        """Stop the camera and the thread."""
        self._ended.set()
        if self.is_alive():
            self.join(CLOSING)

    def rates(self) -> Rates:
        """Frames a second and the share that was lost, over the last seconds."""
        return self.account.rates(time.monotonic_ns())

    # --- what it does -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        opening = Watched(self._opened, late=Camera.close)
        done = opening.wait(self._settings.open_patience)
        try:
            if not done:
                raise UserError(f"camera {self.wanted.name} does not open within {self._settings.open_patience:g} s; "
                                "unplug it and plug it in again")  # fmt: skip
            self._camera = opening.result
            self.setup.about, self.setup.lens = self._camera.about(), self._camera.lens()
            self.account.restart()
            self.link.on_open(True, time.monotonic_ns())
            self._look()
        except (UserError, RuntimeError) as error:  # the library's own is RuntimeError
            self.said = str(error)
            if not self.account.passed and isinstance(error, UserError):
                self.failure = error
            self.link.on_open(False, time.monotonic_ns())

    def _opened(self) -> Camera:
        """Opened with its settings; what cannot have them is closed again."""
        camera = Camera(self.wanted, self._attach)
        try:
            camera.fix()
        except Exception:
            camera.close()
            raise
        return camera

    def _read(self) -> None:
        try:
            frame = self._camera.read(self._settings.wait)
            if time.monotonic_ns() - self._looked >= self._settings.readback * NS:
                self._look()
        except RuntimeError as error:
            self.said = str(error)
            self.link.on_lost(time.monotonic_ns())
            return
        now = time.monotonic_ns()
        if frame is None or not self.account.take(frame.number, now):
            self.link.on_miss(now)
            return
        self.link.on_frame(now)
        self._pass_on(frame)

    def _pass_on(self, frame: Frame) -> None:
        stamp = self.clock.stamp(frame.timestamp, frame.domain, frame.received)
        if stamp is None:
            return
        self.exposure = frame.exposure
        account = self.account
        self._on_picture(Picture(stamp.time, frame.number, frame.picture, account.dropped, account.repeated))

    def _look(self) -> None:
        """Read exposure and white balance back; say so where anything is not as before."""
        self._looked = time.monotonic_ns()
        options = self._camera.read_back()
        if options != self.setup.options:
            self.setup.options = options
            self.setup.first = self.setup.first or dict(options)
            self._on_setup(self.setup)

    def _give_up(self) -> None:
        camera, self._camera = self._camera, None
        done = Watched(camera.close).wait(self._settings.stop_patience)
        if not done:
            self.said = f"camera {self.wanted.name} does not stop; it is left to itself"
        self.link.on_stop(done, time.monotonic_ns())

    def _restart(self) -> None:
        """The hardware, where there is any."""
        if self._settings.device == "real":
            Watched(lambda: reset_plugged_in(self.wanted)).wait(self._settings.stop_patience)
        self.link.on_reset(time.monotonic_ns())
