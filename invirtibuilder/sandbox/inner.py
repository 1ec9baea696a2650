"""What runs in the new namespaces: the mounts, a tiny init, and the command.

All of it is forked from the launcher, so that nothing has to be loaded from inside.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from invirtibuilder.sandbox import kernel, seccomp_filter
from invirtibuilder.sandbox.contract import BUILD_ID, PROXY_PORT, Bind, Command
from invirtibuilder.sandbox.ids import fork_init, report

TMP = "/tmp"  # noqa: S108 (a mount of our own, as is the next)
SHM = "/dev/shm"  # noqa: S108
ROOT = f"{TMP}/root"

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
MASKED = (
    *("keys", "key-users", "kcore", "kmsg", "timer_list", "sched_debug", "latency_stats"),
    *("sysrq-trigger", "kallsyms", "kpagecount", "kpageflags", "kpagecgroup", "vmallocinfo"),
    *("iomem", "ioports", "interrupts", "mtrr", "slabinfo"),
)
READ_ONLY = ("sys", "irq", "bus", "fs", "acpi", "scsi", "driver", "tty")

BEHIND_TMPFS = (TMP, "/run", "/dev", "/proc", "/sys")
"""Where mounts of ours come first, so that no mount point is to be made in the root."""


@dataclass
class Stage:
    """All that the inside needs of the outside, as descriptors opened by `open_sources`."""

    lowers: Sequence[str]
    scratch: str | None
    binds: Sequence[Bind]
    hostname: str
    command: Command
    memory: int | None = None
    devices: Sequence[str] = DEVICES
    lower_fds: list[int] = field(default_factory=list)
    scratch_fd: int = -1
    bind_fds: list[int] = field(default_factory=list)
    device_fds: list[int] = field(default_factory=list)

    def open_sources(self) -> None:
        """Open every path in the new mount namespace, with our own user's rights."""
        self.lower_fds = [_open(path, directory=True) for path in self.lowers]
        if self.scratch is not None:
            self.scratch_fd = _open(self.scratch, directory=True)
        self.bind_fds = [_open(str(bind.source)) for bind in self.binds]
        self.device_fds = [_open(f"/dev/{name}") for name in self.devices]

    def in_memory(self, most: int) -> int:
        """The size of a file system in memory: all of them count as memory of the run."""
        return most if self.memory is None else min(most, self.memory // 4)


def _open(path: str, *, directory: bool = False) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC | (os.O_DIRECTORY if directory else 0))


def _at(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def supervise(stage: Stage, control: socket.socket) -> int:
    """Start pid 1 of the namespace, tell the launcher its pidfd, and wait for its end."""
    init = fork_init()
    if init == 0:
        _init(stage, control)
    pidfd = os.pidfd_open(init)
    socket.send_fds(control, [b"init"], [pidfd])
    os.waitpid(init, 0)
    return 0


def _init(stage: Stage, control: socket.socket) -> NoReturn:
    try:
        plain_signals()
        socket.sethostname(stage.hostname)
        kernel.loopback_up()
        if stage.command.proxy:
            _offer_proxy(control)
        _mounts(stage)
        kernel.close_all_but(control.fileno())
        control.send(b"ready")
        child = os.fork()
        if child == 0:
            _command(stage.command, control)
        control.send(b"status %d" % reap_until(child))
    except BaseException as error:
        report(control, error)
    finally:
        # The end of pid 1 is the end of all processes in the namespace.
        os._exit(0)


def reap_until(child: int) -> int:
    """Reap as pid 1 must, until `child` ends; its exit code or minus its signal."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def plain_signals() -> None:
    """Undo what Python and our callers did to signals."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _offer_proxy(control: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", PROXY_PORT))
        listener.listen(64)
        socket.send_fds(control, [b"listening"], [listener.fileno()])


def _mounts(stage: Stage) -> None:
    os.umask(0)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", TMP, "tmpfs", data="mode=755,size=16m")
    Path(ROOT).mkdir()
    temporary = _overlay(stage)
    kernel.enter_root(ROOT)
    _proc()
    _dev(stage)
    kernel.mount("tmpfs", "/sys", "tmpfs", kernel.MS_RDONLY, "mode=555,size=4k")
    plain = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", "/run", "tmpfs", plain, f"mode=755,size={stage.in_memory(256 << 20)}")
    Path("/run/lock").mkdir(mode=0o1777)
    if temporary is None:
        kernel.mount("tmpfs", TMP, "tmpfs", plain, f"mode=1777,size={stage.in_memory(1 << 30)}")
    else:
        kernel.mount(_at(temporary), TMP, flags=kernel.MS_BIND)
        kernel.restrict_mount(TMP, plain)
    for bind, fd in zip(stage.binds, stage.bind_fds, strict=True):
        _bind(bind, fd)
    _proc_restricted()
    kernel.leave_old_root()
    os.umask(0o022)


def _overlay(stage: Stage) -> int | None:
    """Mount the root; the descriptor of the directory for /tmp, if it is on disk."""
    if stage.scratch is None:
        Path(TMP, "points").mkdir(mode=0o755)
        points = _open(f"{TMP}/points", directory=True)
        temporary = None
    else:
        points = _directory(stage.scratch_fd, "points", 0o755)
        temporary = _directory(stage.scratch_fd, "tmp", 0o1777)
        upper = _directory(stage.scratch_fd, "upper", 0o755)
        work = _directory(stage.scratch_fd, "work", 0o755)
    for bind, fd in zip(stage.binds, stage.bind_fds, strict=True):
        if not bind.target.startswith(tuple(f"{prefix}/" for prefix in BEHIND_TMPFS)):
            _mount_point(points, bind.target, fd)
    # Mount points are a layer of their own, so that upper has only what the command wrote.
    lowers = ":".join(_at(fd) for fd in (points, *stage.lower_fds))
    options = f"userxattr,lowerdir={lowers}"
    if stage.scratch is None:
        kernel.mount("root", ROOT, "overlay", kernel.MS_RDONLY, options)
    else:
        options += f",upperdir={_at(upper)},workdir={_at(work)}"
        kernel.mount("root", ROOT, "overlay", 0, options)
    return temporary


def _directory(parent: int, name: str, mode: int) -> int:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        pass
    return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _mount_point(root: int, target: str, source: int) -> None:
    *parents, name = target.strip("/").split("/")
    at = os.dup(root)
    for part in parents:
        below = _directory(at, part, 0o755)
        os.close(at)
        at = below
    if Path(_at(source)).is_dir():
        os.close(_directory(at, name, 0o755))
    else:
        os.close(os.open(name, os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=at))
    os.close(at)


def _bind(bind: Bind, fd: int) -> None:
    if bind.target.startswith(tuple(f"{prefix}/" for prefix in BEHIND_TMPFS)):
        root = _open("/", directory=True)
        _mount_point(root, bind.target, fd)
        os.close(root)
    kernel.mount(_at(fd), bind.target, flags=kernel.MS_BIND | kernel.MS_REC)
    read_only = 0 if bind.writable else kernel.MS_RDONLY
    kernel.restrict_mount(bind.target, read_only | kernel.MS_NOSUID | kernel.MS_NODEV)


def _proc() -> None:
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", "/proc", "proc", flags)


def _proc_restricted() -> None:
    # Holds for this user namespace and those below; the filter forbids them too.
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    for name in MASKED:
        if Path("/proc", name).exists():
            kernel.mount("/dev/null", f"/proc/{name}", flags=kernel.MS_BIND)
    for name in READ_ONLY:
        path = f"/proc/{name}"
        if Path(path).is_dir():
            kernel.mount(path, path, flags=kernel.MS_BIND | kernel.MS_REC)
            kernel.restrict_mount(path, kernel.MS_RDONLY)


def _dev(stage: Stage) -> None:
    kernel.mount("tmpfs", "/dev", "tmpfs", kernel.MS_NOSUID, "mode=755,size=1m")
    for name, fd in zip(stage.devices, stage.device_fds, strict=True):
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        kernel.mount(_at(fd), f"/dev/{name}", flags=kernel.MS_BIND)
    Path("/dev/pts").mkdir(mode=0o755)
    plain = kernel.MS_NOSUID | kernel.MS_NOEXEC
    kernel.mount("devpts", "/dev/pts", "devpts", plain, "newinstance,ptmxmode=0666,mode=620,gid=5")
    Path(SHM).mkdir(mode=0o1777)
    kernel.mount(
        "tmpfs",
        SHM,
        "tmpfs",
        plain | kernel.MS_NODEV,
        f"mode=1777,size={stage.in_memory(1 << 30)}",
    )
    for name, target in DEVICE_LINKS.items():
        Path("/dev", name).symlink_to(target)


def _command(command: Command, control: socket.socket) -> NoReturn:
    try:
        os.setsid()
        kernel.new_session_keyring()
        seccomp_filter.load()
        if command.user == "build":
            _become_build()
        else:
            kernel.bound_capabilities(frozenset(kernel.CAPABILITIES.values()))
        _execute(command)
    except BaseException as error:
        report(control, error)
    finally:
        os._exit(127)


def _become_build() -> None:
    kernel.bound_capabilities(frozenset())
    os.setgroups([])
    os.setresgid(BUILD_ID, BUILD_ID, BUILD_ID)
    os.setresuid(BUILD_ID, BUILD_ID, BUILD_ID)
    kernel.no_new_privileges()
    kernel.drop_capabilities()


def _execute(command: Command) -> None:
    """Become the command. What cannot be started is its fault, and ends as in a shell."""
    environment = command.environment()
    name = command.argv[0]
    paths = [name] if "/" in name else [f"{d}/{name}" for d in environment["PATH"].split(":")]
    try:
        os.chdir(command.cwd)
        for path in paths:
            if Path(path).exists():
                os.execve(path, command.argv, environment)  # noqa: S606
        raise FileNotFoundError(f"{name}: command not found")
    except OSError as error:
        os.write(2, f"cannot start {name}: {error}\n".encode())
