"""What this machine lacks for sandboxes, each with what to do about it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import CLEAN
from invirtibuilder.sandbox import helper, kernel, seccomp_filter
from invirtibuilder.sandbox.ids import Ids, enter, finish, make_tree, remove_tree
from invirtibuilder.sandbox.slots import slots

PROGRAMS = {
    "newuidmap": "uidmap",
    "newgidmap": "uidmap",
    "mmdebstrap": "mmdebstrap",
    "find": "findutils",
    "tar": "tar",
}
SECONDS = 20.0


def self_check(directory: Path, numbers: Sequence[int] = ()) -> list[str]:
    """The problems of this machine with sandboxes whose trees are in `directory`, which is ours.

    `numbers` are the slots in use, all if none is given. Each is tried out, not looked up. Empty
    when everything works.
    """
    found = [
        f"{program} is missing: apt-get install {package}"
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=CLEAN["PATH"]) is None
    ]
    if found:
        return found
    try:
        blocks = [slot.ids for slot in slots(directory, numbers)]
    except MachineFault as fault:
        return [f"{fault}: {fault.hint}"]
    for ids in blocks:
        if problem := _user_namespace(ids):
            return [problem]
    ids = blocks[0]
    tries = (_namespaces, _proc, _filter)
    return [p for p in (*(t(ids) for t in tries), _overlay(ids, directory)) if p]


def _problem(what: str, advice: str, trial: Callable[[], int]) -> str:
    try:
        code = trial()
    except (MachineFault, OSError) as error:
        return f"{what}: {error}: {advice}"
    return f"{what}: exit code {code}: {advice}" if code else ""


def _trial(ids: Ids, flags: int, body: Callable[[], None]) -> Callable[[], int]:
    def run(_: socket.socket) -> int:
        body()
        return 0

    return lambda: finish(enter(ids, flags, run), seconds=SECONDS)


def _user_namespace(ids: Ids) -> str:
    return _problem(
        "no user namespace with subordinate ids",
        "check user.max_user_namespaces, kernel.unprivileged_userns_clone and "
        "kernel.apparmor_restrict_unprivileged_userns (sysctl), and that neither a container "
        "nor NoNewPrivileges stops newuidmap",
        _trial(ids, 0, lambda: None),
    )


def _namespaces(ids: Ids) -> str:
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
    flags |= kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
    return _problem(
        "no network namespace with a loopback interface",
        "the kernel needs NET_NS, IPC_NS, UTS_NS and cgroup namespaces; in a container, use a "
        "virtual machine instead",
        _trial(ids, flags, kernel.loopback_up),
    )


def _proc(ids: Ids) -> str:
    def fresh() -> int:
        entered = helper.start(
            ids, ["/usr/bin/true"], directories={}, files={}, output=2, errors=2, env={}
        )
        return finish(entered, seconds=SECONDS)

    return _problem(
        "/proc cannot be mounted in a process namespace",
        "something covers parts of /proc: a container, or ProtectKernelTunables, ProcSubset and "
        "the like in a unit",
        fresh,
    )


def _filter(ids: Ids) -> str:
    return _problem(
        "the system call filter cannot be loaded",
        "the kernel needs SECCOMP_FILTER",
        _trial(ids, 0, seccomp_filter.load),
    )


def _overlay(ids: Ids, directory: Path) -> str:
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
        f"no overlay file system on {directory}",
        "it must be on a disk file system with user extended attributes, as ext4, xfs and btrfs "
        "(not NFS, another overlay, or tmpfs before Linux 6.6), and the kernel be 5.11 or later",
        trial,
    )
