"""Engines: how a worker, a filter from order to result, is started, adopted and told to stop.

An attempt is one run of an order in a directory of its own. Its worker holds the attempt's lock
for as long as it lives: a held lock means "adopt it", a free one means that it has ended. The
lock file's content is the only word to a running worker: once it is not empty, it is to stop.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from invirtibuilder import files, jsonsafe, model
from invirtibuilder.errors import Fault, MachineFault, Unavailable
from invirtibuilder.run import Detached, ProcessFault, detach, run

GO = b"order\n"
ROOM = b"room!\n"
"""Asks a listener what it has, without descriptors."""
MAX_ROOM = 4096


@dataclass(frozen=True)
class Attempt:
    """One run of an order: `order.tar`, `result.tar`, `log`, `lock` in a directory."""

    directory: Path

    @property
    def id(self) -> str:
        """Unique over all jobs: the job's id and the attempt's own name."""
        return f"{self.directory.parent.parent.name}.{self.directory.name}"

    @property
    def order(self) -> Path:
        return self.directory / "order.tar"

    @property
    def result(self) -> Path:
        return self.directory / "result.tar"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def started(self) -> bool:
        """Whether a worker was ever given this attempt."""
        return self.lock.exists()

    @property
    def running(self) -> bool:
        """Whether its worker lives."""
        try:
            with files.locked(self.lock, wait=False):
                return False
        except files.Busy:
            return True

    @property
    def given_up(self) -> bool:
        """Whether its order was given to another attempt: what it brings counts no more."""
        return (self.directory / "given-up").exists()

    def give_up(self) -> None:
        """From now on, and after any restart, do not listen to this attempt."""
        files.write_atomic(self.directory / "given-up", "")

    def stop(self) -> None:
        """Tell its worker to stop."""
        if self.started:
            with self.lock.open("wb") as file:
                file.write(b"cancel\n")


class Engine(Protocol):
    """Starts the worker of an attempt; it ends on its own."""

    def start(self, attempt: Attempt) -> None:
        """Give the attempt to a worker. Raises Unavailable when there is none."""
        ...

    def check(self) -> list[str]:
        """What is promised less of here than could be. Raises a Fault when no order can be done."""
        ...


def _descriptors(stack: ExitStack, attempt: Attempt) -> tuple[int, int, int, int]:
    """Order, result, log and the held lock, open for the worker alone."""

    def opened(path: Path, flags: int, mode: int = 0o644) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        stack.callback(os.close, fd)
        return fd

    order = opened(attempt.order, os.O_RDONLY)
    result = opened(attempt.result, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    log = opened(attempt.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Read-only: the worker may hold the lock and read the word in it, not write it.
    os.close(os.open(attempt.lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644))
    lock = opened(attempt.lock, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return order, result, log, lock


@dataclass(frozen=True, kw_only=True)
class WorkerRoom:
    """What a worker that listens has: blocks of ids for orders at once, and room on its disk.

    `bases` are the bytes of the older bases in that slot which has most of them.
    """

    directory: str
    slots: int
    free: int
    size: int
    bases: int = 0


def room_of(path: Path, *, seconds: float) -> WorkerRoom | None:
    """What the worker at this socket has; None when it does not say. Raises OSError."""
    data = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        with suppress(OSError):
            connection.sendall(ROOM)
            while part := connection.recv(MAX_ROOM - len(data)):
                data += part
    try:
        told = jsonsafe.loads(data)
        names = ("slots", "free", "size", "bases")
        slots, free, size, bases = (max(0, int(told[name])) for name in names)
        directory = model.printable(str(told["directory"])[:200])
    except (Fault, LookupError, TypeError, ValueError):
        return None
    return WorkerRoom(directory=directory, slots=slots, free=free, size=size, bases=bases)


def older_bases(directory: Path) -> int:
    """Bytes of the older bases in that slot of a worker's directory which has most of them."""
    found: dict[Path, int] = {}
    for path in directory.glob("slot-*/bases/*/[!.]*/base.json"):
        base, slot = path.parent, path.parents[3]
        # It may be on its way out.
        with suppress(FileNotFoundError):
            if not base.is_symlink() and files.link_target(base.parent / "current") != base.name:
                found[slot] = found.get(slot, 0) + int(files.read_json(path).get("size", 0))
    return max(found.values(), default=0)


class ChildEngine:
    """The worker as a child of ours that outlives us: one user runs everything."""

    def __init__(
        self, directory: Path, program: Sequence[str] = (), *, slots: range = range(0)
    ) -> None:
        program = tuple(program) or (sys.executable, "-I", "-m", "invirtibuilder")
        self._argv = [*program, "worker", "--directory", str(directory)]
        if slots:
            self._argv += ["--slots", f"{slots[0]}-{slots[-1]}"]
        self._guard = threading.Lock()
        self._children: list[Detached] = []

    def check(self) -> list[str]:
        try:
            done = run([*self._argv, "--check"])
        except ProcessFault as fault:
            raise MachineFault(fault.done.err.decode("utf-8", "replace").strip()) from fault
        return done.err.decode("utf-8", "replace").splitlines()

    def start(self, attempt: Attempt) -> None:
        # Nobody waits for a worker, its lock tells when it has ended; so reap the earlier ones.
        with self._guard:
            self._children = [child for child in self._children if child.poll() is None]
        with ExitStack() as stack:
            order, result, log, lock = _descriptors(stack, attempt)
            child = detach(
                [*self._argv, "--lock-fd", str(lock)],
                stdin=order,
                stdout=result,
                stderr=log,
                pass_fds=[lock],
            )
            with self._guard:
                self._children.append(child)


class SocketEngine:
    """The worker as another user's process, over a unix socket that takes the descriptors."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> list[str]:
        """Nothing: the listener checks its own account, and says what it found, when it starts."""
        return []

    def start(self, attempt: Attempt) -> None:
        with ExitStack() as stack:
            fds = _descriptors(stack, attempt)
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.settimeout(30)
            try:
                connection.connect(str(self._path))
                send_descriptors(connection, GO, fds)
                answer = connection.recv(16)
            except OSError as error:
                raise Unavailable(
                    f"the worker at {self._path} does not answer: {error}",
                    hint="start `invirtibuilder worker --listen` as the worker's account",
                    code="no-worker",
                ) from error
            if answer != b"started\n":
                raise Unavailable(f"the worker at {self._path} refused", code="no-worker")


def send_descriptors(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send bytes with open descriptors (unix(7), SCM_RIGHTS)."""
    rights = array.array("i", fds).tobytes()
    connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def receive_descriptors(connection: socket.socket, count: int) -> tuple[bytes, list[int]]:
    """Receive bytes with exactly `count` descriptors. Raises MachineFault."""
    data, fds, flags, _ = socket.recv_fds(connection, 64, count, socket.MSG_CMSG_CLOEXEC)
    for fd in fds:
        # recv_fds of Python 3.11 does not pass the flags on.
        os.set_inheritable(fd, False)
    if len(fds) != count or flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise MachineFault(f"expected {count} descriptors, got {len(fds)}")
    return data, fds
