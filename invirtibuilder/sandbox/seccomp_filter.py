"""Which system calls fail inside: those that build code has no business with."""

from __future__ import annotations

import errno
import resource
import socket

import seccomp

from invirtibuilder.confine import FORBIDDEN, NEWER
from invirtibuilder.sandbox.kernel import CLONE_NEWUSER

TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423
"""Input for another's terminal, a console's selection, and line disciplines (kernel modules)."""

FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
PROTOCOLS = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)
"""Of AF_INET and AF_INET6; asking for another loads its kernel module."""

NETLINKS = (0, 15)
"""NETLINK_ROUTE, by which the C library lists interfaces, and NETLINK_KOBJECT_UEVENT, which libudev
opens and where nothing is heard."""

PERSONALITIES = 0x8 | 0x20000
"""PER_LINUX32 and UNAME26 (personality(2)); the other bits take protections away."""


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
    for request in (TIOCSTI, TIOCLINUX, TIOCSETD):
        argument = seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request)
        rules.add_rule(seccomp.ERRNO(errno.EPERM), "ioctl", argument)
    _keep_core_limit(rules)
    _forbid_other_sockets(rules)
    _forbid_other_personalities(rules)
    for number in NEWER:
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), number)
    rules.load()


def _forbid_new_user_namespaces(rules: seccomp.SyscallFilter) -> None:
    argument = seccomp.Arg(0, seccomp.MASKED_EQ, CLONE_NEWUSER, CLONE_NEWUSER)
    rules.add_rule(seccomp.ERRNO(errno.EPERM), "clone", argument)


def _keep_core_limit(rules: seccomp.SyscallFilter) -> None:
    """Setting RLIMIT_CORE does nothing, and says that it did: programs switch core dumps off, which
    they are, and 0 would switch the machine's crash handler on (see `userns`)."""
    nothing, core = seccomp.ERRNO(0), resource.RLIMIT_CORE
    rules.add_rule(nothing, "setrlimit", seccomp.Arg(0, seccomp.MASKED_EQ, 0xFFFFFFFF, core))
    rules.add_rule(
        nothing,
        "prlimit64",
        seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, core),
        seccomp.Arg(2, seccomp.NE, 0),
    )


def _forbid_other_sockets(rules: seccomp.SyscallFilter) -> None:
    _only(rules, errno.EAFNOSUPPORT, 0, FAMILIES)
    for family in (socket.AF_INET, socket.AF_INET6):
        _only(rules, errno.EPROTONOSUPPORT, 2, PROTOCOLS, seccomp.Arg(0, seccomp.EQ, family))
    netlink = seccomp.Arg(0, seccomp.EQ, socket.AF_NETLINK)
    _only(rules, errno.EPROTONOSUPPORT, 2, NETLINKS, netlink)


def _only(
    rules: seccomp.SyscallFilter,
    error: int,
    argument: int,
    values: tuple[int, ...],
    *where: seccomp.Arg,
) -> None:
    """Have socket(2) fail unless this argument, all 64 bits of it, is one of the values."""
    refused, last = seccomp.ERRNO(error), max(values)
    for value in sorted(set(range(last)) - set(values)):
        rules.add_rule(refused, "socket", *where, seccomp.Arg(argument, seccomp.EQ, value))
    rules.add_rule(refused, "socket", *where, seccomp.Arg(argument, seccomp.GT, last))


def _forbid_other_personalities(rules: seccomp.SyscallFilter) -> None:
    """Only PERSONALITIES pass, and all bits together, which is the question what it is.

    A rule knows no "or": the highest bit that no personality has tells the two apart. With it,
    each other bit must be there; without it, only the allowed ones.
    """
    refused, mark = seccomp.ERRNO(errno.EPERM), 1 << 31
    for bit in (1 << number for number in range(31)):
        wrong = [mark] if bit & PERSONALITIES else [mark, bit]
        for value in wrong:
            argument = seccomp.Arg(0, seccomp.MASKED_EQ, mark | bit, value)
            rules.add_rule(refused, "personality", argument)
