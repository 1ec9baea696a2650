"""Subordinate ids: who the sandbox's users are on this machine, and the trees they own."""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import ProcessFault, run
from invirtibuilder.sandbox import kernel

COUNT = 65536
"""How many ids a sandbox has: what Debian uses, with nobody (65534)."""

DEATH_SECONDS = 60.0
"""How long killed processes may take to be gone before the machine is at fault."""

OWN_ID = COUNT
"""The id by which a helper namespace knows our own user; sandboxes have none."""


@dataclass(frozen=True, kw_only=True)
class Ids:
    """A block of subordinate ids; the first of them is root inside."""

    first_uid: int
    first_gid: int
    count: int = COUNT

    @classmethod
    def of_user(cls, number: int = 1) -> Ids:
        """The current user's block of this number in /etc/subuid and /etc/subgid (also root's).

        Raises MachineFault with the command that adds what is missing.
        """
        blocks = cls.all_of_user()
        if len(blocks) < number:
            name = _user()
            raise MachineFault(
                f"{name} has {len(blocks)} blocks of {COUNT} subordinate ids in /etc/subuid and"
                f" /etc/subgid, and block {number} is asked for",
                hint=_adding(name, number - len(blocks)),
                code="no-subordinate-ids",
            )
        return blocks[number - 1]

    @classmethod
    def all_of_user(cls) -> list[Ids]:
        """The current user's blocks, counted through its ranges in the files' order."""
        uids, gids = (_blocks(Path(file)) for file in ("/etc/subuid", "/etc/subgid"))
        return [cls(first_uid=u, first_gid=g) for u, g in zip(uids, gids, strict=False)]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _ranges(path: Path) -> list[tuple[str, int, int]]:
    ranges = []
    for line in path.read_text().splitlines() if path.exists() else ():
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            ranges.append((fields[0], int(fields[1]), int(fields[2])))
    return ranges


def _blocks(path: Path) -> list[int]:
    """Where the current user's blocks begin; none has its own id, and no two have one in common."""
    own, found = os.getuid(), list[int]()
    for owner, first, count in _ranges(path):
        if owner in (_user(), str(own)):
            for start in range(first, first + count - COUNT + 1, COUNT):
                taken = any(abs(start - other) < COUNT for other in found)
                if not taken and not start <= own < start + COUNT:
                    found.append(start)
    return found


def _adding(name: str, blocks: int) -> str:
    taken = [
        first + count
        for path in (Path("/etc/subuid"), Path("/etc/subgid"))
        for _, first, count in _ranges(path)
    ]
    first = max([100000, *taken])
    ids = f"{first}-{first + blocks * COUNT - 1}"
    return f"usermod --add-subuids {ids} --add-subgids {ids} {name}"


@dataclass
class Entered:
    """A child in namespaces of its own, as their root, about to do its work."""

    pid: int
    control: socket.socket

    def kill(self) -> None:
        """Kill and reap it."""
        os.kill(self.pid, signal.SIGKILL)
        self.reap(seconds=DEATH_SECONDS)

    def reap(self, *, seconds: float) -> int:
        """Wait for its end; its exit code, or minus its signal. Raises MachineFault."""
        self.control.close()
        ended = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        try:
            if not poll.poll(seconds * 1000):
                raise MachineFault(f"process {self.pid} does not end", code="sandbox")
        finally:
            os.close(ended)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def enter(
    ids: Ids,
    flags: int,
    body: Callable[[socket.socket], int],
    *,
    before: Callable[[socket.socket], None] = lambda _: None,
    as_caller: Callable[[], None] = lambda: None,
    own: bool = False,
) -> Entered:
    """Fork a child that runs `body` as root of new namespaces and exits with what it returns.

    `before` runs in the child first; `as_caller` runs in the new namespaces, still with our own
    user's rights to files. With `own`, our own user is mapped too (as OWN_ID): for trusted
    helpers only. The control socket carries whole messages; `error ...` is one that `body`'s
    exceptions are turned into. The child dies with this process. Raises MachineFault.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(theirs, parent, flags, body, before, as_caller)
    theirs.close()
    entered = Entered(pid=pid, control=ours)
    try:
        _expect(ours, b"unshared")
        _map(ids, pid, own)
        ours.send(b"mapped")
    except BaseException:
        entered.kill()
        raise
    return entered


def _child(
    control: socket.socket,
    parent: int,
    flags: int,
    body: Callable[[socket.socket], int],
    before: Callable[[socket.socket], None],
    as_caller: Callable[[], None],
) -> NoReturn:
    code = 70
    try:
        kernel.die_with_parent()
        if os.getppid() != parent:
            os._exit(code)
        # After a change of user /proc/PID belongs to root, and newuidmap would refuse it.
        kernel.dumpable(True)
        before(control)
        kernel.unshare(kernel.CLONE_NEWUSER | flags)
        control.send(b"unshared")
        if control.recv(64) != b"mapped":
            os._exit(code)
        as_caller()
        # Our groups are not mapped, but count: what they may read, root inside could.
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        kernel.dumpable(False)
        kernel.die_with_parent()
        code = body(control)
    except BaseException as error:
        report(control, error)
    finally:
        os._exit(code)


def fork_init() -> int:
    """Fork pid 1 of a new process namespace; it dies with this process, from the start."""
    alive, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(held)
        kernel.die_with_parent()
        # Inside there is no parent to look at; but only it holds the other end.
        poll = select.poll()
        poll.register(alive, select.POLLIN)
        if poll.poll(0):
            os._exit(70)
        os.close(alive)
    return pid


def report(control: socket.socket, error: BaseException) -> None:
    """Tell the launcher why it failed; whoever is gone need not know."""
    try:
        control.send(f"error {type(error).__name__}: {error}".encode()[:4000])
    except OSError:
        pass


def failed(message: bytes) -> MachineFault:
    """What an `error` message of the child means."""
    text = message.decode("utf-8", "replace").removeprefix("error ")
    return MachineFault(
        f"the sandbox cannot be set up: {text}",
        hint="`invirtibuilder check-config` tells what this machine lacks",
        code="sandbox",
    )


def _expect(control: socket.socket, wanted: bytes) -> None:
    message = control.recv(4096)
    if message != wanted:
        raise failed(message or b"error its first process died")


def _map(ids: Ids, pid: int, own: bool) -> None:
    uids = ["0", str(ids.first_uid), str(ids.count)]
    gids = ["0", str(ids.first_gid), str(ids.count)]
    if own:
        uids += [str(OWN_ID), str(os.getuid()), "1"]
        gids += [str(OWN_ID), str(os.getgid()), "1"]
    try:
        run(["newuidmap", str(pid), *uids], timeout=20)
        run(["newgidmap", str(pid), *gids], timeout=20)
    except ProcessFault as error:
        raise MachineFault(
            f"the subordinate ids cannot be mapped: {error}",
            hint="the package uidmap, /etc/subuid and /etc/subgid, and no NoNewPrivileges",
            code="sandbox",
        ) from error


def finish(entered: Entered, *, seconds: float) -> int:
    """Wait for the child of `enter`; its exit code. Raises MachineFault for errors and time."""
    ended = os.pidfd_open(entered.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    try:
        if not poll.poll(seconds * 1000):
            raise MachineFault(f"no end after {seconds:g} s", code="sandbox")
        message = entered.control.recv(4096)
        if message.startswith(b"error "):
            raise failed(message)
    except BaseException:
        entered.kill()
        raise
    finally:
        os.close(ended)
    return entered.reap(seconds=DEATH_SECONDS)


def make_tree(ids: Ids, path: Path) -> None:
    """Make directory `path`, owned by the sandbox's root; its parent is ours.

    Raises FileExistsError, MachineFault.
    """
    path.mkdir(mode=0o755)
    # In a directory with the set-group-ID bit the group would be one that is not mapped.
    os.chown(path, -1, os.getgid())
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def give(_: socket.socket) -> int:
        os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o755)
        return 0

    try:
        if finish(enter(ids, 0, give, own=True), seconds=60) != 0:
            raise MachineFault(f"{path} cannot be given to the sandbox's root", code="sandbox")
    except BaseException:
        path.rmdir()
        raise
    finally:
        os.close(fd)


def remove_tree(ids: Ids, path: Path) -> None:
    """Remove directory `path` of `make_tree`, whatever is in it; no error when it is gone.

    Only the sandbox's ids are used for the content. Raises MachineFault.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    # find(1) copes with trees deeper than PATH_MAX, which shutil does not.
    argv = ["find", ".", "-xdev", "-mindepth", "1", "-delete"]

    def empty(_: socket.socket) -> int:
        os.fchdir(fd)
        os.execv("/usr/bin/find", argv)  # noqa: S606

    try:
        code = finish(enter(ids, 0, empty), seconds=3600)
    finally:
        os.close(fd)
    if code != 0:
        raise MachineFault(f"{path} cannot be removed: find exits with {code}", code="sandbox")
    path.rmdir()


def tree_size(ids: Ids, path: Path) -> int:
    """The bytes that directory `path` of `make_tree` takes on disk. Raises MachineFault."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    reader, writer = os.pipe()

    def measure(_: socket.socket) -> int:
        os.fchdir(fd)
        os.dup2(writer, 1)
        os.execv("/usr/bin/du", ["du", "-s", "-x", "-B1", "."])  # noqa: S606

    try:
        code = finish(enter(ids, 0, measure), seconds=600)
        os.close(writer)
        text = os.read(reader, 4096)
    finally:
        os.close(fd)
        os.close(reader)
    if code != 0 or not text.split():
        raise MachineFault(f"{path} cannot be measured: du exits with {code}", code="sandbox")
    return int(text.split()[0])
