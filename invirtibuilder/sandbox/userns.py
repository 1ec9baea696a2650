"""The rootless sandbox: user and other namespaces, an overlay as root, two kinds of user.

Every path is opened here or in the child with our own user's rights and used by descriptor, so
the directories above need not be open to the subordinate ids.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from invirtibuilder.errors import DISK_FULL, MachineFault
from invirtibuilder.sandbox import inner, kernel, proxy
from invirtibuilder.sandbox.contract import Bind, Command, Limits, Outcome, never
from invirtibuilder.sandbox.ids import DEATH_SECONDS, Entered, Ids, enter, failed
from invirtibuilder.sandbox.limits import Group, Groups
from invirtibuilder.sandbox.usage import Meter, Sample, at_size

NAMESPACES = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)
TICK_MS = 200
SAMPLE = 1.0
"""Seconds between two looks at the processes, where no control group counts their CPU time."""

MARGIN = 16
"""Processes, and seconds of CPU time, by which rlimits are above what is bound as a whole: so
that it is the whole's limit that is hit, and named."""

OPEN_FILES = (1024, 65536)


class UserNamespace:
    """A sandbox over `lowers` (topmost first), each a tree of `make_tree`'s ids.

    `scratch` is a directory of `make_tree`: what is written goes to its `upper`, and /tmp is on
    it too. Without one the root is read-only and /tmp is in memory. `devices` names files of /dev
    besides the usual ones. Each `run` is a new sandbox over the same files; one at a time for a
    scratch directory. `groups` bounds memory, processes and CPU time of all processes together;
    where it has none, each process is bound.
    """

    def __init__(
        self,
        *,
        ids: Ids,
        lowers: Sequence[Path],
        scratch: Path | None,
        binds: Sequence[Bind] = (),
        limits: Limits,
        groups: Groups | None = None,
        hostname: str = "build",
        devices: Sequence[str] = (),
    ) -> None:
        self.ids = ids
        self.lowers = tuple(lowers)
        self.scratch = scratch
        self.binds = tuple(binds)
        self.limits = limits
        self.groups = groups or Groups()
        self.hostname = hostname
        self.devices = tuple(devices)

    def run(self, command: Command, *, cancelled: Callable[[], bool] = never) -> Outcome:
        """Run to the end; no process of it is left. Raises MachineFault when it cannot start."""
        stage = inner.Stage(
            lowers=[str(path) for path in self.lowers],
            scratch=str(self.scratch) if self.scratch else None,
            binds=self.binds,
            hostname=self.hostname,
            devices=(*inner.DEVICES, *self.devices),
            command=command,
            memory=self.limits.memory,
        )
        started = time.monotonic()
        limits = self.limits
        meter = Meter(self.ids, self._written(), limit=limits.disk, reserve=limits.reserve)
        group = self.groups.make(
            memory=limits.memory,
            processes=limits.processes,
            cpu=limits.cpu_seconds is not None,
        )
        output = _Output.to(command)
        try:
            entered = enter(
                self.ids,
                NAMESPACES,
                lambda control: inner.supervise(stage, control),
                before=lambda control: _before(limits, group, command.stdin, output, control),
                as_caller=stage.open_sources,
            )
            output.close_writers()
            watch = _Watch(entered, command, limits, output, started, group, meter)
            outcome = watch.until_end(cancelled)
            return self._explained(outcome, watch)
        finally:
            output.close()
            meter.close()
            group.remove()

    def _written(self) -> list[Path]:
        """What is on disk and can be written from inside."""
        found = [self.scratch] if self.scratch else []
        return found + [bind.source for bind in self.binds if bind.writable]

    def _explained(self, outcome: Outcome, watch: _Watch) -> Outcome:
        """What the end of a run that failed was for, as far as only its remains tell."""
        limit = outcome.limit
        if not limit and outcome.code != 0 and watch.meter.full():
            limit = "reserve"
        if limit == "reserve":
            limit = watch.meter.whose()
        hits = {"processes": watch.refused()}
        size = self.limits.file_size
        if size is not None and outcome.code != 0 and not limit:
            hits["file_size"] = int(at_size(self.ids, self._written(), size))
        return replace(outcome, limit=limit, hits={k: n for k, n in hits.items() if n})


def upper_of(scratch: Path) -> Path:
    """Where a scratch directory keeps what was written: a layer for later sandboxes."""
    return scratch / "upper"


def _before(
    limits: Limits, group: Group, stdin: int | None, output: _Output, control: socket.socket
) -> None:
    """In the child, before it leaves our namespaces: what must not be changed from inside."""
    group.join()
    os.setsid()
    kernel.new_session_keyring()
    # When memory runs out, not we but what runs inside is to be killed.
    Path("/proc/self/oom_score_adj").write_text("500")
    _only_standard_descriptors(stdin, output, control.fileno())
    # With 0 a crash still starts the machine's crash handler, as the machine's root; with 1 it does
    # not (fs/coredump.c).
    kernel.limit(resource.RLIMIT_CORE, 1)
    if "memory" not in group.by_resource:
        kernel.limit(resource.RLIMIT_AS, limits.memory)
    counted = MARGIN if "processes" in group.by_resource else 0
    kernel.limit(resource.RLIMIT_NPROC, _above(limits.processes, counted))
    kernel.limit(resource.RLIMIT_FSIZE, limits.file_size)
    kernel.limit(resource.RLIMIT_CPU, _above(limits.cpu_seconds, MARGIN))
    # fakeroot closes every descriptor there could be: a high limit makes it slow.
    soft, hard = OPEN_FILES
    kernel.limit(resource.RLIMIT_NOFILE, hard)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def _above(limit: int | None, margin: int) -> int | None:
    return None if limit is None else limit + margin


def _only_standard_descriptors(stdin: int | None, output: _Output, control: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    wanted = (null if stdin is None else stdin, output.stdout, output.stderr)
    for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, control + 1) for fd in wanted]):
        os.dup2(fd, number, inheritable=True)
    kernel.close_all_but(control)


@dataclass
class _Pipe:
    reader: int
    writer: int
    target: int
    open: bool = True


class _Output:
    """The pipes by which the command's output comes to us, and where it goes on to."""

    def __init__(self, stdout: int, stderr: int) -> None:
        self.pipes = [_Pipe(*os.pipe(), target) for target in dict.fromkeys((stdout, stderr))]
        for pipe in self.pipes:
            # So that what opens /dev/stderr inside may write there.
            os.fchmod(pipe.writer, 0o622)
        self.stdout, self.stderr = self.pipes[0].writer, self.pipes[-1].writer
        self.bytes = 0
        self.last = time.monotonic()

    @classmethod
    def to(cls, command: Command) -> _Output:
        return cls(
            2 if command.stdout is None else command.stdout,
            2 if command.stderr is None else command.stderr,
        )

    def close_writers(self) -> None:
        for pipe in self.pipes:
            if pipe.writer >= 0:
                os.close(pipe.writer)
                pipe.writer = -1

    def close(self) -> None:
        self.close_writers()
        for pipe in self.pipes:
            os.close(pipe.reader)

    def forward(self, pipe: _Pipe, limit: int | None) -> bool:
        """Copy what there is, up to `limit` bytes in all; whether it was within the limit."""
        data = os.read(pipe.reader, 1 << 20)
        pipe.open = bool(data)
        room = len(data) if limit is None else max(0, limit - self.bytes)
        self.bytes += len(data)
        self.last = time.monotonic()
        rest = memoryview(data)[:room]
        while rest:
            try:
                rest = rest[os.write(pipe.target, rest) :]
            except BlockingIOError:
                select.select([], [pipe.target], [], 1)
        return len(data) <= room


@dataclass
class _Watch:
    """The launcher's part while a command runs: messages, output, limits."""

    entered: Entered
    command: Command
    limits: Limits
    output: _Output
    started: float
    group: Group
    meter: Meter
    next_sample: float = 0.0
    most: int = 0
    init: int = -1
    status: int | None = None
    error: bytes = b""
    limit: str = ""
    killed: float = 0.0
    talking: bool = True
    server: proxy.Server | None = None
    poll: select.poll = field(default_factory=select.poll)

    def until_end(self, cancelled: Callable[[], bool]) -> Outcome:
        self.poll.register(self.entered.control, select.POLLIN)
        for pipe in self.output.pipes:
            self.poll.register(pipe.reader, select.POLLIN)
        try:
            next_look = self.started
            while self.talking or any(pipe.open for pipe in self.output.pipes):
                ready = {fd for fd, _ in self.poll.poll(TICK_MS)}
                self._receive(ready)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + TICK_MS / 1000
                    self._enforce(cancelled)
        except OSError as error:
            code = DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else "sandbox"
            raise MachineFault(f"the command's output: {error}", code=code) from error
        finally:
            self._end()
        if not self.limit:
            # Seen too late to kill for: a run that was stopped by the kernel is over its limit.
            self.limit = "memory" if self.group.out_of_memory() else ""
        if self.error and not self.limit:
            raise failed(self.error)
        return Outcome(
            code=-signal.SIGKILL if self.status is None else self.status,
            limit=self.limit,
            seconds=time.monotonic() - self.started,
        )

    def _receive(self, ready: set[int]) -> None:
        for pipe in self.output.pipes:
            if pipe.reader in ready:
                if not self.output.forward(pipe, self.limits.output):
                    self._kill("output")
                if not pipe.open:
                    self.poll.unregister(pipe.reader)
        if self.entered.control.fileno() in ready:
            self._message()

    def _message(self) -> None:
        message, fds, _, _ = socket.recv_fds(self.entered.control, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        if not message:
            self.talking = False
            self.poll.unregister(self.entered.control)
        elif message == b"init":
            self.init = fds[0]
        elif message == b"listening" and self.command.proxy:
            with socket.socket(fileno=fds[0]) as listener:
                self.server = proxy.Server.start(listener, self.command.proxy)
        elif message.startswith(b"status "):
            self.status = int(message.split()[1])
        elif message.startswith(b"error "):
            self.error = self.error or message

    def _enforce(self, cancelled: Callable[[], bool]) -> None:
        now = time.monotonic()
        idle = self.limits.idle_seconds
        if self.limit:
            if now > self.killed + DEATH_SECONDS:
                raise MachineFault("killed processes do not end", code="sandbox")
        elif self.status is not None:
            pass
        elif cancelled():
            self._kill("cancelled")
        elif now > self.started + self.limits.seconds:
            self._kill("time")
        elif idle is not None and now > self.output.last + idle:
            self._kill("idle")
        elif self.group.out_of_memory():
            self._kill("memory")
        elif self._over_cpu_time(now):
            self._kill("cpu_time")
        elif full := self.meter.look():
            self._kill(full)

    def _over_cpu_time(self, now: float) -> bool:
        used = self.group.cpu_seconds()
        limit = self.limits.cpu_seconds
        counted = self.limits.processes is None or "processes" in self.group.by_resource
        if now >= self.next_sample and not (counted and (limit is None or used is not None)):
            sample = Sample.below(self.entered.pid)
            # Among very many processes a look takes its time.
            self.next_sample = now + max(SAMPLE, 10 * (time.monotonic() - now))
            self.most = max(self.most, sample.processes)
            used = sample.cpu_seconds if used is None else used
        return limit is not None and used is not None and used > limit

    def refused(self) -> int:
        """How often a process could not be started; 1 when samples only suggest it."""
        limit = self.limits.processes
        return self.group.forks_refused() or int(limit is not None and self.most >= limit - 2)

    def _kill(self, limit: str) -> None:
        if not self.limit:
            self.limit, self.killed = limit, time.monotonic()
        self._kill_all()

    def _kill_all(self) -> None:
        # Killing pid 1 kills all; its parent then ends by itself, when all are gone.
        if self.init >= 0:
            try:
                signal.pidfd_send_signal(self.init, signal.SIGKILL)
            except ProcessLookupError:
                pass
        else:
            os.kill(self.entered.pid, signal.SIGKILL)

    def _end(self) -> None:
        if self.talking:
            self._kill_all()
        if self.server:
            self.server.stop()
        if self.init >= 0:
            os.close(self.init)
        try:
            self.entered.reap(seconds=DEATH_SECONDS)
        except MachineFault:
            self.group.kill()
            raise
