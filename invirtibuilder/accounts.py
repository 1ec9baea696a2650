"""Accounts of this machine: which one a path is of, and going on as that one."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from contextlib import suppress
from pathlib import Path

from invirtibuilder.errors import ConfigFault, Denied, MachineFault
from invirtibuilder.run import environment

KEPT = (
    *("INVIRTIBUILDER_CONFIG", "TERM", "COLUMNS", "LINES"),
    *("LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "JOURNAL_STREAM"),
)
"""What root's environment says to the same program as another account; nothing else of it goes."""


class NotYours(Denied):
    """A path that another account writes."""

    code = "not-yours"

    def __init__(self, path: Path, owner: int) -> None:
        others = ", or as root" if owner else ""
        super().__init__(
            f"{path} is {named(owner)}'s, and you may not write there",
            hint=f"run this as {named(owner)}{others}",
        )


def named(uid: int) -> str:
    """The account's name, or the number of one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def as_account(name: str) -> list[str]:
    """The words before a command that is to run as this account, with its groups."""
    entry = pwd.getpwnam(name)
    ids = (f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}")
    return ["setpriv", *ids, "--init-groups"]


def group_id(name: str) -> int:
    """The number of a group. Raises ConfigFault."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ConfigFault(f"this machine has no group {name}") from error


def members(group: str) -> set[str]:
    """The accounts that are in a group, by their own group or by name. Raises KeyError."""
    found = grp.getgrnam(group)
    return {*found.gr_mem, *(p.pw_name for p in pwd.getpwall() if p.pw_gid == found.gr_gid)}


def become_owner(path: Path, *, who_writes: bool = True) -> None:
    """Go on as the account that `path` belongs to, so that nothing in there becomes another's.

    Root becomes that account, by starting this program anew; what is not there yet is nobody's.
    Others go on as they are when they may write there, or with `who_writes` false.
    Raises Denied.
    """
    try:
        owner = path.stat().st_uid
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise Denied(f"you may not look at {path}", hint="run this as root") from error
    if owner == os.geteuid():
        return
    if os.geteuid() == 0:
        _start_anew(path, owner)
    elif who_writes and not os.access(path, os.W_OK, effective_ids=True):
        raise NotYours(path, owner)


def denied(path: Path) -> Denied:
    """The fault of one who may not read or write this path: it says who may."""
    message = f"{path}: permission denied to {named(os.geteuid())}"
    for place in (path, *path.parents):
        with suppress(OSError):
            status = place.stat()
            break
    else:
        return Denied(message, hint="root may")
    who = [named(status.st_uid)] if status.st_uid else []
    if status.st_gid and status.st_mode & 0o050:
        with suppress(KeyError):
            who.append(f"members of the group {grp.getgrgid(status.st_gid).gr_name}")
    return Denied(message, hint=" and ".join([*who, "root"]) + " may")


def _start_anew(path: Path, uid: int) -> None:
    """This program from its beginning as another account; does not return."""
    try:
        account = pwd.getpwuid(uid)
    except KeyError as error:
        raise Denied(f"what is here belongs to {uid}, which is no account") from error
    sys.stdout.flush()
    print(f"as {account.pw_name}, whose {path} is", file=sys.stderr, flush=True)
    # An exec afterwards, since a process that has only changed its uid is not its new account's
    # to look into, and newuidmap has to.
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(uid)
    own = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    argv = [sys.executable, *sys.orig_argv[1:]]
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    os.execve(sys.executable, argv, environment({**kept, **own}))  # noqa: S606


def let(path: Path, gid: int, mode: int, *, fd: int | None = None) -> None:
    """Give a directory of ours to a group, with this mode. Raises MachineFault.

    With `fd` it is that open one: another account may put a link in its place meanwhile.
    """
    place = path if fd is None else fd
    status = os.stat(place)  # noqa: PTH116
    if status.st_uid != os.geteuid():
        return  # made by a push
    try:
        if status.st_gid != gid:
            os.chown(place, -1, gid)
        os.chmod(place, mode)  # noqa: PTH101
    except PermissionError as error:
        raise MachineFault(
            f"this account is not in the group {gid}, which {path} is for",
            hint="add it, and start the daemon anew",
            code="not-in-group",
        ) from error
