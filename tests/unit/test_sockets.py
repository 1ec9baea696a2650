"""Sockets that services listen on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from invirtibuilder.errors import MachineFault
from invirtibuilder.sockets import listening, peer_uid

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
