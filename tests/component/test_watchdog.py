"""What a service manager hears of a real daemon: ready, alive while each thread is, stopping."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from invirtibuilder.watchdog import Watchdog
from tests.support import packages
from tests.support import place as places
from tests.support.place import Place, until
from tests.support.running import put

WATCHDOG = 1.6
"""Seconds that a manager would wait for a word."""
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
"""Requests of ptrace(2)."""
WALL = 0x40000000
THREADS = {"jobs", "events", "answers", "table"}
"""Those of a daemon that has published nothing yet."""


class Manager:
    """What a service manager hears."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.heard: list[str] = []

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}

    def word(self, seconds: float) -> str:
        """The next message; nothing when there is none for so long."""
        self._socket.settimeout(seconds)
        with suppress(TimeoutError):
            self.heard.append(self._socket.recv(4096).decode())
            return self.heard[-1]
        return ""

    def hears(self, word: str) -> str:
        """Wait for a message with this."""
        return str(until(lambda: word in (text := self.word(60)) and text, f"no {word}"))

    def silence(self) -> bool:
        """Whether, once all that was said is heard, no word comes for as long as it has to."""
        while self.word(0.01):
            pass
        return not self.word(WATCHDOG)


@contextmanager
def frozen(thread: int) -> Iterator[None]:
    """One thread of another process stands still, and all others go on."""
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_void_p(0)
    if libc.ptrace(SEIZE, thread, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), f"thread {thread}")
    try:
        assert libc.ptrace(INTERRUPT, thread, zero, zero) == 0, os.strerror(ctypes.get_errno())
        os.waitpid(thread, WALL)
        yield
    finally:
        libc.ptrace(DETACH, thread, zero, zero)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@invirtibuilder-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/n"
    with Manager(name) as made:
        yield made


def complaints(place: Place) -> list[str]:
    words = "these threads do not go on: "
    told = [line.split(words)[1] for line in place.log.read_text().splitlines() if words in line]
    return [name for names in told for name in names.split(", ")]


def test_from_ready_to_stopping(manager: Manager, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "hello", "hello", "1.0")
    with places.canned() as (place, _):
        place.package(repo)
        with place.daemon(env=manager.environment) as daemon:
            assert manager.hears("READY=1") == "READY=1\nSTATUS=waits for submissions"
            # Nothing was said before it was true.
            assert [text for text in manager.heard if "READY" not in text] in (
                [],
                ["STATUS=0 jobs run, 0 wait"],
            )
            manager.hears("WATCHDOG=1")
            # Not a command, which would take its time: nobody reads the socket meanwhile, and what
            # does not fit into it is not said again.
            put(place, "dev", repo)
            manager.hears("STATUS=1 jobs run, 0 wait")
            manager.hears("STATUS=0 jobs run, 0 wait")
            daemon.send_signal(signal.SIGTERM)
            manager.hears("STOPPING=1")
            daemon.wait(60)
        assert not complaints(place)


def test_every_thread_counts(tmp_path: Path) -> None:
    with (
        Manager(f"{tmp_path}/n") as manager,
        places.place() as place,
        place.daemon(env=manager.environment) as daemon,
    ):
        manager.hears("READY=1")
        missed: set[str] = set()
        # One that stands still just while it has Python's lock can say nothing of itself: what is
        # said when it goes on again is about those that waited for the lock.
        for _ in range(10):
            for thread in [int(path.name) for path in Path(f"/proc/{daemon.pid}/task").iterdir()]:
                before = len(complaints(place))
                # A thread that had something to do at the start only is gone by now.
                with suppress(ProcessLookupError), frozen(thread):
                    until(manager.silence, "the daemon says it is alive, with a dead thread")
                    missed |= set(complaints(place)[before:])
                manager.hears("WATCHDOG=1")
            if missed == THREADS:
                break
        assert missed == THREADS
        until(lambda: place.log.read_text().rstrip().endswith("all threads go on"))


def test_nobody_is_told_unless_he_asks(tmp_path: Path) -> None:
    with Manager(f"{tmp_path}/n") as manager:
        for environment in (
            {},
            {"NOTIFY_SOCKET": ""},
            {"NOTIFY_SOCKET": f"{tmp_path}/nobody", "WATCHDOG_USEC": "1000000"},
            {"NOTIFY_SOCKET": manager.address},
            {**manager.environment, "WATCHDOG_PID": "1"},
        ):
            watchdog = Watchdog(environment)
            watchdog.ping()
            watchdog.beat()
        assert manager.silence()
        Watchdog(manager.environment | {"WATCHDOG_PID": str(os.getpid())}).ping()
        assert manager.word(60) == "WATCHDOG=1"


def test_a_step_may_take_as_long_as_was_said(tmp_path: Path) -> None:
    with Manager(f"{tmp_path}/n") as manager:
        watchdog = Watchdog(manager.environment)
        with watchdog.watched():
            watchdog.beat(1000)
            assert manager.silence()
            watchdog.ping()
            assert manager.word(60) == "WATCHDOG=1"
            watchdog.beat()
            assert manager.silence()
            watchdog.ping()
            assert manager.silence()
        watchdog.ping()
        assert manager.word(60) == "WATCHDOG=1"
