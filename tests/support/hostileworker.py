"""A worker's account in hostile hands: a program in the worker's place, with what that is given.

    python3 -m tests.support.hostileworker FOLDER          serves FOLDER/socket
    python3 -m tests.support.hostileworker FOLDER TARGETS  tries the probes, and prints them

What it does with each order is said in FOLDER/attack; FOLDER/findings is what it got.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from invirtibuilder.engine import receive_descriptors
from invirtibuilder.errors import MachineFault
from invirtibuilder.order import read_order
from tests.support.cannedworker import Answer, CannedWorker, Work, build, built, export
from tests.support.debs import Binary

Fds = list[int]


def tried(what: Callable[[], object]) -> str:
    """`done`, or the error that it met."""
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"


PIDFD_OPEN, PIDFD_GETFD = 434, 438
"""System calls' numbers, alike on all architectures."""


def take(pid: int, fd: int) -> None:
    """Another process's descriptor. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = libc.syscall(PIDFD_OPEN, pid, 0)
    taken = libc.syscall(PIDFD_GETFD, process, fd, 0) if process >= 0 else -1
    number = ctypes.get_errno()
    for mine in (process, taken):
        if mine >= 0:
            os.close(mine)
    if taken < 0:
        raise OSError(number, os.strerror(number))


def probe(kind: str, target: str) -> str:
    """One thing that no account but a few may do; nothing is changed by it."""
    path = Path(target)

    def made() -> None:
        inner = path / f"probe-{os.getpid()}"
        inner.mkdir()
        inner.rmdir()

    def connected() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(target)

    probes: Mapping[str, Callable[[], object]] = {
        "list": lambda: os.listdir(target),
        "read": path.read_bytes,
        "write": lambda: os.close(os.open(target, os.O_WRONLY)),
        "make": made,
        "connect": connected,
        "signal": lambda: os.kill(int(target), 0),
        "take": lambda: take(*map(int, target.split())),
        "memory": lambda: Path(f"/proc/{target}/environ").read_bytes(),
    }
    return tried(probes[kind])


def _before(name: str, kind: bytes, content: bytes, size: int) -> Callable[[Fds, Path], None]:
    """An honest result with one more member before it; of a link, the content is its target."""

    def attack(fds: Fds, folder: Path) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size
        linked = kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)
        info.linkname = content.decode() if linked else ""
        os.write(fds[1], info.tobuf(tarfile.GNU_FORMAT) + (b"" if linked else content))
        os.write(fds[1], _whole(fds, folder))

    return attack


Change = Callable[[Work, Answer], Answer]


def _whole(fds: Fds, folder: Path, change: Change | None = None) -> bytes:
    """An honest result, which nobody has been given yet."""
    result = Path(tempfile.mkdtemp(dir=folder)) / "result"
    fd = os.open(result, os.O_RDWR | os.O_CREAT, 0o600)
    _honest([os.dup(fds[0]), fd, os.dup(fds[2]), os.dup(fds[3])], folder, change)
    os.lseek(fds[0], 0, os.SEEK_SET)
    return result.read_bytes()


def _honest(fds: Fds, folder: Path, change: Change | None = None) -> None:
    """What a worker gives back, with a change to it."""

    def changed(answer: Callable[[Work], Answer]) -> Callable[[Work], Answer]:
        return lambda work: change(work, answer(work)) if change else answer(work)

    worker = CannedWorker(folder / "none")
    worker.answers = {"export": changed(export), "build": changed(build)}
    worker._serve(fds)
    if worker.errors:
        raise worker.errors[0]


def _changed(change: Change) -> Callable[[Fds, Path], None]:
    return lambda fds, folder: _honest(fds, folder, change)


def _other_binary(work: Work, answer: Answer) -> Answer:
    if work.order.kind != "build":
        return answer
    return built(work.folder / "other", "hello", "1.0", [Binary(name="bash")])


def _other_version(work: Work, answer: Answer) -> Answer:
    if work.order.kind != "build":
        return answer
    return built(work.folder / "other", "hello", "99.0", [Binary(name="hello")])


def _dsc(old: str, new: str) -> Change:
    def change(work: Work, answer: Answer) -> Answer:
        if work.order.kind == "export":
            dsc = answer.files[0]
            text = dsc.read_text()
            assert old in text, text
            dsc.write_text(text.replace(old, new))
        return answer

    return change


def _other_tree(work: Work, answer: Answer) -> Answer:
    if work.order.kind == "export":
        return replace(answer, report={**answer.report, "tree": "1" * 40})
    return answer


def _of_another_attempt(fds: Fds, folder: Path) -> None:
    """A whole result, which says that it is another job's."""
    with os.fdopen(os.dup(fds[0]), "rb") as stream:
        order = read_order(stream)
    os.lseek(fds[0], 0, os.SEEK_SET)
    name = order.attempt.encode()
    os.write(fds[1], _whole(fds, folder).replace(name, b"9" + name[1:]))


def _say(folder: Path, word: str, text: str = "") -> None:
    beside = folder / f".{word}"
    beside.write_text(text)
    beside.rename(folder / word)


def _hear(folder: Path, word: str, seconds: float) -> None:
    """Wait for a word of the test's."""
    end = time.monotonic() + seconds
    while not (folder / word).exists():
        if time.monotonic() > end:
            raise TimeoutError(word)
        time.sleep(0.002)
    (folder / word).unlink()


def _large(work: Work, answer: Answer) -> Answer:
    """What takes a while to be copied."""
    version = next(f for f in answer.files if f.suffix == ".deb").name.split("_")[1]
    content = "honest\n" * (5 << 17)
    return built(work.folder / "large", "hello", version, [Binary(name="hello")], content)


def _rewritten(fds: Fds, folder: Path) -> None:
    """A result of a build, whole when the lock is let go of; at a word its `.deb` is another."""
    with os.fdopen(os.dup(fds[0]), "rb") as stream:
        order = read_order(stream)
    os.lseek(fds[0], 0, os.SEEK_SET)
    if order.kind != "build":
        _honest(fds, folder)
        return
    data = _whole(fds, folder, _large)
    os.write(fds[1], data)
    (folder / "honest.tar").write_bytes(data)
    with tarfile.open(folder / "honest.tar") as tar:
        (deb,) = (member for member in tar.getmembers() if member.name.endswith(".deb"))
    _say(folder, "ready", order.attempt)
    _hear(folder, "go", 60)
    fcntl.flock(fds[3], fcntl.LOCK_UN)
    _hear(folder, "now", 60)
    os.pwrite(fds[1], b"#" * deb.size, deb.offset_data)
    _say(folder, "done")


def _held(fds: Fds, folder: Path) -> None:
    """An order that stays open for as long as the test wants."""
    _say(folder, "held", json.dumps([os.getppid(), os.getpid(), *fds]))
    _hear(folder, "released", 600)
    _honest(fds, folder)


def _flood(which: int) -> Callable[[Fds, Path], None]:
    """More and more of a file, until somebody says stop."""

    def attack(fds: Fds, folder: Path) -> None:
        end = time.monotonic() + 60
        while os.fstat(fds[3]).st_size == 0 and time.monotonic() < end:
            if os.fstat(fds[which]).st_size < 120 << 20:
                os.write(fds[which], b"flood\n" * (1 << 18))
            else:
                time.sleep(0.01)

    return attack


def _terabyte(fds: Fds, folder: Path) -> None:
    os.ftruncate(fds[1], 1 << 40)


def _unlocked(fds: Fds, folder: Path) -> None:
    """The lock is let go of before there is a result, which comes later."""
    fcntl.flock(fds[3], fcntl.LOCK_UN)
    time.sleep(1)
    _honest(fds, folder)


def _grasping(fds: Fds, folder: Path) -> None:
    """Everything that could be done to the open files besides, and then an honest result."""
    names = ("order", "result", "log", "lock")
    found = {}
    for name, fd in zip(names, fds, strict=True):
        for word, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY)):
            again = f"/proc/self/fd/{fd}"
            found[f"{word} {name} anew"] = tried(partial(os.open, again, flags))
        found[f"chmod {name}"] = tried(partial(os.fchmod, fd, 0o666))
        found[f"link {name}"] = tried(partial(os.link, f"/proc/self/fd/{fd}", folder / name))
        if name in ("order", "lock"):
            found[f"truncate {name}"] = tried(partial(os.ftruncate, fd, 0))
            found[f"write {name}"] = tried(partial(os.write, fd, b"x"))
    parent = os.readlink(f"/proc/self/fd/{fds[0]}")  # noqa: PTH115
    found["list the attempt"] = tried(lambda: os.listdir(Path(parent).parent))
    (folder / "findings").write_text(json.dumps(found))
    _honest(fds, folder)


REGULAR = tarfile.REGTYPE
EVIL = "../../../../../../run/hostile/written"
ATTACKS: dict[str, Callable[[Fds, Path], None]] = {
    "nothing at all": lambda fds, folder: None,
    "a link": _before("out/hello_1.0.dsc", tarfile.SYMTYPE, b"/etc/passwd", 0),
    "another name of a file": _before("out/x.dsc", tarfile.LNKTYPE, b"/etc/passwd", 0),
    "a device": _before("out/hello_1.0.dsc", tarfile.BLKTYPE, b"", 0),
    "a pipe": _before("out/hello_1.0.dsc", tarfile.FIFOTYPE, b"", 0),
    "an absolute name": _before("/run/hostile/written", REGULAR, b"x" * 512, 512),
    "a name with dots": _before(f"out/{EVIL}", REGULAR, b"x" * 512, 512),
    "a member of a terabyte": _before("out/hello_1.0.dsc", REGULAR, b"x" * 512, 1 << 40),
    "a terabyte": _terabyte,
    "another attempt's": _of_another_attempt,
    "another binary package": _changed(_other_binary),
    "another version": _changed(_other_version),
    "another source package": _changed(_dsc("Source: hello", "Source: bash")),
    "a source of other files": _changed(_dsc("hello_1.0", EVIL)),
    "another tree": _changed(_other_tree),
    "a result that changes": _rewritten,
    "a log without an end": _flood(2),
    "a result without an end": _flood(1),
    "no lock": _unlocked,
    "grasping": _grasping,
    "an order that stays open": _held,
    "honest": _honest,
}
"""What is done with an order."""


def serve(folder: Path) -> None:
    """Take orders, each in a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(folder / "socket"))
        server.listen(16)
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            # Who only connects sends nothing.
            with connection, suppress(OSError, MachineFault):
                _, fds = receive_descriptors(connection, 4)
                connection.sendall(b"started\n")
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _do(fds, folder)
                for fd in fds:
                    os.close(fd)


def _do(fds: Fds, folder: Path) -> None:
    try:
        ATTACKS[(folder / "attack").read_text()](fds, folder)
    except BaseException as error:
        os.write(2, f"hostile worker: {error!r}\n".encode())
    finally:
        os._exit(0)


def main(argv: list[str]) -> None:
    folder = Path(argv[0])
    tempfile.tempdir = argv[0]
    if len(argv) == 1:
        serve(folder)
    targets: dict[str, Any] = json.loads(argv[1])
    print(json.dumps({name: probe(*words) for name, words in targets.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
