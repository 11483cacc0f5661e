"""Camera images of many environments, painted by a few threads: each has its own OpenGL context.

While OpenGL draws, the interpreter's lock is free. The model is shared, so what an episode changes of it is written
under a lock, for as long as the scene is arranged.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

import numpy as np

from d2ppo_core.contract import Camera

from ..graphics import camera_id
from ..painter import SEEN, Painter, look_of, oriented, put_view
from ..randomise import Arrays, applied

Images = dict[str, np.ndarray]


class Eyes:
    """The cameras of one model. The threads and their contexts are made at the first image."""

    def __init__(self, model: Any, cameras: Sequence[Camera], threads: int) -> None:
        self._model, self._cameras, self._threads = model, cameras, threads
        self._lock = threading.Lock()
        self._eyes: list[_Eye] = []

    def look(self, views: np.ndarray, fields: Sequence[Arrays]) -> Images:
        """By key (n, H, W, 3) uint8 of n views (n, size), each with how its model differs from the compiled one."""
        fresh = not self._eyes
        if fresh:
            self._eyes = [_Eye(self._model, self._cameras, self._lock) for _ in range(self._threads)]
        out = {c.key: np.empty((len(views), c.height, c.width, 3), dtype=np.uint8) for c in self._cameras}
        shares = [range(number, len(views), len(self._eyes)) for number in range(len(self._eyes))]
        waiting = [eye.ask(views, fields, share, out) for eye, share in zip(self._eyes, shares, strict=True) if share]
        wait(waiting)
        if fresh:
            atexit.register(self.close)  # after MuJoCo's first context has registered its own, so that it runs before
        for answer in waiting:
            answer.result()
        return out

    def close(self) -> None:
        """End the threads, each of which frees its context; a second call does nothing."""
        for eye in self._eyes:
            eye.end()
        self._eyes = []
        atexit.unregister(self.close)


class _Eye(threading.Thread):
    """One thread with its painter."""

    def __init__(self, model: Any, cameras: Sequence[Camera], lock: threading.Lock) -> None:
        import mujoco

        super().__init__(daemon=True, name="d2ppo-eye")
        self._model, self._lock = model, lock
        self._cameras = [(camera, camera_id(model, camera.name)) for camera in cameras]
        self._data = mujoco.MjData(model)  # in which views are shown
        self._parts = np.cumsum([getattr(self._data, name).size for name in SEEN])[:-1]
        self._painter: Painter | None = None
        self._asked: SimpleQueue = SimpleQueue()
        self.start()

    def ask(self, *job: Any) -> Future:
        """Have `_paint(*job)` called; its end, or what it raised."""
        answer: Future = Future()
        self._asked.put((answer, job))
        return answer

    def end(self) -> None:
        self._asked.put(None)
        self.join()

    def run(self) -> None:
        while (asked := self._asked.get()) is not None:
            answer, job = asked
            try:
                answer.set_result(self._paint(*job))
            except BaseException as error:  # goes to whoever waits for the images
                answer.set_exception(error)
        if self._painter is not None:
            self._painter.close()

    def _paint(self, views: np.ndarray, fields: Sequence[Arrays], share: range, out: Images) -> None:
        """Fill in the images of the views in `share`."""
        for number in share:
            put_view(self._data, tuple(np.split(views[number], self._parts)))
            for camera, at in self._cameras:
                size, look = (camera.height, camera.width), look_of(camera)
                with self._lock, applied(self._model, fields[number]):
                    self._painter = self._painter or Painter(self._model)
                    self._painter.arrange(self._data, at, *size, look)
                out[camera.key][number] = oriented(self._painter.render(*size, look), camera)
