"""Many clients at once, and clients that are cut off: each entry of the queue is whole, or none."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from invirtibuilder import remctl as client
from invirtibuilder.errors import Fault, Unavailable
from invirtibuilder.remctl import Connection
from invirtibuilder.run import run, started_group
from invirtibuilder.spool import Spool
from tests.support import doors
from tests.support import place as places
from tests.support.doors import installed, prepare
from tests.support.kdc import Realm, remctl, remctld
from tests.support.place import Place, until

CLIENTS, CALLS = 32, 2000
LONG = 1200.0
"""Seconds for all calls, on whatever machine."""


@dataclass(frozen=True, kw_only=True)
class Doorway:
    """A site without a daemon, and its remctld."""

    place: Place
    port: int

    def commits(self) -> list[str]:
        """What was queued, each entry whole."""
        entries = list(Spool(self.place.site.queue).entries(frozenset({os.geteuid()})))
        assert all(entry.request for entry in entries), entries
        assert not os.listdir(self.place.site.queue / "bad")
        return [entry.request.args[2] for entry in entries if entry.request]

    def idle(self) -> bool:
        """Whether no program of the door runs, and none has left anything unfinished."""
        program = str(installed(self.place) / "build").encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if program in path.read_bytes().split(b"\0"):
                    return False
        return not os.listdir(self.place.site.queue / "tmp")


@pytest.fixture()
def doorway(realm: Realm) -> Iterator[Doorway]:
    """Socket-activated, with the shipped unit's backlog."""
    with places.place() as place:
        prepare(place)
        place.cli("acl", "compile", check=True)
        conf = installed(place) / "conf"
        with remctld(realm, conf, backlog=doors.backlog()) as port:
            yield Doorway(place=place, port=port)


def test_two_thousand_from_thirty_two_at_once(doorway: Doorway, realm: Realm) -> None:
    """No connection fails, and each id that was printed is queued exactly once."""
    argv = ["xargs", "-n", "1", "-P", str(CLIENTS), "remctl", "-p", str(doorway.port)]
    argv += ["-s", "host/localhost", "localhost", "build", "submit", "dev", "greet"]
    commits = [f"{number:040x}" for number in range(CALLS)]
    # xargs fails when one of them does.
    lines = "\n".join(commits).encode()
    done = run(argv, env=realm.of("alice"), stdin=lines, timeout=LONG, check=False)
    assert done.code == 0, set(done.err.splitlines())
    names = [path.stem for path in (doorway.place.site.queue / "new").iterdir()]
    assert sorted(done.text.split()) == sorted(names)
    assert len(names) == len(set(names)) == CALLS
    assert sorted(doorway.commits()) == commits


def test_clients_that_are_killed(doorway: Doorway, realm: Realm) -> None:
    """At a random instant of a call."""
    env = realm.of("alice")
    argv = ["remctl", "-p", str(doorway.port), "-s", "host/localhost", "localhost", "build"]
    began = time.monotonic()
    remctl(realm, env, doorway.port, "build", "submit", "dev", "greet", "first", check=True)
    # Half of them shall be killed before their end, however fast this machine is now and later.
    whole = 2 * (time.monotonic() - began)
    instants = random.Random(4373)
    for number in range(60):
        words = ["submit", "dev", "greet", f"{number:040x}"]
        with started_group([*argv, *words], env=env) as it:
            time.sleep(instants.uniform(0, whole))
            whole *= 1.25 if it.poll() is None else 0.8
            it.kill()
    remctl(realm, env, doorway.port, "build", "submit", "dev", "greet", "last", check=True)
    until(doorway.idle)
    commits = doorway.commits()
    assert len(commits) == len(set(commits))
    assert 2 < len(commits) < 62, "the instants are wrong"


class Cut(Connection):
    """A client that resets the connection after so many octets."""

    left = 0

    def _send(self, flags: int, data: bytes) -> None:
        octets = struct.pack("!BL", flags, len(data)) + data
        self._socket.sendall(octets[: self.left])
        self.left -= len(octets)
        if self.left <= 0:
            reset(self._socket)


class Gone(Connection):
    """A client that resets the connection when it has asked."""

    def _get(self, silence: float | None) -> client.Message:
        reset(self._socket)


def reset(connection: socket.socket) -> NoReturn:
    """Without a word more, in either direction."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    raise Unavailable("cut off", code="cut")


def test_connections_that_are_reset(
    doorway: Doorway, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a token, between two, and after the last: never half a command."""
    for name, value in realm.of("alice").items():
        monkeypatch.setenv(name, value)
    # So that a short command comes in many parts.
    monkeypatch.setattr(client, "CHUNK", 16)
    sent = 0

    class Counting(Connection):
        def _send(self, flags: int, data: bytes) -> None:
            nonlocal sent
            sent += 5 + len(data)
            super()._send(flags, data)

    def submit(connection: Connection, commit: str) -> int:
        words = (b"build", b"submit", b"dev", b"greet", commit.encode())
        return connection.command(words, lambda _stream, _data: None)

    connection = Counting("localhost", doorway.port)
    assert submit(connection, "f" * 40) == 0
    whole = sent
    connection.close()
    instants = random.Random(4373)
    for number in range(40):
        # Tokens differ in length by some octets, of which the last one has more than 60.
        monkeypatch.setattr(Cut, "left", instants.randrange(1, whole - 30))
        with pytest.raises(Fault, match="cut off"):
            submit(Cut("localhost", doorway.port), f"{number:040x}")
    until(doorway.idle)
    assert doorway.commits() == ["f" * 40]
    # Gone with the last octet: it is queued, or it is not.
    for number in range(10):
        with pytest.raises(Fault, match="cut off"):
            submit(Gone("localhost", doorway.port), f"{number:040x}")
    last = remctl(realm, realm.of("alice"), doorway.port, "build", "submit", "dev", "greet", "last")
    assert last.code == 0
    until(doorway.idle)
    commits = doorway.commits()
    assert len(commits) == len(set(commits)) <= 12
    assert {"f" * 40, "last"} <= set(commits)
