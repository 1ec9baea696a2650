"""The table of probes.c as the tests see it, and what a machine may be without."""

from __future__ import annotations

import ctypes
import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.escape.machine import SOURCE, has_ipv6, nameserver, system_call

ISOLATIONS: Mapping[str, frozenset[str]] = {"chroot": frozenset()}
"""Each isolation, with the probes that are left out there."""

OWN_KERNEL = frozenset(
    (
        *("open_by_handle_at", "name_to_handle_at", "TIOCLINUX", "TIOCSETD", "cgroup namespace"),
        *("ipc namespace", "user namespace", "uts namespace", "unshare users", "clone users"),
        *("clone3 users", "uid of the worker", "gid of the worker", "/proc/kallsyms"),
        *("/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/slabinfo"),
        *("/proc/vmallocinfo", "/proc/kpagecount", "/proc/iomem", "/proc/sysrq-trigger"),
        *("core_pattern", "/proc/sys/kernel/hostname", "drop_caches", "ip_forward"),
        *("smp_affinity", "key of the session", "key by name", "add_key", "keyctl join"),
        *("perf_event_open", "io_uring", "kcmp", "quotactl", "personality", "x32 calls"),
        *("i386 calls", "raw socket", "packet socket", "other protocols"),
        *("other netlink protocols", "no filter"),
    )
)
"""What is the guest's own in a throw-away machine, and says nothing of the machine that it is on:
its kernel's calls and files, its keys, and ids and namespaces that only have the same numbers."""

ROW = re.compile(r'^\t\{"(.+?)", "(.+?)", \w+, (?:NULL|".*?"), ([A-Z_| 0]+)\},$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is known of a probe: see the flags in probes.c."""

    name: str
    answers: frozenset[str]
    flags: frozenset[str]

    def belongs(self, label: str) -> bool:
        """Whether it means something in this command: PHASE/USER/COMMAND."""
        phase, user, command = label.split("/")
        if "LAYER" in self.flags:
            return (phase, user) == ("build", "build") and command.startswith(("dpkg", "debian"))
        return user == "build" or "NOT_ROOTS" not in self.flags


def _table() -> dict[str, Probe]:
    found = {}
    for name, answers, flags in ROW.findall(SOURCE.read_text()):
        found[name] = Probe(
            name=name,
            answers=frozenset(f"denied: {answer}" for answer in answers.split(", ")),
            flags=frozenset(flags.split(" | ")) - {"0"},
        )
    return found


PROBES = _table()


def _missing(path: str) -> Callable[[], bool]:
    return lambda: not Path(path).exists()


def _no_call(call: str | int, *args: object) -> Callable[[], bool]:
    return lambda: system_call(call, *args) == -1 and ctypes.get_errno() == errno.ENOSYS


def _no_resource_capability() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return not effective & 1 << 24


WITHOUT: Mapping[str, Callable[[], bool]] = {
    **{
        path: _missing(path)
        for path in (
            *("/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/mem"),
            *("/dev/loop-control", "/proc/sysrq-trigger"),
        )
    },
    "modules": _no_call("init_module", b"", 0, b""),
    "kexec": _no_call("kexec_load", 0, 0, None, -1),
    "ports": _no_call("ioperm", 0x80, 1, 0),
    "quotactl": _no_call("quotactl", 0x800001 << 8, None, 0, None),
    "acct": _no_call("acct", b"/nonexistent/x"),
    "calls of newer kernels": _no_call(451, 0, 0, 0, 0),
    "x32 calls": _no_call(0x40000000 | 39),
    "i386 calls": _missing("/proc/sys/abi/vsyscall32"),
    "raise a hard limit": _no_resource_capability,
    "oom_score_adj": _no_resource_capability,
    "loopback of the machine, IPv6": lambda: not has_ipv6(),
    "name service": lambda: not nameserver(),
}
"""What some machines do not have, so that its control cannot succeed there, and how that is seen
without the probe. All else must succeed everywhere."""
