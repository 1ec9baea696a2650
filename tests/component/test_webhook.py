"""hooks.d/webhook against a real HTTP server."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from tests.support.hookscripts import JOB, call, certified, event


class Server(http.server.ThreadingHTTPServer):
    """Keeps what it gets, and answers what it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, Message, bytes]] = []
        self.answer = 200
        self.delay = 0.0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/hook?site=a"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers, body))
        time.sleep(self.server.delay)
        self.send_response(self.server.answer)
        if self.server.answer // 100 == 3:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/other")
        self.end_headers()
        self.wfile.write(b"because \x1b[31m\xff of this")

    def do_GET(self) -> None:
        self.server.got.append(("GET", self.headers, b""))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_an_event_is_posted_as_it_came(server: Server) -> None:
    body = json.dumps(event("published")).encode() + b"\n"
    done = call("webhook", body, {"WEBHOOK_URL": server.url})
    assert (done.code, done.err) == (0, b"")
    ((path, headers, got),) = server.got
    assert (path, got) == ("/hook?site=a", body)
    assert headers["Idempotency-Key"] == f"{JOB}:published"
    assert headers["X-Invirtibuilder-Event"] == "published"
    assert headers["Content-Type"] == "application/json"
    assert "X-Invirtibuilder-Signature-256" not in headers


def test_a_secret_signs_the_body(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    env = {"WEBHOOK_URL": server.url, "WEBHOOK_SECRET_FILE": str(secret)}
    assert call("webhook", event(), env).code == 0
    ((_, headers, body),) = server.got
    expected = hmac.new(b"correct horse", body, hashlib.sha256).hexdigest()
    assert headers["X-Invirtibuilder-Signature-256"] == f"sha256={expected}"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (201, 0),
        (204, 0),
        (500, 75),
        (503, 75),
        (429, 75),
        (400, 69),
        (404, 69),
        (302, 69),
        (307, 69),
    ],
)
def test_what_the_answer_means(server: Server, answer: int, code: int) -> None:
    server.answer = answer
    done = call("webhook", event(), {"WEBHOOK_URL": server.url})
    assert done.code == code
    assert len(server.got) == 1, "no redirect is followed"
    if code:
        assert f"answered {answer}: because \\x1b[31m".encode() in done.err


def test_no_server_and_a_slow_one_are_tried_again(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert call("webhook", event(), {"WEBHOOK_URL": f"http://127.0.0.1:{port}/"}).code == 75
    server.delay = 2
    done = call("webhook", event(), {"WEBHOOK_URL": server.url, "WEBHOOK_TIMEOUT": "0.3"})
    assert done.code == 75
    assert b"timed out" in done.err


def test_no_proxy_is_used(server: Server) -> None:
    env = {"WEBHOOK_URL": server.url, "http_proxy": "http://127.0.0.1:9/"}
    assert call("webhook", event(), env).code == 0


def test_a_hostile_id_stays_in_its_header(server: Server) -> None:
    told = event("x", id="J:submitted\r\nX-Evil: 1", event="é\n")
    assert call("webhook", told, {"WEBHOOK_URL": server.url}).code == 0
    assert server.got[0][1]["Idempotency-Key"] == "J:submitted--X-Evil:-1"
    assert "X-Evil" not in server.got[0][1]


def test_https_is_checked(server: Server, tmp_path: Path) -> None:
    cert, context = certified(tmp_path)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    done = call("webhook", event(), {"WEBHOOK_URL": server.url})
    assert done.code == 75
    assert b"certificate verify failed" in done.err
    assert server.got == []
    env = {"WEBHOOK_URL": server.url, "WEBHOOK_CA_FILE": str(cert)}
    assert call("webhook", event(), env).code == 0
    assert len(server.got) == 1


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WEBHOOK_URL": "file:///etc/passwd"},
        {"WEBHOOK_URL": "http://"},
        {"WEBHOOK_URL": "http://[::1/"},
        {"WEBHOOK_URL": "http://host:port/"},
        {"WEBHOOK_URL": "http://user:password@127.0.0.1/"},
        {"WEBHOOK_URL": "http://127.0.0.1/a b"},
        {"WEBHOOK_URL": "http://127.0.0.1/", "WEBHOOK_SECRET_FILE": "/nonexistent"},
        {"WEBHOOK_URL": "http://127.0.0.1/", "WEBHOOK_SECRET_FILE": "/dev/null"},
        {"WEBHOOK_URL": "http://127.0.0.1/", "WEBHOOK_TIMEOUT": "soon"},
        {"WEBHOOK_URL": "https://127.0.0.1/", "WEBHOOK_CA_FILE": "/nonexistent"},
    ],
)
def test_wrong_settings_are_named(env: dict[str, str]) -> None:
    done = call("webhook", event(), env)
    assert done.code == 78
    assert b"WEBHOOK_" in done.err
    assert b"password@" not in done.err
