"""Run a command as a unit would be run, where there is no systemd: python3 hardened.py JSON.

As root, and on its own, with the standard library and python3-seccomp: it does with the kernel's
calls what systemd.exec(5) says of the settings that our units have.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import json
import os
import pwd
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import seccomp

DONE = """
User UMask CapabilityBoundingSet AmbientCapabilities NoNewPrivileges ProtectSystem ReadWritePaths
ProtectHome InaccessiblePaths DevicePolicy DeviceAllow PrivateTmp PrivateIPC PrivateNetwork
RestrictAddressFamilies RestrictNamespaces RestrictSUIDSGID MemoryDenyWriteExecute
LockPersonality RestrictRealtime ProtectProc ProcSubset ProtectControlGroups ProtectKernelTunables
SystemCallErrorNumber SystemCallFilter StandardOutput StandardError LogsDirectory
"""
"""What is done here."""
LEFT = """
SystemCallArchitectures PrivateDevices ProtectClock ProtectHostname ProtectKernelLogs
ProtectKernelModules KeyringMode RemoveIPC IPAddressDeny
ExecStart Environment Type NotifyAccess ExecReload Restart RestartSec RestartPreventExitStatus
WatchdogSec TimeoutStartSec TimeoutStopSec OOMScoreAdjust OOMPolicy KillMode Delegate
DelegateSubgroup MemoryMax TasksMax LimitNOFILE CPUWeight IOWeight Nice IOSchedulingClass
AppArmorProfile SELinuxContext
"""
"""What is not: denied by the above as well, or the manager's own to do."""
UNDERSTOOD = frozenset((DONE + LEFT).split())
NEWNS, NEWIPC, NEWNET = 0x20000, 0x8000000, 0x40000000
_NAMESPACES = 0x7E020000 | 0x80
_REC, _BIND, _PRIVATE = 0x4000, 0x1000, 0x40000
_AT_RECURSIVE, _RDONLY = 0x8000, 1
_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID"),
    *("SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN"),
    *("NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE"),
    *("SYS_PACCT", "SYS_ADMIN"),
)
"""By number; none of our units keeps a later one."""
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    if getattr(_libc, name)(*words) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{args}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    texts = [text.encode() or None for text in (source, target, kind)]
    _call("mount", *texts, flags, data.encode() or None)


def _read_only(path: str, *, yes: bool) -> None:
    """Set or clear it on a mount and all below (mount_setattr(2))."""
    attributes = (ctypes.c_uint64 * 4)(_RDONLY if yes else 0, 0 if yes else _RDONLY, 0, 0)
    _call("syscall", 442, -100, path.encode(), _AT_RECURSIVE, ctypes.byref(attributes), 32)


def _paths(told: dict[str, Any], name: str) -> list[str]:
    """Paths that there are; those with a - before them may be missing."""
    found = [(path.lstrip("-"), path[0] == "-") for path in told.get(name, [])]
    return [path for path, may_lack in found if not may_lack or Path(path).exists()]


def _close_devices(told: dict[str, Any]) -> None:
    """What of /dev may not be opened is covered by a file that nobody may open."""
    names = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")
    left = {*(f"/dev/{name}" for name in names), *told.get("DeviceAllow", ())}
    closed = Path("/run/no-device")
    closed.touch(0)
    for path in Path("/dev").rglob("*"):
        kind = path.lstat().st_mode
        device = stat.S_ISCHR(kind) or stat.S_ISBLK(kind)
        if device and str(path) not in left and path.parent.name != "pts":
            _mount(str(closed), str(path), flags=_BIND)


def _enter(told: dict[str, Any]) -> None:
    """Namespaces and mounts."""
    spaces = NEWNS | (NEWIPC if "PrivateIPC" in told else 0)
    _call("unshare", spaces | (NEWNET if "PrivateNetwork" in told else 0))
    _mount("", "/", flags=_REC | _PRIVATE)
    if told.get("DevicePolicy") == "closed":
        _close_devices(told)
    writable = _paths(told, "ReadWritePaths")
    for path in writable:
        _mount(path, path, flags=_BIND | _REC)
    level = told.get("ProtectSystem", "")
    for path in {"strict": ["/"], "full": ["/usr", "/etc"]}.get(level, []):
        if path != "/":
            _mount(path, path, flags=_BIND | _REC)
        _read_only(path, yes=True)
    for path in (*writable, "/proc", "/dev"):
        _read_only(path, yes=False)
    if "ProtectProc" in told:
        subset = ",subset=pid" if "ProcSubset" in told else ""
        _mount("proc", "/proc", "proc", data=f"hidepid=2{subset}")
    elif "ProtectKernelTunables" in told:
        _mount("/proc/sys", "/proc/sys", flags=_BIND)
        _read_only("/proc/sys", yes=True)
    if "ProtectControlGroups" not in told:
        _read_only("/sys", yes=False)
    hidden = _paths(told, "InaccessiblePaths")
    for path in (*hidden, *(("/home", "/root") if "ProtectHome" in told else ())):
        _mount("tmpfs", path, "tmpfs", data="mode=0,size=4k")
    for path in ("/tmp", "/var/tmp") if "PrivateTmp" in told else ():
        _mount("tmpfs", path, "tmpfs", data="mode=1777")
    _mount("tmpfs", "/dev/shm", "tmpfs", data="mode=1777")


def _become(told: dict[str, Any]) -> None:
    """The account, without capabilities but those that programs of root's may have."""
    kept = {name.removeprefix("CAP_") for name in told["CapabilityBoundingSet"]}
    for number in range(64):
        name = _CAPABILITIES[number] if number < len(_CAPABILITIES) else ""
        # Of the kernel's own, PR_CAPBSET_READ says something.
        if name not in kept and _libc.prctl(23, number, 0, 0, 0) >= 0:
            _call("prctl", 24, number, 0, 0, 0)
    if "User" in told:
        user = pwd.getpwnam(told["User"])
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(*[user.pw_gid] * 3)
        os.setresuid(*[user.pw_uid] * 3)
    os.umask(int(told["UMask"], 8))
    if "NoNewPrivileges" in told:
        _call("prctl", 38, 1, 0, 0, 0)


def _filter(told: dict[str, Any]) -> None:
    """The system call filter, with what other settings make of it."""
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    masked, eq = seccomp.MASKED_EQ, seccomp.EQ
    limited: dict[str, list[list[Any]]] = {}
    families = [int(getattr(socket, name)) for name in told["RestrictAddressFamilies"]]
    limited["socket"] = [[seccomp.Arg(0, eq, family)] for family in families]
    limited["clone"] = [[seccomp.Arg(0, masked, _NAMESPACES, 0)]]
    limited["unshare"] = [[seccomp.Arg(0, masked, _NAMESPACES, 0)]]
    limited["setns"] = limited["clone3"] = []
    limited["mmap"] = [[seccomp.Arg(2, masked, 6, value)] for value in (0, 2, 4)]
    limited["mprotect"] = limited["pkey_mprotect"] = [[seccomp.Arg(2, masked, 4, 0)]]
    limited["personality"] = [[seccomp.Arg(0, eq, value)] for value in (0, 0xFFFFFFFF)]
    limited["sched_setscheduler"] = [[seccomp.Arg(1, eq, value)] for value in (0, 3, 5)]
    for name, position in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1)) + (
        ("mkdirat", 2),
    ):
        limited[name] = [[seccomp.Arg(position, masked, 0o6000, 0)]]
    arch = seccomp.Arch()
    for name in told["calls"]:
        if seccomp.resolve_syscall(arch, name) >= 0:
            for arguments in limited.get(name, [[]]):
                rules.add_rule(seccomp.ALLOW, name, *arguments)
    # The C library falls back to clone(2), whose flags a filter can see.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.load()


def _listen(address: str) -> None:
    """The socket of the socket's unit, as the third descriptor: a path, or a port of loopback."""
    if address.isdigit():
        server = socket.create_server(("127.0.0.1", int(address)), backlog=128)
    else:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        Path(address).unlink(missing_ok=True)
        server.bind(address)
        os.chown(address, 0, grp.getgrnam("invirtibuilder").gr_gid)
        Path(address).chmod(0o660)
        server.listen(16)
    os.dup2(server.detach(), 3)
    os.set_inheritable(3, True)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}


def _output(told: dict[str, Any]) -> None:
    """A file that both outputs go to, made by the manager as root."""
    if path := told.get("StandardOutput", "").removeprefix("truncate:"):
        assert told["StandardError"] == "inherit"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)


def _logs(told: dict[str, Any]) -> None:
    """A directory for logs, made as the account's."""
    if name := told.get("LogsDirectory"):
        user = pwd.getpwnam(told["User"])
        path = Path("/var/log", name)
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, user.pw_uid, user.pw_gid)


def main() -> None:
    """Become what the unit says."""
    told = json.loads(sys.argv[1])
    home = pwd.getpwnam(told["User"]).pw_dir if "User" in told else "/root"
    os.environ |= {"HOME": home, "LC_ALL": "C.UTF-8"}
    _output(told)
    _logs(told)
    if told["listen"]:
        _listen(told["listen"])
    _enter(told)
    _become(told)
    if told["calls"]:
        _filter(told)
    os.execv(told["argv"][0], told["argv"])


if __name__ == "__main__":
    main()
