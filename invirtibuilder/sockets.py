"""Unix sockets that services listen on: bound by us, or handed over by systemd.

A message is one line of JSON, an object, and after it as many bytes as its `size` says.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from invirtibuilder import jsonsafe
from invirtibuilder.errors import MachineFault, Malformed

FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""
MAX_LINE = 64 << 10
"""Bytes of a message's line."""
CONNECT = 10.0
"""Seconds for a listener to take a connection, and each part of a message."""
LOOK = 0.5
"""Seconds after which a listener looks whether it is to stop."""


def listening(path: Path, *, mode: int = 0o660, backlog: int = 64) -> socket.socket:
    """A listening stream socket at `path`: the one that systemd has handed over, or a new one.

    A new one replaces what was there, and its permissions are `mode`; of one handed over the
    socket unit says that. Raises MachineFault when what was handed over is no such socket.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return _handed_over(path)
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(str(path))
        path.chmod(mode)
        server.listen(backlog)
    except OSError as error:
        server.close()
        raise MachineFault(f"cannot listen on {path}: {error}", code="socket") from error
    return server


def _handed_over(path: Path) -> socket.socket:
    if os.environ.get("LISTEN_FDS") != "1":
        raise MachineFault(
            f"systemd handed over {os.environ.get('LISTEN_FDS')} sockets, not one for {path}",
            code="socket",
        )
    server = socket.socket(fileno=FIRST_FD)
    os.set_inheritable(FIRST_FD, False)
    if server.family != socket.AF_UNIX or server.getsockname() != str(path):
        name = server.getsockname()
        server.close()
        raise MachineFault(f"systemd handed over {name!r}, not {path}", code="socket")
    return server


def keep_listening(server: socket.socket) -> None:
    """Have `listening` find this socket again when this process becomes another program."""
    os.dup2(server.fileno(), FIRST_FD)
    os.set_inheritable(FIRST_FD, True)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}


def peer_uid(connection: socket.socket) -> int:
    """Whose process is at the other end (unix(7), SO_PEERCRED)."""
    size = struct.calcsize("3i")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", raw)[1])


def serve(
    server: socket.socket,
    converse: Callable[[socket.socket], None],
    stop: threading.Event,
    *,
    at_once: int,
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Hand each connection to `converse` in a thread of its own, until told to stop.

    Of more than `at_once` the later ones wait. A connection that breaks is no error. `alive` is
    called all the time, but not while all the conversations that there may be are going on.
    """
    room = threading.BoundedSemaphore(at_once)

    def conversation(connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                converse(connection)
        finally:
            room.release()

    server.settimeout(LOOK)
    while not stop.is_set():
        alive()
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        while not room.acquire(timeout=LOOK):
            if stop.is_set():
                connection.close()
                return
        threading.Thread(target=conversation, args=(connection,), daemon=True).start()


def send(connection: socket.socket, told: Mapping[str, Any], content: bytes = b"") -> None:
    """Send a message."""
    line = json.dumps({**told, "size": len(content)}).encode() + b"\n"
    connection.sendall(line + content)


def ask(
    path: Path, told: Mapping[str, Any], content: bytes = b"", *, limit: int, seconds: float
) -> tuple[dict[str, Any], bytes]:
    """Send a message to whoever listens at `path`, and receive the answer, as `receive` does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT)
        connection.connect(os.fspath(path))
        # One that does not want all of it has answered.
        with suppress(BrokenPipeError, ConnectionResetError):
            send(connection, told, content)
        return receive(connection, limit=limit, seconds=seconds)


def receive(
    connection: socket.socket, *, limit: int, seconds: float
) -> tuple[dict[str, Any], bytes]:
    """Receive a message with at most `limit` bytes after its line, in `seconds` as a whole.

    Raises Malformed for anything else, and OSError when the connection breaks.
    """
    end = time.monotonic() + seconds
    data = bytearray()

    def more() -> None:
        # For the whole message: a byte now and then is no way to stay.
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no whole message in {seconds:g} s")
        connection.settimeout(left)
        part = connection.recv(64 << 10)
        if not part:
            raise Malformed("the message ends too early" if data else "there is no message")
        data.extend(part)

    while (found := data.find(b"\n", 0, MAX_LINE)) < 0:
        if len(data) >= MAX_LINE:
            raise Malformed("not a message: its line is too long")
        more()
    told = jsonsafe.loads(bytes(data[:found]))
    size = told.get("size") if isinstance(told, dict) else None
    if not isinstance(size, int) or size < 0:
        raise Malformed("not a message: an object with `size` is expected")
    if size > limit:
        raise Malformed(f"a message of {size} bytes; at most {limit} are taken")
    del data[: found + 1]
    while len(data) < size:
        more()
    if len(data) > size:
        raise Malformed("the message is longer than it says")
    return told, bytes(data)
