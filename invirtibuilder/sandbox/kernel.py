"""The Linux calls that Python 3.11's standard library lacks. Each raises OSError."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct

import seccomp

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

# The mount_setattr(2) flags have the values of the MS_ flags above.
_AT_RECURSIVE = 0x8000
_AT_FDCWD = -100

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_TIME_ERROR = 5

CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "NET_BIND_SERVICE": 10,
    "SYS_CHROOT": 18,
    "SETFCAP": 31,
}
"""What root keeps inside: enough for maintainer scripts, nothing that changes the sandbox."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(name: str, *args: object) -> int:
    number = seccomp.resolve_syscall(seccomp.Arch(), name)
    return _check(_libc.syscall(ctypes.c_long(number), *args), name)


def _prctl(option: int, *args: int) -> None:
    values = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(option, *values), f"prctl {option}")


def unshare(flags: int) -> None:
    """Enter new namespaces, by CLONE_NEW flags."""
    _check(_libc.unshare(flags), "unshare")


def mount(
    source: str, target: str, kind: str | None = None, flags: int = 0, data: str = ""
) -> None:
    """Mount, or bind with MS_BIND; `data` is the file system's own options."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, f"mount {kind or 'bind'} on {target}")


def restrict_mount(target: str, flags: int) -> None:
    """Add MS_RDONLY, MS_NOSUID, MS_NODEV or MS_NOEXEC to a mount and all below it."""
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    result = _libc.mount_setattr(
        _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
    )
    _check(result, f"mount_setattr {target}")


def enter_root(path: str) -> None:
    """Make `path`, a mount, the root; the old root stays mounted over it, at our "."."""
    os.chdir(path)
    _syscall("pivot_root", b".", b".")


def leave_old_root() -> None:
    """Let go of what `enter_root` left, for good."""
    _check(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def new_session_keyring() -> None:
    """Leave the caller's session keyring (a Kerberos cache may be in it)."""
    _syscall("keyctl", ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None)


def die_with_parent() -> None:
    """Be killed when the parent dies. Forgotten at each change of ids."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def dumpable(value: bool) -> None:
    """Whether processes with our ids may look into this one."""
    _prctl(_PR_SET_DUMPABLE, int(value))


def no_new_privileges() -> None:
    """From now on set-user-ID bits and file capabilities do nothing for us."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def bound_capabilities(keep: frozenset[int]) -> None:
    """Drop all but these from the bounding set."""
    last = int(open("/proc/sys/kernel/cap_last_cap", "rb").read())  # noqa: SIM115, PTH123
    for capability in range(last + 1):
        if capability not in keep:
            _prctl(_PR_CAPBSET_DROP, capability)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def close_all_but(keep: int) -> None:
    """Close all descriptors but standard input, output, error and this one."""
    _close_range(keep + 1, 0xFFFFFFFF)
    if keep > 3:
        _close_range(3, keep - 1)


def _close_range(first: int, last: int) -> None:
    _check(_libc.close_range(ctypes.c_uint(first), ctypes.c_uint(last), 0), "close_range")


def loopback_up() -> None:
    """Start the namespace's own loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack("16sH22x", fcntl.ioctl(probe, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))


def clock_synchronised() -> bool:
    """Whether the kernel's clock is kept by somebody (adjtimex(2), which changes nothing here)."""
    # struct timex has 208 bytes on 64-bit machines; modes 0 only reads.
    return _check(_libc.adjtimex(ctypes.create_string_buffer(512)), "adjtimex") != _TIME_ERROR


def limit(kind: int, value: int | None) -> None:
    """Set a resource limit, soft and hard; never above the hard one that holds already."""
    if value is None:
        return
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
