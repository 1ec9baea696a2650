"""What builds and maintainer scripts do all the time still works behind the filter."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.support.base import Room

PROGRAM = """
import ctypes, os, signal, socket, subprocess, threading

libc = ctypes.CDLL(None, use_errno=True)
for family, kind, protocol in (
    (socket.AF_UNIX, socket.SOCK_STREAM, 0),
    (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
    (socket.AF_INET, socket.SOCK_STREAM, 0),
    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    (socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 15),
):
    socket.socket(family, kind, protocol).close()
assert socket.if_nameindex() == [(1, "lo")]
assert socket.getaddrinfo("localhost", 80)
assert libc.personality(0xFFFFFFFF) == 0
for value in (0x8, 0x20008, 0x20000, 0):
    assert libc.personality(value) != -1, value
thread = threading.Thread(target=subprocess.check_call, args=(["true"],))
thread.start()
thread.join()
child = os.fork()
if child == 0:
    libc.ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(3)
assert os.WIFSTOPPED(os.waitpid(child, 0)[1])
assert libc.ptrace(7, child, 0, 0) == 0
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
"""


@pytest.mark.parametrize("user", ["root", "build"])
def test_what_programs_do(room: Room, user: Literal["root", "build"]) -> None:
    room.python(PROGRAM, user=user)


@pytest.mark.parametrize("user", ["root", "build"])
def test_core_dumps_are_off_and_stay_so(room: Room, user: Literal["root", "build"]) -> None:
    """Also for the machine's crash handler, which a limit of 0 would not keep from starting."""
    program = """
        import resource

        print(resource.getrlimit(resource.RLIMIT_CORE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
        print(resource.prlimit(0, resource.RLIMIT_CORE))
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
    """
    lines = room.python(program, user=user).splitlines()
    assert lines == ["(1, 1)", "(1, 1)", "(512, 1024)"]


def test_a_32_bit_personality(room: Room) -> None:
    assert room.text("setarch", "linux32", "uname", "-m") != room.text("uname", "-m")


def test_what_maintainer_scripts_do(room: Room) -> None:
    room.with_scratch()
    program = """
        useradd --system --user-group --home-dir /var/lib/x --create-home service
        usermod --comment 'A service' service
        passwd --lock service
        install -d -o service -g service -m 2750 /var/lib/service
        update-alternatives --install /usr/bin/it it /usr/bin/true 1
        ldconfig
        mknod /tmp/fifo p
        chown 12345:54321 /tmp/fifo
        userdel service
    """
    room.text("sh", "-euc", program, user="root")
