"""Where the stand-in's arms and objects are: asked over its local socket, JSON lines, one answer a request."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import Any

from d2ppo_core.errors import UserError

PATIENCE = 1.0  # s for one answer
LONGEST = 65536  # bytes of an answer


@dataclass(frozen=True)
class Placement:
    """One moment of the stand-in's scene, in the policy's world."""

    arms: list[tuple[list[float], float]]  # joint angles (7,) rad, and m between the fingers
    objects: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)  # position m, quaternion xyzw


class Stage:
    """Asks a stand-in; connects when it is asked, and anew after any failure.

    Args:
        address: "HOST:PORT" of the stand-in's control.
    """

    def __init__(self, address: str, arms: int, objects: tuple[str, ...]) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"'{address}' is no address of a stand-in; write HOST:PORT, as 127.0.0.2:1400")
        self._address, self._arms, self._objects = (host, int(port)), arms, objects
        self._socket: socket.socket | None = None
        self._rest = b""

    def look(self) -> Placement:
        """Where everything is now. Raises an OSError while nobody answers."""
        try:
            arms = []
            for number in range(self._arms):
                said = self._asked({"do": "state", "arm": number})
                arms.append((list(map(float, said["q"])), float(said["width"])))
            objects = {}
            for name in self._objects:
                said = self._asked({"do": name})
                objects[name] = (list(map(float, said["position"])), list(map(float, said["quaternion"])))
            return Placement(arms, objects)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.close()
            raise ConnectionError(f"the stand-in at {':'.join(map(str, self._address))}: {error}") from error

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._socket is None:
            self._socket, self._rest = socket.create_connection(self._address, PATIENCE), b""
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while b"\n" not in self._rest:
            part = self._socket.recv(4096)
            if not part or len(self._rest) > LONGEST:
                raise ConnectionError("it has hung up")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        answer = json.loads(line)
        if not answer.get("ok"):
            raise ValueError(answer.get("why", "no answer"))
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
