"""What a recorder that was killed left behind -> a valid bag of every whole message in it.

Such a file has no index and may end within a record. Its records are read from the front; of a chunk that is torn, the
whole messages are kept. The broken file stays as `NAME.mcap.broken` until the new one is in place.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.metadata import parse_qos
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import sha256, write_json

from .writer import FORMAT, SIDECAR, Count, mcap_of

MAGIC = b"\x89MCAP0\r\n"
SCHEMA, CHANNEL, MESSAGE, CHUNK = 0x03, 0x04, 0x05, 0x06
KNOWN = range(0x01, 0x10)  # opcodes of records; anything else means that the rest is garbage


@dataclass
class Salvage:
    """What a file says before its messages."""

    schemas: dict[int, tuple[str, str]] = field(default_factory=dict)  # by id: type, definition
    channels: dict[int, tuple[str, int, str]] = field(default_factory=dict)  # by id: topic, schema, QoS as YAML


def recover(folder: Path) -> dict[str, Any]:
    """Repair a trial in place; returns its trial.json. A trial that is whole is left alone.

    Raises:
        UserError: no trial, or not a file that our recorder wrote.
    """
    sidecar = _sidecar(folder)
    broken = next(iter(sorted(folder.glob("*.mcap.broken"))), None)  # of a recovery that was itself interrupted
    if broken is None:
        mcap = mcap_of(folder)
        if (folder / "metadata.yaml").exists() and _is_whole(mcap):
            return sidecar
    else:
        mcap = broken.with_suffix("")
    workshop = folder / ".recovering"
    shutil.rmtree(workshop, ignore_errors=True)
    with explain_os_errors("recovering", folder):
        try:
            counts = rebuild(broken or mcap, workshop / mcap.stem)
        except (struct.error, UnicodeDecodeError, TypesysError) as error:
            shutil.rmtree(workshop, ignore_errors=True)
            raise UserError(f"{broken or mcap} lacks more than its end ({error}); nothing was changed") from error
        if broken is None:
            broken = mcap.rename(mcap.with_name(mcap.name + ".broken"))
        for made in (workshop / mcap.stem).iterdir():
            made.replace(folder / made.name)
        about = {"format": FORMAT, "metadata": {}, **sidecar, "state": "recovered", "lossy": True}
        about |= {"outcome": {}, "sha256": sha256(mcap), "topics": {name: asdict(c) for name, c in counts.items()}}
        write_json(folder / SIDECAR, about)
        shutil.rmtree(workshop)
        broken.unlink()
    return about


def _sidecar(folder: Path) -> dict[str, Any]:
    """trial.json, or nothing where the recorder did not get that far."""
    path = folder / SIDECAR
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of a recorded trial")
    try:
        about = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it and recover again") from error
    return about


def _is_whole(mcap: Path) -> bool:
    with open(mcap, "rb") as file:
        file.seek(0, 2)
        file.seek(max(len(MAGIC), file.tell() - len(MAGIC)))
        return file.read() == MAGIC


def rebuild(source: Path, target: Path) -> dict[str, Count]:
    """Write every whole message of the file `source` into a new bag `target`; by topic, how many."""
    found, connections, counts = Salvage(), {}, {}
    with open(source, "rb") as file, Writer(target, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        for channel, when, data in messages(file, found, str(source)):
            if channel not in connections:
                connections[channel] = _connect(bag, *_described(found, channel, source))
            bag.write(connections[channel], when, data)
        for channel in found.channels.keys() - connections.keys():
            connections[channel] = _connect(bag, *_described(found, channel, source))
        for connection in connections.values():
            written = bag.counts[connection.id]
            counts[connection.topic] = Count(connection.msgtype, seen=written, written=written)
    return counts


def _described(found: Salvage, channel: int, source: Path) -> tuple[str, str, str, str]:
    """Topic, type, definition and QoS of a channel."""
    if channel not in found.channels or found.channels[channel][1] not in found.schemas:
        raise UserError(f"{source} holds messages of a channel that it does not describe; it is damaged")
    topic, schema, qos = found.channels[channel]
    return topic, *found.schemas[schema], qos


def _connect(bag: Writer, topic: str, kind: str, definition: str, qos: str) -> Any:
    return bag.add_connection(
        topic, kind, msgdef=definition, rihs01=_hash(kind, definition), offered_qos_profiles=parse_qos(qos)
    )


@cache
def _hash(kind: str, definition: str) -> str:
    """A type's hash, which rosbag2's metadata names."""
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg(definition, kind))
    return store.hash_rihs01(kind)


def messages(file: BinaryIO, found: Salvage, where: str) -> Iterator[tuple[int, int, bytes]]:
    """Each whole message as (channel, log time, data), in the order of the file; fills `found` on the way."""
    end = file.seek(0, 2)
    file.seek(0)
    magic = file.read(len(MAGIC))
    if not MAGIC.startswith(magic):
        raise UserError(f"{where} is no MCAP file; give the folder of a recorded trial")
    while len(head := file.read(9)) == 9:
        opcode, length = struct.unpack("<BQ", head)
        if opcode not in KNOWN:
            return
        at = file.tell()
        if opcode == CHUNK:
            yield from _chunk(file, length, found, where)
        if at + length > end:
            return
        if opcode in (SCHEMA, CHANNEL, MESSAGE):
            yield from _record(opcode, file.read(length), found)
        file.seek(at + length)


def _chunk(file: BinaryIO, length: int, found: Salvage, where: str) -> Iterator[tuple[int, int, bytes]]:
    """A chunk of `length` bytes: times and checksum 28, compression 4 + n, size 8, and then records."""
    head = file.read(min(32, length))
    if len(head) < 32:
        return
    if head[28:32] != bytes(4):
        raise UserError(f"{where} is compressed, which our recorder never does; try `mcap recover`")
    size = file.read(8)
    if len(size) < 8:
        return
    records, at = file.read(min(struct.unpack("<Q", size)[0], length)), 0
    while at + 9 <= len(records):
        opcode, length = struct.unpack_from("<BQ", records, at)
        if at + 9 + length > len(records):
            return
        yield from _record(opcode, records[at + 9 : at + 9 + length], found)
        at += 9 + length


def _record(opcode: int, record: bytes, found: Salvage) -> Iterator[tuple[int, int, bytes]]:
    if opcode == SCHEMA:
        name, _, text = _strings(record[2:], 3)
        found.schemas[struct.unpack_from("<H", record)[0]] = name, text
    elif opcode == CHANNEL:
        channel, schema = struct.unpack_from("<HH", record)
        topic, _ = _strings(record[4:], 2)
        found.channels[channel] = topic, schema, _qos(record)
    elif opcode == MESSAGE:
        channel, _, when, _ = struct.unpack_from("<HIQQ", record)
        yield channel, when, record[22:]


def _strings(data: bytes, count: int) -> list[str]:
    """The first `count` strings, each behind its length."""
    texts, at = [], 0
    for _ in range(count):
        (length,) = struct.unpack_from("<I", data, at)
        texts.append(data[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return texts


def _qos(channel: bytes) -> str:
    """A channel's metadata as our recorder writes it: one pair, offered_qos_profiles and its YAML."""
    at = 4
    for _ in range(2):  # topic and encoding
        at += 4 + struct.unpack_from("<I", channel, at)[0]
    pairs = channel[at + 4 :]  # behind the length of all of them
    return _strings(pairs, 2)[1] if pairs else ""
