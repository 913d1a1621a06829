"""Shows live painting as a web page on this computer, and to nobody else.

Other users of this computer reach its ports, too. So the address holds a token, which the page puts
into each of its requests; whoever comes without is refused. It is no cookie: a browser would send
that to all ports of this computer, theirs, too."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from faststy.errors import FaststyError
from faststy.stylization.live import Live
from faststy.stylization.strokes import SIZES as STROKES

ADDRESS = "127.0.0.1"
PAGE = Path(__file__).with_name("live.html")

MOST_CONNECTIONS = 24
LONGEST_BODY = 4096
"""Bytes of a request that turns dials."""
PATIENCE = 5.0
"""Seconds to wait for a frame before the page asks again."""
SILENCE = 30.0
"""Seconds after which a silent connection is closed."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; form-action 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_NUMBERS = ("strength", "repair")


class LiveServer(ThreadingHTTPServer):
    """Serves the page, the newest frames, and the dials of `live` on 127.0.0.1.

    Attributes:
        url: where to look, with the token.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere two programs would share a port
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, live: Live, *, source: str, thumbnails: list[bytes], port: int = 0) -> None:
        """`port` 0 is any free one. Raises FaststyError when the port is taken."""
        self.live, self.source = live, source
        self.files = {"/": ("text/html; charset=utf-8", PAGE.read_bytes())}
        self.files |= {f"/style/{i}": ("image/jpeg", data) for i, data in enumerate(thumbnails)}
        self._guests: dict[Any, bool] = {}  # open connections: whether they have shown the token
        self._changing = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise FaststyError(
                f"port {port} cannot be used ({error.strerror}); choose another by --port"
            ) from error
        self.token = secrets.token_urlsafe()
        self.url = f"http://{ADDRESS}:{self.server_port}/?token={self.token}"
        # Another name would be a foreign page that had its name changed to this computer.
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}
        if self.server_port == 80:
            self.hosts |= {ADDRESS, "localhost"}

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changing:
            if len(self._guests) >= MOST_CONNECTIONS:
                strangers = (guest for guest, is_known in self._guests.items() if not is_known)
                oldest = next(strangers, None)
                if oldest is None:
                    self.shutdown_request(request)
                    return
                # Who has no token keeps nobody out who has it.
                del self._guests[oldest]
                with suppress(OSError):  # it just went away
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread ends, and closes it
            self._guests[request] = False
        super().process_request(request, client_address)

    def know(self, request: Any) -> None:
        """This connection has shown the token."""
        with self._changing:
            if request in self._guests:
                self._guests[request] = True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changing:
                self._guests.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version, sys_version = "faststy", ""
    protocol_version = "HTTP/1.1"
    timeout = SILENCE

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        place = urlsplit(self.path)
        if place.path in self.server.files:
            kind, data = self.server.files[place.path]
            self._answer(data, kind)
        elif place.path == "/state":
            self._answer_json(self._state())
        elif place.path == "/frame":
            self._frame(parse_qs(place.query))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > LONGEST_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too long")
            return
        body = self.rfile.read(int(length))
        if urlsplit(self.path).path != "/dials":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        # A form of a foreign page cannot send this type.
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "dials are turned by JSON")
            return
        try:
            dials = read_dials(json.loads(body))
            self.server.live.set(**dials)
        except (FaststyError, ValueError, RecursionError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._answer_json({})

    def _is_ours(self) -> bool:
        """Whether our own page asks, at our own address."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        ours = host in self.server.hosts and origin in (None, f"http://{host}")
        foreign = self.headers.get("Sec-Fetch-Site", "same-origin") == "cross-site"
        if not ours or (foreign and not self._is_visit()):
            self._refuse(HTTPStatus.FORBIDDEN, "this page is for this computer only")
            return False
        if not self._has_token():
            self._refuse(
                HTTPStatus.FORBIDDEN,
                "open the whole address that faststy live printed when it started: "
                "by its token the page is for nobody else",
            )
            return False
        self.server.know(self.request)
        return True

    def _has_token(self) -> bool:
        """Whether it comes from who was told the address."""
        told = parse_qs(urlsplit(self.path).query).get("token", [])
        token = self.server.token.encode()
        return any(secrets.compare_digest(each.encode(), token) for each in told)

    def _is_visit(self) -> bool:
        """Whether a link leads to the page: the other page sees nothing of it, and frames none."""
        told = self.headers.get("Sec-Fetch-Mode"), self.headers.get("Sec-Fetch-Dest")
        place = urlsplit(self.path).path
        return self.command == "GET" and place == "/" and told == ("navigate", "document")

    def _state(self) -> dict[str, Any]:
        live = self.server.live
        return {
            "source": self.server.source,
            "styles": live.stylizer.styles,
            "dials": live.dials,
            "has_repair": live.stylizer.model.repairer is not None,
            "backend": live.painter.backend,
        }

    def _frame(self, query: dict[str, list[str]]) -> None:
        after = query.get("after", ["0"])[0][:12]
        live = self.server.live
        shown = live.next(int(after) if after.isdecimal() else 0, PATIENCE)
        if shown is None:
            if (error := live.error) is not None:  # a camera may just come back
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, error)
            else:
                facts = {"X-Painting": str(int(live.is_painting))}
                self._answer(b"", None, HTTPStatus.NO_CONTENT, more=facts)
            return
        facts = {
            "X-Number": str(shown.number),
            "X-Captured": f"{1000 * shown.captured:.0f}",
            "X-Dropped": str(shown.dropped),
            "X-Fps": f"{shown.fps:.1f}",
        }
        self._answer(shown.both, "image/jpeg", more=facts)

    def _answer_json(self, values: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        # In ASCII: a name may hold half a surrogate pair, which UTF-8 has not.
        self._answer(json.dumps(values).encode(), "application/json", status)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # what the request still holds is not read
        self._answer_json({"error": reason}, status)

    def _answer(
        self,
        data: bytes,
        kind: str | None,
        status: HTTPStatus = HTTPStatus.OK,
        more: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        if kind is not None:
            self.send_header("Content-Type", kind)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: there are 30 requests a second."""


def read_dials(values: Any) -> dict[str, Any]:
    """The dials that a page sends, checked. Raises ValueError, with the reason.

    `values` may hold ``style`` (weights by name), ``strength`` and ``repair`` (0…1),
    ``keep_color`` and ``stroke`` (1, 2, 4 or null).
    """
    if not isinstance(values, dict):
        raise ValueError("dials are one JSON object")
    dials: dict[str, Any] = {}
    for name, value in values.items():
        if name in _NUMBERS:
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}; expected a number from 0 to 1")
        elif name == "keep_color":
            if not isinstance(value, bool):
                raise ValueError(f"keep_color is {value!r}; expected true or false")
        elif name == "stroke":
            if type(value) not in (int, type(None)) or value not in (None, *STROKES):
                raise ValueError(f"stroke is {value!r}; expected 1, 2, 4 or null")
        elif name == "style":
            if not isinstance(value, dict) or not all(map(_is_number, value.values())):
                raise ValueError("style is no object of numbers by name")
        else:
            raise ValueError(f"there is no dial {name!r}")
        dials[name] = value
    return dials


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # also for integers that are no float
