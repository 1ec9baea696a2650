"""The sandbox's one way out: what passes, and what does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.base import Room, proxied

BODY = b"0123456789" * 1000
ASK = """
import http.client, sys
method, url, *headers = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", 3128, timeout=20)
connection.putrequest(method, url, skip_host=True)
for header in headers:
    connection.putheader(*header.split(": "))
connection.endheaders()
response = connection.getresponse()
data = response.read()
print(response.status, len(data), response.headers.get("Content-Range", "-"))
"""


@dataclass
class Mirror:
    """A web server of this machine that notes what it was asked."""

    port: int = 0
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.asked.append((self.command, self.path, dict(self.headers)))
            code, body, extra = answer(self.path, dict(self.headers))
            self.send_response(code)
            for name, value in extra.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            if "Content-Length" not in extra:
                self.close_connection = True

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    """What the mirror answers."""
    if path == "/missing":
        return 404, b"gone", {"Content-Length": "4"}
    if path == "/moved":
        return 302, b"", {"Location": "http://other.example/", "Content-Length": "0"}
    if path == "/chunked":
        return 200, b"5\r\nhello\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}
    if path == "/unknown-length":
        return 200, BODY, {}
    if "If-Modified-Since" in headers:
        return 304, b"", {}
    if headers.get("Range") == "bytes=5-":
        part = BODY[5:]
        return 206, part, {"Content-Length": str(len(part)), "Content-Range": "bytes 5-9999/10000"}
    return 200, BODY, {"Content-Length": str(len(BODY))}


def ask(room: Room, mirror: Mirror, method: str, url: str, *headers: str) -> str:
    """What the proxy answers inside: status, length, range."""
    proxy = proxied(("127.0.0.1", mirror.port, "http"))
    return room.python(ASK, method, url, *headers, proxy=proxy).strip()


def test_what_apt_needs_passes(room: Room, mirror: Mirror) -> None:
    url = mirror.url("/dists/x/Release?a=b")
    assert ask(room, mirror, "GET", url) == "200 10000 -"
    assert ask(room, mirror, "HEAD", url) == "200 0 -"
    assert ask(room, mirror, "GET", url, "Range: bytes=5-") == "206 9995 bytes 5-9999/10000"
    assert ask(room, mirror, "GET", url, "If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT") == (
        "304 0 -"
    )
    assert {path for _, path, _ in mirror.asked} == {"/dists/x/Release?a=b"}
    assert {headers["Host"] for _, _, headers in mirror.asked} == {f"127.0.0.1:{mirror.port}"}


def test_answers_pass_as_they_are(room: Room, mirror: Mirror) -> None:
    assert ask(room, mirror, "GET", mirror.url("/missing")) == "404 4 -"
    assert ask(room, mirror, "GET", mirror.url("/moved")) == "302 0 -"
    assert ask(room, mirror, "GET", mirror.url("/chunked")) == "200 5 -"
    assert ask(room, mirror, "GET", mirror.url("/unknown-length")) == "200 10000 -"


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("POST", "http://127.0.0.1:{port}/"),
        ("PUT", "http://127.0.0.1:{port}/"),
        ("DELETE", "http://127.0.0.1:{port}/"),
        ("CONNECT", "127.0.0.1:{port}"),
        ("GET", "http://127.0.0.1/"),
        ("GET", "http://127.0.0.1:{other}/"),
        ("GET", "http://localhost:{port}/"),
        ("GET", "http://127.0.0.2:{port}/"),
        ("GET", "http://2130706433:{port}/"),
        ("GET", "http://[::ffff:127.0.0.1]:{port}/"),
        ("GET", "http://127.0.0.1.evil.example:{port}/"),
        ("GET", "http://127.0.0.1:{port}@evil.example/"),
        ("GET", "http://user@127.0.0.1:{port}/"),
        ("GET", "https://127.0.0.1:{port}/"),
        ("GET", "ftp://127.0.0.1:{port}/"),
        ("GET", "file:///etc/passwd"),
        ("GET", "http://127.0.0.1:99999/"),
        ("GET", "http://[/"),
        ("GET", "/"),
    ],
)
def test_all_else_is_refused(room: Room, mirror: Mirror, method: str, url: str) -> None:
    place = url.format(port=mirror.port, other=mirror.port ^ 1)
    assert ask(room, mirror, method, place).split()[0] == "403"
    assert mirror.asked == []


def test_a_host_header_does_not_choose_the_host(room: Room, mirror: Mirror) -> None:
    assert ask(room, mirror, "GET", mirror.url("/"), "Host: evil.example").startswith("200")
    assert mirror.asked[0][2]["Host"] == f"127.0.0.1:{mirror.port}"


def test_a_mirror_that_does_not_answer(room: Room, mirror: Mirror) -> None:
    proxy = proxied(("127.0.0.1", 1, "http"))
    assert room.python(ASK, "GET", "http://127.0.0.1:1/", proxy=proxy).startswith("502")


def test_there_is_no_proxy_unless_asked_for(room: Room, mirror: Mirror) -> None:
    assert room.run("python3", "-c", ASK, "GET", mirror.url("/")).code == 1
    assert b"ConnectionRefusedError" in room.output


def test_there_is_no_way_around_the_proxy(room: Room, mirror: Mirror) -> None:
    program = f"import socket; socket.create_connection(('127.0.0.1', {mirror.port}))"
    proxy = proxied(("127.0.0.1", mirror.port, "http"))
    assert room.run("python3", "-c", program, proxy=proxy).code == 1
    assert b"ConnectionRefusedError" in room.output
