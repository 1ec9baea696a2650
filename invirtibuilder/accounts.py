"""Accounts of this machine: which one a path is of, and going on as that one."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from pathlib import Path

from invirtibuilder.errors import Denied


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
        _start_anew(owner)
    elif who_writes and not os.access(path, os.W_OK, effective_ids=True):
        raise NotYours(path, owner)


def _start_anew(uid: int) -> None:
    """This program from its beginning as another account; does not return."""
    try:
        account = pwd.getpwuid(uid)
    except KeyError as error:
        raise Denied(f"what is here belongs to {uid}, which is no account") from error
    sys.stdout.flush()
    # An exec afterwards, since a process that has only changed its uid is not its new account's
    # to look into, and newuidmap has to.
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(uid)
    own = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    argv = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, argv, {**os.environ, **own})  # noqa: S606
