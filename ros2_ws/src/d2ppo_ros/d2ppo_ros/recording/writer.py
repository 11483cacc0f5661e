"""Writing a trial: a folder that rosbag2 opens, fed with raw messages through a bounded queue and a thread of its own.

TRIAL/TRIAL_NAME.mcap   every message, with the definitions of their types
TRIAL/metadata.yaml     rosbag2's; only a recording that was ended has it
TRIAL/trial.json        ours: what the trial was, how it ended, and what was lost on the way

Twice a second all that has arrived is handed to the operating system, so after `kill -9` no more than that is missing:
`recover.py` brings back the rest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, Qos
from rosbags.rosbag2 import StoragePlugin, Writer

from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import sha256, write_json

from .message_types import typestore

SIDECAR = "trial.json"
FORMAT = 1
FLUSH = 0.5  # s
QUEUE = 256 * 2**20  # bytes that may wait for the disk


@dataclass(frozen=True)
class Topic:
    """What is recorded: full name, "package/msg/Name", and how its publishers offer it."""

    name: str
    type: str
    qos: tuple[Qos, ...] = ()


@dataclass
class Count:
    """What became of a topic's messages."""

    type: str
    seen: int = 0  # reached the recorder
    written: int = 0
    dropped: int = 0  # by the queue or a full disk
    lost: int = 0  # on the way, as the middleware says


class TrialWriter:
    """Records one trial. `write` may be called from any thread and never waits."""

    def __init__(self, folder: Path, topics: Sequence[Topic], metadata: dict[str, Any], queue: int = QUEUE) -> None:
        if folder.exists():
            raise UserError(f"{folder} exists; choose another name for the trial, or remove it")
        store = typestore(*(topic.type for topic in topics))
        self.folder, self._limit = folder, queue
        self.counts = {topic.name: Count(topic.type) for topic in topics}
        self.error = ""  # what keeps the disk from taking more
        self._about = {"format": FORMAT, "state": "recording", "started": time.time_ns(), "metadata": metadata}
        with explain_os_errors("recording into", folder):
            self._bag = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
            self._bag.open()
            self._connections = {
                t.name: self._bag.add_connection(t.name, t.type, typestore=store, offered_qos_profiles=t.qos)
                for t in topics
            }
        self._describe({})
        self._waiting: deque[tuple[str, int, bytes]] = deque()
        self._size, self._ended, self._lock = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._work, name="trial writer", daemon=True)
        self._thread.start()

    def write(self, topic: str, when: int, message: bytes) -> bool:
        """Take one serialised message, received at `when` (ns); False: there is no room for it."""
        with self._lock:
            count = self.counts[topic]
            count.seen += 1
            if self._ended or self.error or self._size + len(message) > self._limit:
                count.dropped += 1
                return False
            self._waiting.append((topic, when, message))
            self._size += len(message)
            self._lock.notify()
        return True

    def lose(self, topic: str, messages: int) -> None:
        """The middleware lost messages before they came here."""
        with self._lock:
            self.counts[topic].lost += messages

    def close(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Write what waits, end the file, and say in trial.json how it went; returns what that says."""
        with self._lock:
            self._ended = True
            self._lock.notify()
        self._thread.join()
        for count in self.counts.values():
            count.dropped = count.seen - count.written
        if self.error:
            self._bag.abort()
            with explain_os_errors("recording into", self.folder):
                self._describe({"state": "failed", "ended": time.time_ns(), "outcome": outcome, "error": self.error})
            raise UserError(f"{self.error}; recover what was written by `d2ppo trials recover {self.folder}`")
        with explain_os_errors("recording into", self.folder):
            self._bag.close()
        digest = sha256(mcap_of(self.folder))
        self._describe({"state": "complete", "ended": time.time_ns(), "outcome": outcome, "sha256": digest})
        return self._about

    def _describe(self, more: dict[str, Any]) -> None:
        counts = {name: asdict(count) for name, count in self.counts.items()}
        self._about |= {**more, "lossy": any(c.dropped or c.lost for c in self.counts.values()), "topics": counts}
        write_json(self.folder / SIDECAR, self._about)

    def _work(self) -> None:
        """The thread: queue -> file, and a flush when it is due."""
        due = time.monotonic() + FLUSH
        try:
            while True:
                with self._lock:
                    self._lock.wait_for(lambda: self._waiting or self._ended, timeout=max(0, due - time.monotonic()))
                    batch, self._waiting = self._waiting, deque()
                    ended = self._ended
                self._store(batch)
                if ended:
                    return
                if time.monotonic() >= due:
                    self._flush()
                    due = time.monotonic() + FLUSH
        except (OSError, ValueError) as error:  # a full disk must not take the node down
            self.error = f"recording into {self.folder} stopped: {error}"

    def _store(self, batch: deque[tuple[str, int, bytes]]) -> None:
        for topic, when, message in batch:
            connection: Connection = self._connections[topic]
            self._bag.write(connection, when, message)
            with self._lock:
                self.counts[topic].written += 1
                self._size -= len(message)

    def _flush(self) -> None:
        storage: Any = self._bag.storage
        if storage.chunk.bio.tell():
            storage.close_chunk()
        storage.bio.flush()


def mcap_of(folder: Path) -> Path:
    """The file with a trial's messages, named after the folder that it was recorded into."""
    files = sorted(folder.glob("*.mcap"))
    inside = sorted(folder.glob(f"*/{SIDECAR}"))
    if not files and inside:
        raise UserError(f"{folder} is no recorded trial, but holds {len(inside)}; give one, such as {inside[0].parent}")
    if len(files) != 1:
        raise UserError(f"{folder} is no recorded trial (it holds {len(files)} .mcap files); give a trial's folder")
    return files[0]
