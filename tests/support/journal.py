"""A socket that takes lines as systemd's journal does, and what they say."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def parsed(data: bytes) -> dict[str, list[bytes]]:
    """The fields of a datagram of the Native Journal Protocol, by name."""
    found: dict[str, list[bytes]] = {}
    while data:
        head, _, data = data.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[8 + size :]
            assert data.startswith(b"\n"), "a value of another length than it says"
            data = data[1:]
        found.setdefault(name.decode(), []).append(value)
    return found


class Journal:
    """The lines that have come."""

    def __init__(self, server: socket.socket, path: Path) -> None:
        self._server = server
        self.path = path

    def lines(self) -> list[dict[str, list[bytes]]]:
        """Those since the last call."""
        found = []
        while True:
            try:
                found.append(parsed(self._server.recv(1 << 20, socket.MSG_DONTWAIT)))
            except BlockingIOError:
                return found


@contextmanager
def journal(path: Path) -> Iterator[Journal]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        yield Journal(server, path)


def stream(fd: int) -> dict[str, str]:
    """What systemd sets for a service whose standard error leads to the journal."""
    status = os.fstat(fd)
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
