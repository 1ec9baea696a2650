"""The one way out of a sandbox: GET and HEAD of configured hosts, served from outside.

The socket that it listens on was made inside, in a network namespace without a way out.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn
from urllib.parse import urlsplit

from invirtibuilder.sandbox import kernel
from invirtibuilder.sandbox.contract import Proxy

TIMEOUT = 60.0
"""Seconds without a byte, on either side."""

CONNECTIONS = 32

# RFC 9110, 7.6.1: what concerns one connection only.
HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A proxy at work, in a process group of its own."""

    pid: int

    @classmethod
    def start(cls, listener: socket.socket, allowed: Proxy) -> Server:
        """Serve what is `allowed` on this listening socket until `stop`, or until we die."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _serve(listener, allowed, parent)
        return cls(pid=pid)

    def stop(self) -> None:
        """End it; its connections are closed."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _serve(listener: socket.socket, allowed: Proxy, parent: int) -> NoReturn:
    try:
        kernel.die_with_parent()
        if os.getppid() != parent:
            os._exit(0)
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        kernel.close_all_but(listener.fileno())
        handler = type("Allowed", (_Handler,), {"allowed": allowed.allowed})
        server = _Few(("", 0), handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        server.serve_forever()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(70)


class _Few(ThreadingHTTPServer):
    """No more than CONNECTIONS at a time; the others wait."""

    daemon_threads = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.free = threading.BoundedSemaphore(CONNECTIONS)

    def process_request(self, request: Any, address: Any) -> None:
        self.free.acquire()
        super().process_request(request, address)

    def process_request_thread(self, request: Any, address: Any) -> None:
        try:
            super().process_request_thread(request, address)
        finally:
            self.free.release()


class _Handler(BaseHTTPRequestHandler):
    """One request, one connection."""

    allowed: frozenset[tuple[str, int, str]]
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT

    def do_GET(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._refuse(403, "only GET and HEAD")

    do_CONNECT = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_POST

    def log_message(self, *_: object) -> None:
        """What was fetched is in APT's own output."""

    def _refuse(self, code: int, why: str) -> None:
        # APT shows the phrase, and not the body.
        phrase = "".join(c if " " <= c <= "~" else "?" for c in why)[:200]
        self.send_response(code, phrase)
        body = why.encode() + b"\n"
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self._end_of_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _end_of_headers(self) -> None:
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _pass_on(self) -> None:
        target = reached(self.path, self.allowed)
        if target is None:
            self._refuse(403, "not a configured mirror")
            return
        connection, path = target
        drop = {*HOP_BY_HOP, *_named(self.headers.get_all("Connection")), "host", "content-length"}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in drop}
        try:
            connection.request(self.command, path, headers={**headers, "Connection": "close"})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._refuse(502, f"the mirror: {error}")
            return
        with contextlib.closing(connection):
            self._answer(response)

    def _answer(self, response: http.client.HTTPResponse) -> None:
        self.send_response_only(response.status, response.reason)
        drop = {*HOP_BY_HOP, *_named(response.headers.get_all("Connection"))}
        for name, value in response.getheaders():
            if name.lower() not in drop:
                self.send_header(name, value)
        self._end_of_headers()
        try:
            shutil.copyfileobj(response, self.wfile, 1 << 17)
        except (OSError, http.client.HTTPException):
            # Content-Length tells the client that this is not all.
            self.close_connection = True


def reached(
    uri: str, allowed: frozenset[tuple[str, int, str]]
) -> tuple[http.client.HTTPConnection, str] | None:
    """A connection, not open yet, to the host of a `http:` URI, and the path to ask it for.

    None for what is not allowed; see `contract.Proxy`.
    """
    try:
        url = urlsplit(uri)
        host, port = url.hostname or "", url.port or 80
    except ValueError:
        return None
    if url.scheme != "http" or url.username is not None:
        return None
    for name, number, scheme in allowed:
        if (name.lower(), number) == (host, port):
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            return _connection(name, number, scheme), path
    return None


def _connection(host: str, port: int, scheme: str) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    return http.client.HTTPSConnection(host, 443 if port == 80 else port, timeout=TIMEOUT)


def _named(values: list[str] | None) -> set[str]:
    return {name.strip().lower() for value in values or () for name in value.split(",")}
