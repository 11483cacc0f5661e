"""The operator's page, served to this machine alone.

A web page of somebody else, open in the same browser, can reach a server on 127.0.0.1, too. So every address begins
with a secret that is made anew each time, a request must name this server as its host (else a foreign name may have
been pointed here), and one that does something must come from our own page and carry JSON.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import unquote, urlsplit

from d2ppo_core.errors import UserError

from .desk import Desk, Refused
from .starts import jpeg

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
LONGEST = 64 * 1024  # bytes of a request's body
PATIENCE = 20.0  # s: a connection that says nothing for so long is closed
AWAY = 2.5  # s without a word of the page: nobody could stop the arm there (one in the background asks once a second)
HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Page:
    """The server and what it needs to know. `url` is what the operator opens."""

    def __init__(self, port: int = 0) -> None:
        self.desk: Desk | None = None  # until the system is being brought up
        self.token, self.seen = secrets.token_urlsafe(24), 0.0
        try:
            self._server = _Server((HOST, port), _Handler)
        except OSError as error:
            raise UserError(f"port={port} cannot be used ({error.strerror}); choose another, or port=0") from error
        self._server.page = self
        self.port = self._server.server_address[1]
        self.url = f"http://{HOST}:{self.port}/{self.token}/"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True, name="page").start()

    def reachable(self) -> bool:
        """Whether a page is open somewhere that could stop the arm."""
        return time.monotonic() - self.seen < AWAY

    def close(self) -> None:
        """Serve no more, on connections that are open already neither."""
        self.desk = None
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size, allow_reuse_address = True, 64, True
    page: Page

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone is no news."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own: nothing that one of them waits for delays a stop on another."""

    protocol_version, disable_nagle_algorithm, timeout, wbufsize = "HTTP/1.1", True, PATIENCE, -1
    server_version, sys_version = "d2ppo", ""
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Nothing: the address holds the secret."""

    # --- who may ask --------------------------------------------------------------------------------------------------

    def _admitted(self) -> str | None:
        """The path behind the secret; None: it was refused."""
        hosts = [f"{name}:{self.server.page.port}" for name in NAMES]
        if self.headers.get_all("Host", []) not in [[host] for host in hosts]:
            return self._refuse(421, "this server answers to its own name on this machine only")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        if origin is not None and origin not in [f"http://{host}" for host in hosts]:
            return self._refuse(403, "a page from elsewhere may not ask here")
        if site not in ("none", "same-origin"):
            return self._refuse(403, "a page from elsewhere may not ask here")
        token, slash, rest = urlsplit(self.path).path[1:].partition("/")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.page.token.encode()) or not slash:
            return self._refuse(404, "there is nothing here; open the address that the program has printed")
        return unquote(rest)

    def _refuse(self, code: int, why: str) -> None:
        self.close_connection = True  # a body may still be on its way
        self._send(code, json.dumps({"error": why}).encode(), "application/json")

    # --- what is asked ------------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        """The page, how it stands, and pictures."""
        path, page = self._admitted(), self.server.page
        desk = page.desk  # once: it may be taken away meanwhile
        if path is None:
            return
        if path == "":
            self._send_page()
        elif desk is None:
            self._refuse(503, "not up yet")
        elif path == "state":
            page.seen = time.monotonic()
            self._send_json(desk.view())
        elif path.startswith("camera/"):
            found = desk.rig.picture(path.removeprefix("camera/"))
            self._send_picture(found and jpeg(found[1]), str(found and found[0]))
        elif path.startswith("start/"):
            self._send_picture(desk.before(path.removeprefix("start/")))
        else:
            self._refuse(404, "there is nothing here")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """`stop`, before anything else, and `act`."""
        path, desk = self._admitted(), self.server.page.desk
        if path is None:
            return
        json_only = self.headers.get_content_type() == "application/json"
        if path == "stop" and desk is not None and json_only:
            desk.stop()  # before the body is even read
        if not json_only:
            self._refuse(415, "send JSON")
        elif desk is None:
            self._refuse(503, "not up yet")
        elif path not in ("stop", "act"):
            self._refuse(404, "there is nothing here")
        elif (body := self._body()) is not None:
            self._answer(desk, path, body)

    def _answer(self, desk: Desk, path: str, body: dict[str, Any]) -> None:
        """What `stop` has done already, and `act` does now."""
        try:
            if path == "act":
                desk.act(str(body.get("action", "")), body.get("step"), body)
            self._send_json({"done": True})
        except Refused as refusal:
            self._send(409, json.dumps({"error": str(refusal)}).encode(), "application/json")

    def _body(self) -> dict[str, Any] | None:
        """The request's JSON object; None: it was refused."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > LONGEST or "Transfer-Encoding" in self.headers:
            return self._refuse(413, f"send at most {LONGEST} bytes, and say how many")
        try:
            body = json.loads(self.rfile.read(int(length)) or b"{}")
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return self._refuse(400, "that is no JSON object")
        return body

    # --- what is answered ---------------------------------------------------------------------------------------------

    def _send(self, code: int, content: bytes, kind: str, **more: str) -> None:
        self.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS,
                   "Content-Security-Policy": "default-src 'none'", **more}  # fmt: skip
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(12)
        text = files(__package__).joinpath("page.html").read_text(encoding="utf-8").replace("NONCE", nonce)
        policy = {"Content-Security-Policy": POLICY.format(nonce=nonce)}
        self._send(200, text.encode(), "text/html; charset=utf-8", **policy)

    def _send_picture(self, content: bytes | None, stamp: str = "") -> None:
        if content is None:
            return self._send(404, b"", "text/plain")
        return self._send(200, content, "image/jpeg", **{"X-Stamp": stamp})
