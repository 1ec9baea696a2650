"""Sockets that services listen on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from invirtibuilder.errors import MachineFault, Malformed
from invirtibuilder.sockets import MAX_LINE, listening, peer_uid, receive, send, serve

# As systemd does it: the descriptor is 3, and the variables name the process that gets it.
ACTIVATED = """
import os, sys
from pathlib import Path
os.environ["LISTEN_PID"] = str(os.getpid())
from invirtibuilder.sockets import listening
server = listening(Path(sys.argv[1]))
connection, _ = server.accept()
connection.sendall(b"hello")
"""


def test_a_new_one_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("left by another\n")
    with listening(path, mode=0o600) as server, socket.socket(socket.AF_UNIX) as client:
        assert path.stat().st_mode & 0o777 == 0o600
        client.connect(str(path))
        connection, _ = server.accept()
        with connection:
            assert peer_uid(connection) == os.getuid()


def test_a_path_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineFault, match="cannot listen on"):
        listening(tmp_path / "none" / "socket")


def activated(server: socket.socket, path: Path, count: str = "1") -> subprocess.Popen[bytes]:
    """A process that got the socket as systemd hands it over."""
    program = "import os, sys; os.dup2(int(sys.argv[2]), 3); os.set_inheritable(3, True)\n"
    argv = [sys.executable, "-c", program + ACTIVATED, str(path), str(server.fileno())]
    return subprocess.Popen(
        argv,
        env={"LISTEN_FDS": count, "PYTHONPATH": str(Path(__file__).parents[2])},
        pass_fds=[server.fileno()],
        stderr=subprocess.PIPE,
    )


def test_one_that_systemd_hands_over_is_used(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(path) as server, activated(server, path) as process:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.recv(16) == b"hello"
        assert process.wait(20) == 0


@pytest.mark.parametrize(("other", "count"), [("other", "1"), ("socket", "2")])
def test_another_than_expected_is_refused(tmp_path: Path, other: str, count: str) -> None:
    with listening(tmp_path / "socket") as server:
        with activated(server, tmp_path / other, count) as process:
            _, err = process.communicate(timeout=20)
        assert process.returncode != 0
        assert b"systemd handed over" in err


def test_a_message_arrives_as_it_was_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        content = bytes(range(256)) * 1000
        sender = threading.Thread(target=send, args=(ours, {"what": "a\nb", "size": 3}, content))
        sender.start()
        told, received = receive(theirs, limit=len(content), seconds=20)
        sender.join()
    assert told == {"what": "a\nb", "size": len(content)}
    assert received == content


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no message"),
        (b'{"size": 0}', "too early"),
        (b'{"size": 9}\nshort', "too early"),
        (b'{"size": 2}\nmore', "longer than it says"),
        (b'{"size": 11}\n', "at most 10"),
        (b'{"size": -1}\n', "not a message"),
        (b'{"size": "1"}\n1', "not a message"),
        (b"[]\n", "not a message"),
        (b"\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b" " * MAX_LINE + b'{"size": 0}\n', "too long"),
    ],
)
def test_what_is_no_message_is_malformed(data: bytes, why: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(Malformed, match=why):
            receive(theirs, limit=10, seconds=20)


def test_who_sends_a_byte_now_and_then_cannot_stay() -> None:
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.001):
            ours.sendall(b" ")

    with ours, theirs:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(TimeoutError):
                receive(theirs, limit=10, seconds=0.2)
        finally:
            over.set()
            thread.join()


def test_conversations_go_on_at_once_and_no_more_than_so_many(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    stop, release = threading.Event(), threading.Event()
    begun: list[bytes] = []

    def converse(connection: socket.socket) -> None:
        begun.append(connection.recv(1))
        connection.sendall(b"?")
        release.wait(20)
        connection.sendall(b"!")

    with listening(path) as server:
        thread = threading.Thread(
            target=serve, args=(server, converse, stop), kwargs={"at_once": 2}
        )
        thread.start()
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for number, client in enumerate(clients):
            client.settimeout(20)
            client.connect(str(path))
            client.sendall(b"%d" % number)
        assert [client.recv(1) for client in clients[:2]] == [b"?", b"?"]
        assert sorted(begun) == [b"0", b"1"]
        release.set()
        assert [client.recv(1) for client in clients] == [b"!", b"!", b"?"]
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        for client in clients:
            client.close()
