"""A worker behind the real socket engine that answers with canned results, without a sandbox.

Its attempts are threads of the test's process: they outlive a daemon that is killed, hold the
attempt's lock as a real worker does, and can be held at any point by the test. The source
packages and `.deb`s are real ones, made in milliseconds; what they contain is not the package's.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, tarsafe
from invirtibuilder.engine import GO, receive_descriptors
from invirtibuilder.errors import Blame, MachineFault, Reason
from invirtibuilder.model import without_epoch
from invirtibuilder.order import Manifest, Order, ResultWriter, read_order
from invirtibuilder.run import run
from tests.support.debs import Binary, checksums, deb, upload

PATIENCE = 120.0
"""Seconds after which anything that a test waits for counts as never coming."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One order at a worker: its content in `inputs`, room for files in `folder`."""

    order: Order
    inputs: Path
    folder: Path
    stopped: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker gives back."""

    files: Sequence[Path] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    ok: bool = True
    blame: Blame = Blame.PACKAGE
    reasons: tuple[Reason, ...] = ()


class Lost(Exception):
    """Raised by an answerer: the worker ends without a result."""


Answerer = Callable[[Work], Answer]


def export(work: Work) -> Answer:
    """A native source package of the order's name and version, of the commit's real tree."""
    content = work.order.content
    repository = work.folder / "repository"
    run(["git", "init", "--quiet", "--bare", repository])
    bundle = work.inputs / "repository.bundle"
    run(["git", "fetch", "--quiet", bundle, "refs/export/commit:refs/heads/it"], cwd=repository)
    tree = run(["git", "rev-parse", "refs/heads/it^{tree}"], cwd=repository).text
    package, version = content["package"], content["version"]
    folder = work.folder / "source"
    text = run(["git", "show", "refs/heads/it:debian/control"], cwd=repository).text
    binaries = [Binary(name=name) for name in re.findall(r"^Package: (\S+)", text, re.M)]
    changes = upload(folder, package, version, binaries=binaries, content=content["commit"])
    dsc = changes.with_suffix(".dsc")
    listed = debchanges.parse_dsc(dsc.read_bytes())
    report = {"ok": True, "tree": tree, "orig_from": {}, "differences": []}
    return Answer(files=[dsc, *(folder / f.name for f in listed.files)], report=report)


def build(work: Work) -> Answer:
    """The binary packages that the order's `.dsc` names, and a `.buildinfo` of them."""
    dsc = debchanges.parse_dsc((work.inputs / work.order.content["dsc"]).read_bytes())
    return built(work.folder, dsc.source, dsc.version, [Binary(name=n) for n in dsc.binaries])


def built(
    folder: Path, source: str, version: str, binaries: Sequence[Binary], content: str = ""
) -> Answer:
    """A result of a build with these binary packages, which have a file of `content`."""
    debs = [deb(folder, binary, source, version, content) for binary in binaries]
    info = buildinfo(folder, source, version, debs)
    return Answer(files=[*debs, info], report={"debs": dict(map(control, debs)), "problems": []})


def buildinfo(folder: Path, source: str, version: str, debs: Sequence[Path]) -> Path:
    """The `.buildinfo` of these files."""
    path = folder / f"{source}_{without_epoch(version)}_amd64.buildinfo"
    names = " ".join(sorted({d.name.partition("_")[0] for d in debs}))
    path.write_text(
        f"Format: 1.0\nSource: {source}\nBinary: {names}\nArchitecture: all\nVersion: {version}\n"
        + checksums(debs).partition("Files:")[0]
        + "Build-Architecture: amd64\nInstalled-Build-Depends:\n dpkg (= 1.21)\n"
    )
    return path


def control(path: Path) -> tuple[str, dict[str, str]]:
    """A `.deb`'s name and the fields that a worker reports of it."""
    fields = ("Package", "Source", "Version", "Architecture", "Section", "Priority")
    form = "".join(f"${{{name}}}\\n" for name in fields)
    values = run(["dpkg-deb", "--show", "--showformat", form, path]).out.decode().split("\n")
    return path.name, dict(zip(fields, values, strict=False))


def failing(code: str, message: str, blame: Blame = Blame.PACKAGE) -> Answerer:
    """A worker that did the order and found it wrong."""
    reasons = (Reason(code=code, message=message),)
    return lambda _work: Answer(ok=False, blame=blame, reasons=reasons)


def lost(_work: Work) -> Answer:
    """A worker that dies."""
    raise Lost


@dataclass
class Held:
    """An order that is being held."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Until a worker has the order."""
        assert self.reached.wait(PATIENCE), "no order has arrived"


class CannedWorker:
    """Serves a socket as `invirtibuilder worker --listen` does; `answers` are by kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answerer] = {"export": export, "build": build}
        self.orders: list[Order] = []
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def serving(self) -> Iterator[CannedWorker]:
        """Take orders; afterwards fail if an answerer failed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(str(self.path))
            server.listen(16)
            server.settimeout(0.1)
            listener = threading.Thread(target=self._listen, args=(server,))
            listener.start()
            try:
                yield self
            finally:
                self._stop.set()
                for thread in (listener, *self._threads):
                    thread.join(PATIENCE)
        assert not self.errors, self.errors

    @contextlib.contextmanager
    def held(self, kind: str) -> Iterator[Held]:
        """Orders of this kind are taken, and answered when released (or at the end)."""
        held, answer = Held(), self.answers[kind]

        def hold(work: Work) -> Answer:
            held.reached.set()
            while not (held.released.wait(0.02) or self._stop.is_set()):
                if work.stopped():
                    reasons = (Reason(code="cancelled", message="stopped"),)
                    return Answer(ok=False, blame=Blame.REQUEST, reasons=reasons)
            return answer(work)

        self.answers[kind] = hold
        try:
            yield held
        finally:
            held.released.set()
            self.answers[kind] = answer

    def _listen(self, server: socket.socket) -> None:
        while not self._stop.is_set():
            # Who only looks whether somebody is there sends nothing.
            with contextlib.suppress(TimeoutError, MachineFault):
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(PATIENCE)
                    data, fds = receive_descriptors(connection, 4)
                    assert data == GO
                    thread = threading.Thread(target=self._serve, args=(fds,))
                    self._threads.append(thread)
                    thread.start()
                    # A daemon that was killed does not hear it.
                    with contextlib.suppress(OSError):
                        connection.sendall(b"started\n")

    def _serve(self, fds: list[int]) -> None:
        order_fd, result_fd, log_fd, lock_fd = fds
        try:
            with (
                os.fdopen(order_fd, "rb") as order,
                os.fdopen(result_fd, "wb") as result,
                os.fdopen(log_fd, "w") as log,
                tempfile.TemporaryDirectory(prefix="canned-") as folder,
            ):
                self._work(order, result, log, Path(folder), lock_fd)
        except Lost:
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            # The lock goes last: a free lock means that the result is whole, or never will be.
            os.close(lock_fd)

    def _work(self, stream: Any, result: Any, log: Any, folder: Path, lock_fd: int) -> None:
        order = read_order(stream)
        self.orders.append(order)
        log.write(f"order {order.kind} {order.attempt}\n")
        stream.seek(0)
        inputs = folder / "in"
        for name, _, content in tarsafe.members(stream, tarsafe.Limits()):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())
        inputs.mkdir(exist_ok=True)
        made = folder / "made"
        made.mkdir()
        answer = self.answers[order.kind](
            Work(
                order=order,
                inputs=inputs,
                folder=made,
                stopped=lambda: os.fstat(lock_fd).st_size > 0,
            )
        )
        writer = ResultWriter(result)
        for path in answer.files:
            with path.open("rb") as content:
                writer.add(path.name, path.stat().st_size, content)
        writer.finish(
            Manifest(
                kind=order.kind,
                attempt=order.attempt,
                ok=answer.ok,
                files=tuple(writer.files),
                blame=answer.blame,
                reasons=answer.reasons,
                environment={"base": "0" * 64},
                report=answer.report,
            )
        )
