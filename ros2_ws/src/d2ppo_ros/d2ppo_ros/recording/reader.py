"""Reading a trial without ROS: types come from the record itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError

from d2ppo_core.errors import UserError

from ..decoding import DECODERS, MESSAGES, picture_of, stamp_of
from .writer import SIDECAR, mcap_of

Record = TypeVar("Record")
_DECODERS = {MESSAGES[record]: decode for record, decode in DECODERS.items()}


@dataclass(frozen=True)
class Recorded:
    """One message: where and when (ns, the recorder's clock) it came, and what it said."""

    topic: str
    received: int
    message: Any

    @property
    def value(self) -> Any:
        """As one of `d2ppo_ros.records`, where it is of our own types; else the message itself."""
        decode = _DECODERS.get(self.message.__msgtype__.rsplit("/", 1)[1])
        try:
            return decode(self.message) if decode else self.message
        except UserError as error:
            raise UserError(f"a message on {self.topic} is not valid: {error}") from error


class Trial:
    """A recorded trial. `about` is its trial.json; topics are asked for by their relative names."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder} is no folder; give the folder of a recorded trial")
        mcap_of(self.folder)
        if not (self.folder / "metadata.yaml").exists():
            raise UserError(
                f"{folder} was not ended (its recorder was killed, or still runs); `d2ppo trials recover {folder}` "
                "brings back what was written"
            )
        try:
            self.about: dict[str, Any] = json.loads((self.folder / SIDECAR).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / SIDECAR} cannot be read ({error}); is this a trial of ours?") from error

    @property
    def metadata(self) -> dict[str, Any]:
        """What the trial was started with."""
        return self.about.get("metadata", {})

    @cached_property
    def topics(self) -> dict[str, str]:
        """Type of each recorded topic, by full name."""
        with self._open() as bag:
            return {c.topic: c.msgtype for c in bag.connections}

    def names(self, relative: str) -> list[str]:
        """Recorded topics whose names end so, e.g. "policy/chunk"; `*` stands for one part of a name."""
        wanted = relative.split("/")

        def fits(name: str) -> bool:
            parts = name.split("/")[-len(wanted) :]
            return len(parts) == len(wanted) and all(w in ("*", p) for w, p in zip(wanted, parts, strict=True))

        return [name for name in self.topics if fits(name)]

    def messages(self, *relative: str) -> Iterator[Recorded]:
        """Messages of these topics (of all, if none is named) in the order in which they were received."""
        names = {name for asked in relative for name in self.names(asked)} if relative else set(self.topics)
        with self._open() as bag:
            chosen = [connection for connection in bag.connections if connection.topic in names]
            if not chosen:
                return
            for connection, when, data in bag.messages(chosen):
                yield Recorded(connection.topic, when, bag.deserialize(data, connection.msgtype))

    def records(self, kind: type[Record], *relative: str) -> list[Record]:
        """Everything on these topics, as records of one kind; what belongs to another trial is left out."""
        ours = ("", self.metadata.get("trial", ""))
        found = [recorded.value for recorded in self.messages(*relative)]
        wrong = [value for value in found if not isinstance(value, kind)]
        if wrong:
            raise UserError(f"{self.folder}: {', '.join(relative)} holds no {kind.__name__}; is this a trial of ours?")
        return [value for value in found if not ours[1] or getattr(value, "trial", "") in ours]

    def pictures(self) -> Iterator[tuple[str, int, int, np.ndarray]]:
        """What the policy's cameras delivered: camera, capture time, time received, picture (H, W, 3) uint8."""
        for recorded in self.messages("camera/*/image"):
            camera = recorded.topic.split("/")[-2]
            yield camera, stamp_of(recorded.message), recorded.received, picture_of(recorded.message)[0]

    def _open(self) -> AnyReader:
        try:
            return _Explained([self.folder])
        except AnyReaderError as error:
            raise _damaged(self.folder, error) from error


class _Explained(AnyReader):
    """A reader that explains a damaged file."""

    def open(self) -> None:
        try:
            super().open()
        except (AnyReaderError, OSError, ValueError) as error:
            raise _damaged(Path(self.paths[0]), error) from error


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder} is damaged ({error}); `d2ppo trials recover {folder}` brings back what can be read")
