"""Which system calls fail inside: those that build code has no business with."""

from __future__ import annotations

import errno
import socket

import seccomp

from invirtibuilder.sandbox.kernel import CLONE_NEWUSER

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
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)


def load() -> None:
    """Install the filter for this process and its children.

    Needs CAP_SYS_ADMIN in the namespace, and so leaves set-user-ID programs usable.
    """
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    rules.set_attr(seccomp.Attr.CTL_NNP, 0)
    for name in FORBIDDEN:
        if seccomp.resolve_syscall(seccomp.Arch(), name) >= 0:
            rules.add_rule(seccomp.ERRNO(errno.EPERM), name)
    # The C library falls back to clone(2), whose flags a filter can see.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    _forbid_new_user_namespaces(rules)
    for request in (TIOCSTI, TIOCLINUX):
        argument = seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request)
        rules.add_rule(seccomp.ERRNO(errno.EPERM), "ioctl", argument)
    _forbid_other_families(rules)
    rules.load()


def _forbid_new_user_namespaces(rules: seccomp.SyscallFilter) -> None:
    argument = seccomp.Arg(0, seccomp.MASKED_EQ, CLONE_NEWUSER, CLONE_NEWUSER)
    rules.add_rule(seccomp.ERRNO(errno.EPERM), "clone", argument)


def _forbid_other_families(rules: seccomp.SyscallFilter) -> None:
    refused = seccomp.ERRNO(errno.EAFNOSUPPORT)
    last = max(FAMILIES)
    for family in set(range(last)) - set(FAMILIES):
        rules.add_rule(refused, "socket", seccomp.Arg(0, seccomp.EQ, family))
    rules.add_rule(refused, "socket", seccomp.Arg(0, seccomp.GT, last))
