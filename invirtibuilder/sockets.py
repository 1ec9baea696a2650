"""Unix sockets that services listen on: bound by us, or handed over by systemd."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from invirtibuilder.errors import MachineFault

FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


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


def peer_uid(connection: socket.socket) -> int:
    """Whose process is at the other end (unix(7), SO_PEERCRED)."""
    size = struct.calcsize("3i")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", raw)[1])
