"""The small door through which tests put faults into a stand-in: JSON lines over a local socket, one answer for each.

    {"do": "reflex", "arm": 0, "error": "cartesian_reflex"}   ->   {"ok": true, ...}

Requests are carried out between two ticks, so that a fault has one moment of robot time, which the answer tells.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from d2ppo_core.errors import UserError

Answer = dict[str, Any]
LONGEST = 65536  # bytes of a line
AGAIN = 0.1  # s between two tries to reach it


class ControlServer:
    """Listens at a local address; `serve` carries out what has come, in the caller's thread."""

    def __init__(self, host: str, port: int, handle: Callable[[dict[str, Any]], Answer]) -> None:
        self._handle, self._waiting = handle, queue.SimpleQueue()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            raise UserError(f"the stand-in's control port {host}:{port} is not free ({error.strerror}); is another "
                            "stand-in running?") from error  # fmt: skip
        self.address = self._socket.getsockname()
        self._socket.listen(4)
        threading.Thread(target=self._accept, daemon=True, name="control").start()

    def serve(self) -> None:
        """Carry out everything that waits."""
        while not self._waiting.empty():
            request, reply = self._waiting.get()
            reply.put(self._answer(request))

    def close(self) -> None:
        """Listen no more. Closing alone would leave the port open as long as a thread waits in `accept`."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _answer(self, request: Any) -> Answer:
        try:
            if not isinstance(request, dict) or "do" not in request:
                raise UserError('a request is a JSON object with "do"')
            return {"ok": True, **self._handle(request)}
        except UserError as error:
            return {"ok": False, "why": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            return {"ok": False, "why": f"the request {request} does not fit: {error!r}"}

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines:
            while line := lines.readline(LONGEST):
                try:
                    request = json.loads(line)
                except ValueError:
                    request = None
                reply: queue.SimpleQueue[Answer] = queue.SimpleQueue()
                self._waiting.put((request, reply))
                try:
                    client.sendall(json.dumps(reply.get()).encode() + b"\n")
                except OSError:
                    return


class Control:
    """The other end of the door.

    Args:
        timeout: s that an answer may take.
        patience: s that a stand-in which is only being started may take until it listens.
    """

    def __init__(self, host: str, port: int, timeout: float = 10.0, patience: float = 0.0) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                self._socket = socket.create_connection((host, port), timeout)
                break
            except OSError as error:
                if time.monotonic() < deadline:
                    time.sleep(AGAIN)
                    continue
                sentence = f"no stand-in listens at {host}:{port} ({error}); start one with standin=true"
                raise UserError(sentence) from error
        self._lines = self._socket.makefile("rb")

    def ask(self, do: str, **what: Any) -> Answer:
        """Send one request and wait for its answer."""
        self._socket.sendall(json.dumps({"do": do, **what}).encode() + b"\n")
        line = self._lines.readline()
        if not line:
            raise UserError("the stand-in has ended")
        answer = json.loads(line)
        if not answer.pop("ok"):
            raise UserError(f"the stand-in refuses '{do}': {answer['why']}")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()
