"""What this machine lacks for sandboxes, each with what to do about it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import CLEAN
from invirtibuilder.sandbox import helper, kernel, seccomp_filter
from invirtibuilder.sandbox.ids import COUNT, Ids, enter, finish, make_tree, remove_tree
from invirtibuilder.sandbox.limits import Groups
from invirtibuilder.sandbox.slots import slots

PROGRAMS = {
    "newuidmap": "uidmap",
    "newgidmap": "uidmap",
    "mmdebstrap": "mmdebstrap",
    "find": "findutils",
    "tar": "tar",
}
SECONDS = 20.0


OK, WEAKER, MISSING = "ok", "weaker", "missing"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a trial found: `ok`, `weaker` (it works, and promises less) or `missing`."""

    what: str
    state: str
    detail: str = ""
    advice: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.detail, self.advice) if part)


def self_check(directory: Path, numbers: Sequence[int] = ()) -> list[str]:
    """The problems of this machine with sandboxes whose trees are in `directory`, which is ours.

    `numbers` are the slots in use, all if none is given. Empty when everything works.
    """
    return [str(f) for f in findings(directory, numbers) if f.state == MISSING]


def findings(directory: Path, numbers: Sequence[int] = ()) -> list[Finding]:
    """What works here and what does not, as `self_check`. Each is tried out, not looked up.

    What depends on something that is missing is not tried.
    """
    absent = [
        Finding(
            what=program,
            state=MISSING,
            detail=f"{program} is missing",
            advice=f"apt-get install {package}",
        )
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=CLEAN["PATH"]) is None
    ]
    if absent:
        return absent
    found = [Finding(what="programs", state=OK, detail=", ".join(PROGRAMS))]
    try:
        blocks = [slot.ids for slot in slots(directory, numbers)]
    except MachineFault as fault:
        lacking = Finding(
            what="subordinate ids", state=MISSING, detail=str(fault), advice=fault.hint
        )
        return [*found, lacking]
    detail = f"{len(blocks)} of {COUNT}: as many orders at once"
    found.append(Finding(what="subordinate ids", state=OK, detail=detail))
    for ids in blocks:
        trial = _user_namespace(ids)
        if trial.state != OK:
            return [*found, trial]
    ids = blocks[0]
    found += [trial, _namespaces(ids), _proc(ids), _filter(ids), _overlay(ids, directory)]
    return [*found, *_groups(ids)]


def _problem(what: str, lack: str, advice: str, trial: Callable[[], int]) -> Finding:
    try:
        code = trial()
        why = f"{lack}: exit code {code}" if code else ""
    except (MachineFault, OSError) as error:
        why = f"{lack}: {error}"
    if why:
        return Finding(what=what, state=MISSING, detail=why, advice=advice)
    return Finding(what=what, state=OK)


def _trial(ids: Ids, flags: int, body: Callable[[], None]) -> Callable[[], int]:
    def run(_: socket.socket) -> int:
        body()
        return 0

    return lambda: finish(enter(ids, flags, run), seconds=SECONDS)


def _user_namespace(ids: Ids) -> Finding:
    return _problem(
        "user namespace",
        "no user namespace with subordinate ids",
        "check user.max_user_namespaces, kernel.unprivileged_userns_clone and "
        "kernel.apparmor_restrict_unprivileged_userns (sysctl), and that neither a container "
        "nor NoNewPrivileges stops newuidmap",
        _trial(ids, 0, lambda: None),
    )


def _namespaces(ids: Ids) -> Finding:
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
    flags |= kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
    return _problem(
        "network and other namespaces",
        "no network namespace with a loopback interface",
        "the kernel needs NET_NS, IPC_NS, UTS_NS and cgroup namespaces; in a container, use a "
        "virtual machine instead",
        _trial(ids, flags, kernel.loopback_up),
    )


def _proc(ids: Ids) -> Finding:
    def fresh() -> int:
        entered = helper.start(
            ids, ["/usr/bin/true"], directories={}, files={}, output=2, errors=2, env={}
        )
        return finish(entered, seconds=SECONDS)

    return _problem(
        "fresh /proc",
        "/proc cannot be mounted in a process namespace",
        "something covers parts of /proc: a container, or ProtectKernelTunables, ProcSubset and "
        "the like in a unit",
        fresh,
    )


def _filter(ids: Ids) -> Finding:
    return _problem(
        "system call filter",
        "the system call filter cannot be loaded",
        "the kernel needs SECCOMP_FILTER",
        _trial(ids, 0, seccomp_filter.load),
    )


def _overlay(ids: Ids, directory: Path) -> Finding:
    """A merged directory is removed and made again: that needs user xattrs on the upper."""
    trees: list[int] = []
    place = directory / f".check-{secrets.token_hex(4)}"

    def open_place() -> None:
        trees.append(os.open(place, os.O_PATH | os.O_DIRECTORY))

    def body(_: socket.socket) -> int:
        os.fchdir(trees[0])
        for name in ("lower", "lower/sub", "upper", "work", "root"):
            Path(name).mkdir()
        Path("lower/sub/file").write_text("below")
        options = "userxattr,lowerdir=lower,upperdir=upper,workdir=work"
        kernel.mount("overlay", "root", "overlay", 0, options)
        Path("root/sub/file").unlink()
        Path("root/sub").rmdir()
        Path("root/sub").mkdir()
        return 1 if list(Path("root/sub").iterdir()) else 0

    def trial() -> int:
        make_tree(ids, place)
        try:
            return finish(
                enter(ids, kernel.CLONE_NEWNS, body, as_caller=open_place), seconds=SECONDS
            )
        finally:
            remove_tree(ids, place)

    return _problem(
        "overlay file system",
        f"no overlay file system on {directory}",
        "it must be on a disk file system with user extended attributes, as ext4, xfs and btrfs "
        "(not NFS, another overlay, or tmpfs before Linux 6.6), and the kernel be 5.11 or later",
        trial,
    )


def _groups(ids: Ids) -> list[Finding]:
    """What of a build can be bound as a whole, by a process that enters a group."""
    groups = Groups.find()

    def trial() -> int:
        group = groups.make(memory=1 << 30, processes=100, cpu=True)
        try:
            entered = enter(ids, 0, lambda _: 0, before=lambda _: group.join())
            return finish(entered, seconds=SECONDS)
        finally:
            group.remove()

    entered = _problem(
        "control groups",
        "no process can enter a control group",
        "hand a group over with Delegate=yes in the unit, or chown it with its cgroup.procs",
        trial,
    )
    if entered.state != OK:
        return [entered]
    bound = [
        Finding(what=f"limit on {resource}", state=OK, detail=f"control groups in {place}")
        for resource, place in sorted(groups.places.items())
    ]
    advice = (
        "Delegate=yes in the worker's unit; without systemd, a group that belongs to its account"
    )
    return bound + [
        Finding(what=f"limit on {resource}", state=WEAKER, detail=text, advice=advice)
        for resource, text in groups.lacking().items()
    ]


def room(directory: Path, *, reserve: int, disk: int) -> Finding:
    """Whether `directory` has room for what builds may write (`disk`) over what must stay free."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    state = OK if free >= reserve + disk else WEAKER if free >= reserve else MISSING
    advice = "make room, or lower `disk` of the limits: when it is full, jobs wait"
    return Finding(
        what="room on disk",
        state=state,
        detail=f"{free >> 30} GiB free in {directory}; {reserve >> 30} GiB must stay free, and"
        f" builds may write {disk >> 30} GiB",
        advice="" if state == OK else advice,
    )
