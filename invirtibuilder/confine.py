"""What a program of ours that reads hostile content may do: a thread gives its rights away.

A system call filter and Landlock (landlock(7)) belong to a thread and to what it starts, for good.
So they cost no program in between: `run` starts the process in a thread that has been through
`Confinement.enter`, and that ends then.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import seccomp

FORBIDDEN = (
    # keys, introspection, and the subsystems with the worst record
    *("add_key", "request_key", "keyctl", "bpf", "perf_event_open", "userfaultfd"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "lookup_dcookie", "kcmp"),
    # mounts and namespaces
    *("mount", "umount2", "pivot_root", "move_mount", "open_tree", "fsopen", "fsmount"),
    *("fsconfig", "fspick", "mount_setattr", "setns", "unshare", "quotactl", "quotactl_fd"),
    # the machine
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *("swapon", "swapoff", "reboot", "acct", "syslog", "iopl", "ioperm", "nfsservctl"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "vhangup"),
    *("open_by_handle_at", "name_to_handle_at", "fanotify_init"),
)
"""Calls that nothing that works on hostile content has any business with, in sandboxes or here."""

NEWER = range(451, 512)
"""Numbers of calls that came after Debian 12's kernel (6.1), alike on all architectures: programs
do without them there. One is let in when somebody has looked at it."""

WEAKER = "the kernel has no Landlock: a package that takes it over can write our account's files"
"""What is promised less of where `abi` is 0."""

_FORBIDDEN_HERE = (
    # other processes, which are our own account's
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kill", "tkill", "tgkill"),
    *("rt_sigqueueinfo", "rt_tgsigqueueinfo", "setpriority", "ioprio_set", "sched_setaffinity"),
    *("sched_setscheduler", "sched_setparam", "sched_setattr", "migrate_pages", "move_pages"),
    # services and the network
    *("socket", "socketpair", "connect", "bind"),
    # what Landlock does not know of: the files of our account anywhere, and names that lead away
    *("chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "truncate"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
    *("utime", "utimes", "utimensat", "futimesat", "chroot", "mknod", "mknodat"),
    *("symlink", "symlinkat", "link", "linkat"),
)
_FCNTL = (8, 10, 15, 1024, 1026)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX and F_NOTIFY send signals to others; F_SETLEASE holds them up."""
_IOCTL = (0x40086602, 0x40046602, 0x401C5820, 0x5412, 0xC0045877)
"""FS_IOC_SETFLAGS, the same of 32 bits, FS_IOC_FSSETXATTR, TIOCSTI and FIFREEZE."""
_CLONE = (0x8000, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_PARENT, and new namespaces of all kinds."""
_CLONE_VFORK = 0x4000
_LOW = 0xFFFFFFFF

_EXECUTE, _WRITE, _READ, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE = 1 << 4 | 1 << 5
_MAKE = 1 << 7 | 1 << 8  # directories and regular files; no devices, sockets or symbolic links
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""What Landlock can deny in files, since which version of its ABI."""
_TCP, _SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # alike on all architectures
_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_INSTRUCTION = 8  # bytes of one in a filter

_COMMON = (Path("/usr"), Path("/lib"), Path("/lib64"), Path("/etc/ld.so.cache"))
"""What every program reads."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What is left to a process; all paths with what is below them, absent ones left out.

    No sockets, no signals to others nor a look into them, no symbolic or hard links, no change of
    modes, owners or times. Where the kernel has Landlock (`abi`), it reads, writes and executes
    nothing but this, and the system's libraries. Without `forks` fork(2) fails: what would start
    programs that are not there for it does not try. Without `syncs` fsync(2) and fdatasync(2) do
    nothing and say that they did, for who syncs afterwards what has been written.
    """

    read: Sequence[Path] = ()
    write: Sequence[Path] = ()
    execute: Sequence[Path] = ()
    forks: bool = False
    syncs: bool = True

    def enter(self) -> None:
        """Confine the calling thread, for good. Raises OSError."""
        self._enter(abi())

    def _enter(self, version: int) -> None:
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        if version:
            self._landlock(version)
        _filter(forks=self.forks, syncs=self.syncs)

    def _landlock(self, version: int) -> None:
        rights = max(value for since, value in _RIGHTS.items() if since <= version)
        # landlock_ruleset_attr: older versions know the first field or two only.
        fields = [rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0]
        made = struct.pack("=QQQ", *fields)[: 8 if version < 4 else 16 if version < 6 else 24]
        ruleset = _syscall(_CREATE_RULESET, made, len(made), 0)
        try:
            loaders = [p for d in ("/lib", "/lib64") for p in Path(d).glob("ld-*.so.*")]
            for paths, allowed in (
                (_COMMON, _READ | _READ_DIR),
                (self.read, _READ | _READ_DIR),
                ((Path(os.devnull),), _READ | _WRITE),
                ((*self.execute, *loaders), _EXECUTE | _READ),
                (self.write, _READ | _READ_DIR | _WRITE | _REMOVE | _MAKE | _REFER | _TRUNCATE),
            ):
                for path in paths:
                    _allow(ruleset, path, allowed & rights)
            _syscall(_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)


def abi() -> int:
    """The version of Landlock's ABI here; 0 where the kernel has none."""
    try:
        return _syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
            rights &= _OF_FILES
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


@functools.cache
def _program(*, forks: bool, syncs: bool) -> bytes:
    """The system call filter, as the kernel takes it: made once, as that takes a millisecond."""
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    refused, arch = seccomp.ERRNO(errno.EPERM), seccomp.Arch()
    for name in (*FORBIDDEN, *_FORBIDDEN_HERE, *(() if forks else ("fork",))):
        if seccomp.resolve_syscall(arch, name) >= 0:
            rules.add_rule(refused, name)
    # The C library falls back to clone(2), whose flags a filter can see.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    for flag in _CLONE:
        rules.add_rule(refused, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    if not forks:
        # vfork(2), by which we start it, is a clone with this flag on some architectures.
        rules.add_rule(refused, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_VFORK, 0))
    for call, numbers in (("fcntl", _FCNTL), ("ioctl", _IOCTL)):
        for number in numbers:
            rules.add_rule(refused, call, seccomp.Arg(1, seccomp.MASKED_EQ, _LOW, number))
    _keep_what_is_only_read(rules)
    # Limits of others; 0 is the process itself.
    rules.add_rule(refused, "prlimit64", seccomp.Arg(0, seccomp.NE, 0))
    for number in NEWER:
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), number)
    if not syncs:
        for call in ("fsync", "fdatasync"):
            rules.add_rule(seccomp.ERRNO(0), call)
    with os.fdopen(os.memfd_create("filter"), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _filter(*, forks: bool, syncs: bool) -> None:
    """Filter the calls of this thread and of what it starts (seccomp(2), struct sock_fprog)."""
    program = _program(forks=forks, syncs=syncs)
    instructions = ctypes.create_string_buffer(program, len(program))
    given = struct.pack("@HP", len(program) // _INSTRUCTION, ctypes.addressof(instructions))
    _check(_libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, given, 0, 0), "seccomp")


def _keep_what_is_only_read(rules: seccomp.SyscallFilter) -> None:
    """An open(2) that empties a file has to ask for writing, too.

    Landlock before its third version knows no right to truncate; and of an open for neither reading
    nor writing it knows nothing at all.
    """
    refused = seccomp.ERRNO(errno.EPERM)
    reading = (os.O_ACCMODE | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC)
    for name, argument in (("open", 1), ("openat", 2)):
        if seccomp.resolve_syscall(seccomp.Arch(), name) >= 0:
            for mask, flags in (reading, (os.O_ACCMODE, os.O_ACCMODE)):
                rules.add_rule(refused, name, seccomp.Arg(argument, seccomp.MASKED_EQ, mask, flags))
    # Its flags are in memory, where a filter cannot look; older kernels do not have it either.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "openat2")


def _syscall(number: int, *args: object) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _check(_libc.syscall(ctypes.c_long(number), *words), f"system call {number}")


def _check(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
