"""What a run uses where no control group counts it: its processes sampled, its disk measured."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.sandbox.ids import Entered, Ids, enter

FIRST = 5.0
"""Seconds until a run's disk space is measured for the first time without a cause."""

REGULAR = 60.0
"""Seconds between two measurements without a cause."""

PAUSE = 1.0
"""Seconds between two measurements with one; and 20 (2) times what the last one took."""

LONGEST = 120.0
"""Seconds after which a measurement of a tree of too many files is given up."""

FILES = 1000
"""Files that could still be made on the file system: with fewer it is full."""

BLOCK = 4096
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """The processes below one, at an instant."""

    processes: int
    cpu_seconds: float

    @classmethod
    def below(cls, pid: int) -> Sample:
        """This process and all that descend from it (proc(5)).

        CPU time of those that have ended is in their parents' own account, unless a parent
        ignored their end: a lower bound.
        """
        todo, seen, ticks = [pid], 0, 0
        while todo:
            process = Path("/proc", str(todo.pop()))
            with suppress(OSError, ValueError):
                # The name may hold anything; utime, stime, cutime and cstime come after it.
                fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
                ticks += sum(int(n) for n in fields[11:15])
                seen += int(fields[17])
                for task in (process / "task").iterdir():
                    todo += [int(n) for n in (task / "children").read_text().split()]
        return cls(processes=seen, cpu_seconds=ticks / TICKS)


class Meter:
    """Watches the disk space of a run: what its trees (of `make_tree`) hold, and what is left.

    What the file system loses tells when to measure the trees: a measurement walks them as
    their own root, in a process of its own, and a run that has written little costs none.
    """

    def __init__(
        self, ids: Ids, trees: Sequence[Path], *, limit: int | None, reserve: int | None
    ) -> None:
        self.ids = ids
        self.trees = tuple(trees)
        self.limit = limit
        self.reserve = reserve
        self.used = 0
        self.lowest = self.free() if self.trees else 0
        self._free_then = self.lowest
        self._due = time.monotonic() + FIRST
        self._urgent = time.monotonic() + PAUSE
        self._running: _Measurement | None = None

    def free(self) -> int:
        """Bytes that are left on the trees' file system; 0 when it has no more room for files."""
        status = os.statvfs(self.trees[0])
        if status.f_files and status.f_favail < FILES:
            return 0
        return status.f_bavail * status.f_frsize

    def look(self) -> str:
        """What is exceeded now: "disk", "reserve", or "" for nothing."""
        if not self.trees:
            return ""
        free = self.free()
        self.lowest = min(self.lowest, free)
        if self.reserve is not None and free < self.reserve:
            return "reserve"
        return "disk" if self.limit is not None and self._over(free, self.limit) else ""

    def full(self) -> bool:
        """Whether less than the reserve is left now."""
        return bool(self.trees) and self.reserve is not None and self.free() < self.reserve

    def _over(self, free: int, limit: int) -> bool:
        now = time.monotonic()
        if self._running is None:
            lost = self._free_then - free
            if now >= self._due or (now >= self._urgent and lost >= limit - self.used):
                self._free_then = free
                self._running = _Measurement(self.ids, self.trees)
            return False
        if (used := self._running.result()) is None and now < self._running.started + LONGEST:
            return False
        took = now - self._running.started
        self._running.close()
        self._running = None
        self._urgent = now + max(PAUSE, 2 * took)
        self._due = now + max(REGULAR, 20 * took)
        self.used = self.used if used is None else used
        return self.used > limit

    def whose(self) -> str:
        """After the end of a run over the reserve: "disk" when it had more than its own limit.

        What became free when it was killed was its, too: files that it had removed, still open.
        Each file counts as a block at least, as there may be room for no more files.
        """
        self.close()
        if self.limit is None:
            return "reserve"
        back = max(0, self.free() - self.lowest)
        blocks = _measured(_Measurement(self.ids, self.trees))
        files = _measured(_Measurement(self.ids, self.trees, "--inodes"))
        self.used = max(blocks, files * BLOCK) + back
        return "disk" if self.used > self.limit else "reserve"

    def close(self) -> None:
        """End a measurement."""
        if self._running:
            self._running.close()
            self._running = None


class _Measurement:
    """One walk over the trees, at work."""

    def __init__(self, ids: Ids, trees: Sequence[Path], what: str = "--block-size=1") -> None:
        self.started = time.monotonic()
        # Allocated blocks, each file once; no error for what goes away meanwhile.
        argv = ["/usr/bin/du", "-s", "-c", "-x", what]
        self._entered, self._answer = _as_root_of(ids, trees, argv)
        self._text = b""

    def result(self, *, wait: float = 0) -> int | None:
        """The bytes that the trees have, None while that is not known."""
        end = time.monotonic() + wait
        while select.select([self._answer], [], [], max(0, end - time.monotonic()))[0]:
            data = os.read(self._answer, 4096)
            if not data:
                words = self._text.split()
                return int(words[-2]) if len(words) >= 2 and words[-1] == b"total" else 0
            self._text += data
        return None

    def close(self) -> None:
        os.close(self._answer)
        self._entered.kill()


def _measured(measurement: _Measurement) -> int:
    try:
        return measurement.result(wait=LONGEST) or 0
    finally:
        measurement.close()


def at_size(ids: Ids, trees: Sequence[Path], size: int, *, seconds: float = 20) -> bool:
    """Whether a file in the trees has exactly this size: where RLIMIT_FSIZE has stopped it."""
    if not trees:
        return False
    options = ["-xdev", "-type", "f", "-size", f"{size}c", "-print", "-quit"]
    entered, answer = _as_root_of(ids, trees, ["/usr/bin/find"], options)
    try:
        ready = select.select([answer], [], [], seconds)[0]
        return bool(ready and os.read(answer, 1))
    finally:
        os.close(answer)
        entered.kill()


def _as_root_of(
    ids: Ids, trees: Sequence[Path], argv: Sequence[str], options: Sequence[str] = ()
) -> tuple[Entered, int]:
    """Start a program of this machine over trees, with their ids only; its output's descriptor."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fds: list[int] = []

    def open_trees() -> None:
        fds.extend(os.open(tree, os.O_PATH | os.O_DIRECTORY) for tree in trees)

    def body(_: socket.socket) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDWR)
        for number, fd in enumerate((null, writer, null)):
            os.dup2(fd, number, inheritable=True)
        for fd in fds:
            os.set_inheritable(fd, True)
        places = [f"/proc/self/fd/{fd}/." for fd in fds]
        os.execv(argv[0], [*argv, *places, *options])  # noqa: S606

    try:
        entered = enter(ids, 0, body, before=lambda _: os.setsid(), as_caller=open_trees)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return entered, reader
