"""The worker: a filter from an order to a result. No state, no callback, no credential.

    invirtibuilder worker < order.tar > result.tar 2> log

Its directory holds a folder a slot with bases, layers and scratch space; all of them can be
removed when it is idle.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from invirtibuilder import files, model
from invirtibuilder.engine import GO, ROOM, older_bases, receive_descriptors
from invirtibuilder.errors import DISK_FULL, Blame, Cancelled, Fault, MachineFault, Reason
from invirtibuilder.journal import ERROR, INFO, WARNING, Log, silent
from invirtibuilder.order import Manifest, Order, ResultWriter, read_order
from invirtibuilder.phases import build, export
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox import slots as blocks
from invirtibuilder.sandbox.check import MISSING, WEAKER, findings
from invirtibuilder.sandbox.ids import Ids, remove_tree
from invirtibuilder.sandbox.limits import Groups
from invirtibuilder.sandbox.slots import taken
from invirtibuilder.sockets import LOOK, keep_listening, listening


def work(
    directory: Path,
    order_stream: IO[bytes],
    result_stream: IO[bytes],
    *,
    slots: Sequence[int] = (),
    log_fd: int = 2,
    lock_fd: int | None = None,
    log: Log = silent,
) -> bool:
    """Do one order in a free one of these slots (default: all) and write its result.

    True when it was done. A result is written for every failure as well, so that whoever asked
    knows whose it is. Raises Cancelled, and gives no result, when SIGTERM has come meanwhile.
    """
    started = time.monotonic()
    stop = _StopWord(lock_fd)
    with _seekable(order_stream) as content, _restartable(result_stream) as result:
        order = read_order(content)
        content.seek(0)
        writer = ResultWriter(result)
        with ExitStack() as stack:
            try:
                workshop = stack.enter_context(
                    _workshop(directory, slots, order, content, log_fd, stop)
                )
                workshop.stage(f"order {order.kind} {order.attempt}")
                for weaker in workshop.groups.lacking().values():
                    workshop.stage(weaker)
                workshop.check_room()
                report = _KINDS[order.kind](workshop, writer)
                reasons: list[Reason] = []
                blame = Blame.PACKAGE
            except (Fault, OSError) as error:
                fault = _of_the_order(error, stop)
                report = {}
                reasons = list(fault.reasons)
                blame = fault.blame
                _log(log_fd, f"failed ({blame}): {fault}")
                # A failed order gives back no file.
                result.seek(0)
                result.truncate()
                writer = ResultWriter(result)
                environment = {}
            else:
                environment = workshop.environment
        manifest = Manifest(
            kind=order.kind,
            attempt=order.attempt,
            ok=not reasons,
            files=tuple(writer.files),
            blame=blame,
            reasons=tuple(reasons),
            environment=environment,
            report=report,
            seconds=round(time.monotonic() - started, 3),
        )
        writer.finish(manifest)
    _log(log_fd, _end(order, manifest, log))
    return manifest.ok


def _end(order: Order, manifest: Manifest, log: Log) -> str:
    """How it ended, which the service's log is told, too."""
    end = f"{'done' if manifest.ok else 'failed'} after {manifest.seconds:.1f} s"
    package = str(order.content.get("package", ""))
    code = manifest.reasons[0].code if manifest.reasons else ""
    about = {"job": order.job, "package": package, "code": code}
    priority = INFO if manifest.ok else WARNING
    log(f"order {order.kind} {order.attempt}: {end}", about, priority=priority)
    return end


def _of_the_order(error: Fault | OSError, stop: _StopWord) -> Fault:
    """What a failure says of the order. Raises Cancelled when it says nothing."""
    if stop.signalled:
        # As when the machine goes down, with all the build's processes.
        raise Cancelled("the worker was told to end; the order is lost") from error
    return error if isinstance(error, Fault) else _of_the_machine(error)


def _of_the_machine(error: OSError) -> Fault:
    """What an error of ours means: a full disk will not be one for ever. Raises all others."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    return MachineFault(f"the worker's disk is full: {error}", code=DISK_FULL)


def _base_only(workshop: Workshop, _writer: ResultWriter) -> dict[str, object]:
    """An order of kind `base`: make the base anew."""
    return {"digest": workshop.base(refresh=True).digest}


_KINDS = {"export": export.do, "build": build.do, "base": _base_only}


class _StopWord:
    """Whether we are to stop: a word in the lock file, or SIGTERM."""

    def __init__(self, lock_fd: int | None) -> None:
        self._lock_fd = lock_fd
        self.signalled = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.signalled = True

    def __call__(self) -> bool:
        return self.signalled or (self._lock_fd is not None and os.fstat(self._lock_fd).st_size > 0)


@contextmanager
def _seekable(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The order as a regular file, which a sandbox can be handed as its standard input."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.seek(0)
        yield copy


@contextmanager
def _restartable(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The result as a regular file, which can be begun again; copied at the end if it is none."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        yield copy
        copy.seek(0)
        shutil.copyfileobj(copy, stream, 1 << 20)
        stream.flush()


@contextmanager
def _workshop(
    domain: Path,
    slots: Sequence[int],
    order: Order,
    content: IO[bytes],
    log_fd: int,
    stop: _StopWord,
) -> Iterator[Workshop]:
    """A slot, and scratch space in it for one order, removed whole afterwards."""
    groups = Groups.find()
    groups.sweep()

    def waiting() -> None:
        _log(log_fd, "waiting for a free slot")

    with taken(domain, slots, stop=stop, waiting=waiting) as slot:
        # What is there was left by a worker that was killed: the slot is ours alone.
        for leftover in (slot.directory / "scratch").iterdir():
            with suppress(OSError, MachineFault):
                _clear(leftover, slot.ids)
        scratch = Path(tempfile.mkdtemp(prefix="order-", dir=slot.directory / "scratch"))
        scratch.chmod(0o711)
        try:
            workshop = Workshop(
                order=order,
                content=content,
                domain_directory=domain,
                directory=slot.directory,
                scratch=scratch,
                ids=slot.ids,
                log_fd=log_fd,
                cancelled=stop,
                groups=groups,
            )
            with workshop.held:
                yield workshop
        finally:
            _clear(scratch, slot.ids)


def _clear(scratch: Path, ids: Ids) -> None:
    for tree in scratch.iterdir():
        # What was received belongs to the build user.
        if tree.lstat().st_uid in range(ids.first_uid, ids.first_uid + ids.count):
            remove_tree(ids, tree)
    files.remove_tree(scratch)


def _log(fd: int, text: str) -> None:
    lines = "".join(f"== {model.iso(model.utcnow())} {line}\n" for line in text.split("\n"))
    os.write(fd, lines.encode())


def check(directory: Path, slots: Sequence[int] = ()) -> list[str]:
    """What this machine promises less of. Raises MachineFault."""
    found = findings(directory, slots)
    problems = [str(f) for f in found if f.state == MISSING]
    if problems:
        raise MachineFault("\n".join(problems), code="self-check")
    return [str(finding) for finding in found if finding.state == WEAKER]


def listen(path: Path, directory: Path, slots: Sequence[int] = (), *, log: Log) -> None:
    """Serve orders that arrive over a unix socket as descriptors, each in a process of its own.

    The socket's permissions say who may send orders. Ends with SIGTERM, and with SIGHUP becomes the
    program as it is on disk then; running orders go on.
    """
    again = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: again.set())
    for weaker in check(directory, slots):
        log(weaker, priority=WARNING)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass  # an order that we have begun as another program, and that has ended meanwhile
    with listening(path, backlog=16) as server:
        log(f"ready: {path}")
        server.settimeout(LOOK)
        while not again.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(10)
                with suppress(OSError, Fault):
                    _accept(connection, directory, slots, server, log)
        log("becomes the program that is there now")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        keep_listening(server)
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606


def _accept(
    connection: socket.socket,
    directory: Path,
    slots: Sequence[int],
    server: socket.socket,
    log: Log,
) -> None:
    if connection.recv(len(ROOM), socket.MSG_PEEK) == ROOM:
        connection.sendall(_room(directory, slots))
        return
    data, fds = receive_descriptors(connection, 4)
    try:
        if data == GO and os.fork() == 0:
            server.close()
            _serve(fds, directory, slots, log)
        connection.sendall(b"started\n" if data == GO else b"refused\n")
    finally:
        for fd in fds:
            os.close(fd)


def _room(directory: Path, slots: Sequence[int]) -> bytes:
    """What is told to who asks for it: see `engine.WorkerRoom`."""
    usage = shutil.disk_usage(directory)
    number = len(blocks.slots(directory, slots))
    told = {"directory": str(directory), "slots": number, "free": usage.free, "size": usage.total}
    return json.dumps({**told, "bases": older_bases(directory)}).encode()


def _serve(fds: list[int], directory: Path, slots: Sequence[int], log: Log) -> None:
    """In the child: one order, then the end of this process."""
    order_fd, result_fd, log_fd, lock_fd = fds
    code = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.dup2(log_fd, 2)
        with os.fdopen(order_fd, "rb") as order, os.fdopen(result_fd, "wb") as result:
            done = work(directory, order, result, slots=slots, lock_fd=lock_fd, log=log)
            code = 0 if done else 4
    except Cancelled:
        code = 5
    except BaseException as error:
        os.write(log_fd, f"worker: {error!r}\n".encode())
        log(f"worker: {error!r}", priority=ERROR)
    finally:
        sys.stderr.flush()
        os._exit(code)
