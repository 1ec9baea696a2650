"""Engines with tiny workers: the lock says who lives, one word in it says stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.engine import (
    GO,
    Attempt,
    ChildEngine,
    SocketEngine,
    receive_descriptors,
    room_of,
    send_descriptors,
)
from invirtibuilder.errors import MachineFault, Unavailable
from invirtibuilder.run import ProcessFault
from invirtibuilder.sandbox.limits import Groups
from tests.support.place import until

# Workers are meant to outlive whoever started them.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

WORKER = """
import os, sys, time
assert sys.argv[1:3] == ["worker", "--directory"] and sys.argv[4] == "--lock-fd"
lock = int(sys.argv[5])
order = sys.stdin.read()
print("log of", os.getpid(), file=sys.stderr, flush=True)
while order == "wait" and not os.fstat(lock).st_size:
    time.sleep(0.02)
try:
    os.write(lock, b"x")
except OSError:
    print(order.upper(), os.read(lock, 100).decode().strip(), sorted(os.environ), end="")
"""


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    made = Attempt(tmp_path / "20260102T030405.678901-abcd/attempts/build-1")
    made.directory.mkdir(parents=True)
    return made


def child(tmp_path: Path) -> ChildEngine:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return ChildEngine(tmp_path, program=(sys.executable, str(script)))


def test_a_child_does_an_order(tmp_path: Path, attempt: Attempt) -> None:
    attempt.order.write_text("order")
    assert attempt.id == "20260102T030405.678901-abcd.build-1"
    assert not attempt.started
    child(tmp_path).start(attempt)
    assert attempt.started
    until(lambda: not attempt.running)
    # It may not write to its lock, and gets nothing of our environment.
    text = attempt.result.read_text()
    assert text == "ORDER  ['HOME', 'LANG', 'LC_ALL', 'PATH', 'TZ']"
    assert attempt.log.read_text().startswith("log of ")


def test_a_running_child_is_seen_by_others_and_hears_the_word(
    tmp_path: Path, attempt: Attempt
) -> None:
    attempt.order.write_text("wait")
    child(tmp_path).start(attempt)
    until(attempt.log.read_text)
    other = Attempt(attempt.directory)  # as another daemon, which adopts it
    for _ in range(20):
        assert other.running
    other.stop()
    until(lambda: not attempt.running)
    assert attempt.result.read_text().startswith("WAIT cancel [")


def test_a_childs_check_says_what_this_machine_promises_less_of(tmp_path: Path) -> None:
    lacking = Groups.find().lacking().values()
    said = ChildEngine(tmp_path).check()
    assert len(said) == len(lacking)
    assert all(line.startswith(text) for line, text in zip(said, lacking, strict=True))
    told = ChildEngine(tmp_path, program=("sh", "-c", "echo one >&2; echo two >&2")).check()
    assert told == ["one", "two"]
    with pytest.raises(MachineFault, match="no ids"):
        ChildEngine(tmp_path, program=("sh", "-c", "echo no ids >&2; exit 71")).check()


def test_a_killed_child_is_over(tmp_path: Path, attempt: Attempt) -> None:
    attempt.order.write_text("wait")
    child(tmp_path).start(attempt)
    until(attempt.log.read_text)
    os.kill(int(attempt.log.read_text().split()[-1]), signal.SIGKILL)
    until(lambda: not attempt.running)
    assert attempt.result.read_bytes() == b""
    assert attempt.started


def test_an_attempt_is_given_to_one_worker(tmp_path: Path, attempt: Attempt) -> None:
    attempt.order.write_text("wait")
    engine = child(tmp_path)
    engine.start(attempt)
    with pytest.raises(BlockingIOError):
        engine.start(attempt)
    attempt.stop()
    until(lambda: not attempt.running)


def test_a_stop_before_the_start_is_nothing(attempt: Attempt) -> None:
    attempt.stop()
    assert not attempt.started


def test_a_program_that_is_not_there(tmp_path: Path, attempt: Attempt) -> None:
    attempt.order.write_text("")
    with pytest.raises(ProcessFault, match="cannot be started"):
        ChildEngine(tmp_path, program=("/nonexistent",)).start(attempt)
    assert not attempt.running


def test_a_link_in_place_of_a_result_is_not_followed(tmp_path: Path, attempt: Attempt) -> None:
    attempt.order.write_text("")
    attempt.result.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        child(tmp_path).start(attempt)
    assert not (tmp_path / "elsewhere").exists()


class Listener:
    """Answers one connection with `answer` and keeps the descriptors until released."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.release = threading.Event()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen()
        self._answer = answer
        self.data = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection, self._server:
            self.data, fds = receive_descriptors(connection, 4)
            for fd in fds:
                assert not os.get_inheritable(fd)
            connection.sendall(self._answer)
            self.release.wait(30)
            order, result, log, _ = fds
            os.write(result, os.read(order, 100).upper())
            os.write(log, b"log")
            for fd in fds:
                os.close(fd)

    def end(self) -> None:
        self.release.set()
        self._thread.join()


def test_the_socket_hands_over_descriptors_and_the_lock(short: Path, attempt: Attempt) -> None:
    listener = Listener(short / "s", b"started\n")
    attempt.order.write_text("order")
    SocketEngine(short / "s").start(attempt)
    assert listener.data == GO
    assert attempt.running
    listener.end()
    assert not attempt.running
    assert (attempt.result.read_bytes(), attempt.log.read_bytes()) == (b"ORDER", b"log")


def test_a_worker_that_refuses(short: Path, attempt: Attempt) -> None:
    listener = Listener(short / "s", b"refused\n")
    attempt.order.write_text("order")
    with pytest.raises(Unavailable, match="refused"):
        SocketEngine(short / "s").start(attempt)
    listener.end()


def test_a_worker_that_is_not_there(short: Path, attempt: Attempt) -> None:
    attempt.order.write_text("order")
    with pytest.raises(Unavailable) as caught:
        SocketEngine(short / "s").start(attempt)
    assert caught.value.code == "no-worker"
    # The lock is nobody's.
    with attempt.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_wrong_number_of_descriptors() -> None:
    for count in (0, 3, 5):
        ours, theirs = socket.socketpair()
        before = len(os.listdir("/proc/self/fd"))
        with ours, theirs:
            null = os.open(os.devnull, os.O_RDONLY)
            if count:
                send_descriptors(ours, GO, [null] * count)
            else:
                ours.sendall(GO)
            os.close(null)
            with pytest.raises(MachineFault, match="descriptors"):
                receive_descriptors(theirs, 4)
            # None of them stays open.
            assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    path = Path(f"/tmp/engine-{os.getpid()}-{time.monotonic_ns()}")
    path.symlink_to(tmp_path)
    yield path
    path.unlink()


def test_what_a_listener_has(tmp_path: Path) -> None:
    """Whatever somebody at the socket says, it is numbers and a line of text, or nothing."""
    good = b'{"directory": "/d\\n", "slots": 2, "free": 5, "size": 9, "bases": 7}'
    for said, slots in (
        (good, 2),
        *((bad, None) for bad in (b"", b"{", b"[]", b"started\n", good[:-1], b"x" * 100000)),
        *((good.replace(b"2", bad), None) for bad in (b"[]", b'"x"', b"1e999", b"9" * 400)),
    ):
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()

            def answer(server: socket.socket = server, said: bytes = said) -> None:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(64)
                    connection.sendall(said)

            thread = threading.Thread(target=answer)
            thread.start()
            room = room_of(path, seconds=30)
            thread.join()
        path.unlink()
        assert (room.slots if room else None) == slots, said[:80]
        assert room is None or (room.directory, room.bases) == ("/d\\n", 7)
    with pytest.raises(FileNotFoundError):
        room_of(path, seconds=1)
