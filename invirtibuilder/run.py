"""The one door to processes: argv lists, a clean environment, a deadline, whole groups killed."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from invirtibuilder.errors import Blame, Exit, Fault

CLEAN = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "HOME": "/nonexistent",
}
"""What every child gets; everything else is added by name."""

GRACE = 5.0
"""Seconds between TERM and KILL."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a process left behind."""

    argv: tuple[str, ...]
    code: int
    out: bytes
    err: bytes
    seconds: float

    @property
    def text(self) -> str:
        """Standard output as text, final newline removed."""
        return self.out.decode("utf-8", "replace").rstrip("\n")


class ProcessFault(Fault):
    """A process failed; the message has the line to repeat it and the end of its output."""

    exit = Exit.MACHINE
    blame = Blame.MACHINE
    code = "process"

    def __init__(self, done: Done, why: str = "") -> None:
        tail = (done.err or done.out).decode("utf-8", "replace").strip()[-2000:]
        super().__init__(f"{why or f'exit code {done.code}'}: {quoted(done.argv)}\n{tail}".rstrip())
        self.done = done


class Killed(ProcessFault):
    """A process was ended from outside, by hand or by a machine short of memory, or could not even
    be begun: that says nothing of what it was asked, and another try may well succeed."""

    code = "killed"


FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SHORT = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Why a process could not be begun that could be another time."""


def failed(done: Done, why: str = "") -> ProcessFault:
    """The fault of a process that has ended by itself, that somebody else has ended, or that was
    ended here, which is `why`."""
    for number in () if why else FROM_OUTSIDE:
        # git says so of a process that it has started.
        if done.code == -number or b"died of signal %d" % number in done.err:
            return Killed(done, f"killed from outside by {signal.Signals(number).name}")
    return ProcessFault(done, why)


def quoted(argv: Sequence[str]) -> str:
    """The command as a line for a shell."""
    return shlex.join(argv)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A child's environment: built up from CLEAN, never copied down."""
    return {**CLEAN, **(extra or {})}


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 600,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = "/",
    stdin: bytes | IO[bytes] | int | None = None,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    file_limit: int | None = None,
    output_limit: int = 64 << 20,
    log: Callable[[str], None] | None = None,
    enter: Callable[[], None] | None = None,
) -> Done:
    """Run a command to its end, in a session of its own, and sweep its group afterwards.

    `timeout` is in seconds; when it is over the whole group gets TERM, then KILL. `file_limit`
    (bytes) is RLIMIT_FSIZE. Standard input is empty unless given; output is captured unless sent
    elsewhere, and captured output over `output_limit` bytes is an error. `enter` is called in a
    thread of its own that starts the command: what that thread gives away (see `confine`) the
    command has not, nor what it starts. Raises ProcessFault for a time-out, a command that cannot
    be started, and, with `check`, an exit code other than 0.
    """
    args = tuple(str(a) for a in argv)
    if log:
        log("+ " + quoted(args))
    started = time.monotonic()
    with (
        _readable(stdin) as given,
        started_group(
            args,
            env=env,
            cwd=cwd,
            stdin=given,
            stdout=stdout if stdout is not None else subprocess.PIPE,
            stderr=stderr if stderr is not None else subprocess.PIPE,
            pass_fds=pass_fds,
            file_limit=file_limit,
            enter=enter,
        ) as process,
    ):
        captured = _Captured(process, output_limit)
        why = captured.until_end(timeout)
        if why:
            kill_group(process)
            # One that has left the group is not waited for.
            captured.until_end(1)
    done = Done(
        argv=args,
        code=process.returncode,
        out=captured.of(process.stdout),
        err=captured.of(process.stderr),
        seconds=time.monotonic() - started,
    )
    if why or (check and done.code != 0):
        raise failed(done, why)
    return done


@contextlib.contextmanager
def _readable(stdin: bytes | IO[bytes] | int | None) -> Iterator[IO[bytes] | int]:
    """What a child can be given as its standard input."""
    if not isinstance(stdin, bytes):
        yield stdin or subprocess.DEVNULL
        return
    with os.fdopen(os.memfd_create("stdin"), "w+b") as file:
        file.write(stdin)
        file.seek(0)
        yield file


class _Captured:
    """What comes out of a process's pipes, never much more than `limit` bytes of each."""

    def __init__(self, process: subprocess.Popen[bytes], limit: int) -> None:
        self._process = process
        self._limit = limit
        self._open = [pipe for pipe in (process.stdout, process.stderr) if pipe]
        self._parts = {pipe: bytearray() for pipe in self._open}

    def of(self, pipe: IO[bytes] | None) -> bytes:
        """What came out of one of them."""
        return bytes(self._parts[pipe]) if pipe else b""

    def until_end(self, timeout: float) -> str:
        """Read until the pipes and the process end, or say why that is not waited for."""
        until = time.monotonic() + timeout
        while self._open and (left := until - time.monotonic()) > 0:
            for pipe in _ready(self._open, left):
                data = os.read(pipe.fileno(), 1 << 16)
                self._parts[pipe] += data
                if not data:
                    self._open.remove(pipe)
                if len(self._parts[pipe]) > self._limit:
                    return f"more than {self._limit} bytes of output"
        try:
            self._process.wait(max(0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"no end after {timeout:g} s"
        return f"no end after {timeout:g} s" if self._open else ""


def _ready(pipes: Sequence[IO[bytes]], seconds: float) -> list[IO[bytes]]:
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(seconds * 1000)}
    return [pipe for pipe in pipes if pipe.fileno() in ready]


@contextlib.contextmanager
def started_group(
    args: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = "/",
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    file_limit: int | None = None,
    enter: Callable[[], None] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A running process in a session of its own; its whole group is killed on leaving."""

    argv = list(args)
    if file_limit is not None:
        argv = ["prlimit", f"--fsize={file_limit}", "--", *argv]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            env=environment(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            # No function before exec: that would be a fork of all of us, and unsafe with threads.
            umask=0o022,
        )

    try:
        process = _started_within(enter, start) if enter else start()
    except OSError as error:
        raise _not_started(argv, error) from error
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_group(process)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


def _started_within(
    enter: Callable[[], None], start: Callable[[], subprocess.Popen[bytes]]
) -> subprocess.Popen[bytes]:
    """What `start` gives in a thread that has entered; nobody else ever runs in that one.

    The others wait for the process and kill it: that thread might no longer be able to.
    """
    made: list[subprocess.Popen[bytes]] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            enter()
            made.append(start())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body, name="start")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _not_started(argv: Sequence[str], error: OSError) -> ProcessFault:
    done = Done(argv=tuple(argv), code=127, out=b"", err=str(error).encode(), seconds=0)
    kind = Killed if error.errno in SHORT else ProcessFault
    return kind(done, "cannot be started")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """TERM to the whole group, GRACE seconds, KILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    # Its children may have outlived it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


Detached = subprocess.Popen[bytes]


def detach(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int,
    stdout: int,
    stderr: int,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that is meant to outlive us, in a session of its own. Raises ProcessFault."""
    args = [str(a) for a in argv]
    try:
        return subprocess.Popen(
            args,
            env=environment(env),
            cwd="/",
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            umask=0o022,
        )
    except OSError as error:
        raise _not_started(args, error) from error
