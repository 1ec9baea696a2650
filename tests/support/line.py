"""The pipeline and the daemon in this process, with a worker that answers at once."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import config, files, hosting, model
from invirtibuilder.cli.main import main as invirtibuilder
from invirtibuilder.daemon import Daemon, make_context
from invirtibuilder.engine import Attempt
from invirtibuilder.errors import Blame, Reason
from invirtibuilder.jobs import Job
from invirtibuilder.order import Manifest, Order, ResultWriter, read_order
from invirtibuilder.pipeline import STAGES, advance
from invirtibuilder.spool import Request, local_principal
from invirtibuilder.stages.context import Stopping
from tests.support import debs
from tests.support.gitwork import Work
from tests.support.place import remove

ME = local_principal(os.geteuid())
Change = Callable[[dict[str, Any]], None]


@dataclasses.dataclass
class CannedEngine:
    """A worker that answers at once; `change` may spoil the report of a build."""

    version: str = "1.0"
    change: Change = lambda report: None
    reasons: tuple[Reason, ...] = ()
    blame: Blame = Blame.PACKAGE
    lost: bool = False
    hang: bool = False
    extra: int = 0
    base: str = "0" * 64
    content: str = ""  # of what is made
    asked: list[Order] = dataclasses.field(default_factory=list)
    held: list[int] = dataclasses.field(default_factory=list)

    def check(self) -> list[str]:
        return ["promises less"]

    def start(self, attempt: Attempt) -> None:
        if self.hang:
            fd = os.open(attempt.lock, os.O_RDWR | os.O_CREAT)
            fcntl.flock(fd, fcntl.LOCK_EX)
            attempt.result.touch()
            attempt.log.touch()
            self.held.append(fd)
            return
        attempt.lock.touch()
        attempt.log.write_text("built\n")
        if self.lost:
            attempt.result.touch()
            return
        with attempt.order.open("rb") as stream:
            order = read_order(stream)
        self.asked.append(order)
        with tempfile.TemporaryDirectory() as name, attempt.result.open("wb") as out:
            writer = ResultWriter(out)
            report = self._do(order, Path(name), writer)
            writer.finish(
                Manifest(
                    kind=order.kind,
                    attempt=order.attempt,
                    ok=not self.reasons,
                    files=tuple(writer.files),
                    reasons=self.reasons,
                    blame=self.blame,
                    environment={"base": self.base},
                    report=report,
                )
            )

    def _do(self, order: Order, folder: Path, writer: ResultWriter) -> dict[str, Any]:
        if self.reasons:
            return {}
        content = order.content
        source, version = content["package"], content["version"]
        debs.upload(folder, source, version, content=self.content)
        if order.kind == "export":
            found = [*folder.glob("*.dsc"), *folder.glob("*.tar.xz")]
            report: dict[str, Any] = {"tree": self.tree, "orig_from": {}, "differences": []}
        else:
            (deb,) = folder.glob("*.deb")
            fields = ("Package", "Source", "Version", "Architecture", "Section", "Priority")
            values = (source, "", version, "all", "misc", "optional")
            report = {"debs": {deb.name: dict(zip(fields, values, strict=True))}}
            info = folder / f"{source}_{model.without_epoch(version)}_amd64.buildinfo"
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            info.write_text(
                f"Format: 1.0\nSource: {source}\nBinary: {source}\nArchitecture: all\n"
                f"Version: {version}\nChecksums-Sha256:\n"
                f" {digest} {deb.stat().st_size} {deb.name}\n"
            )
            found = [deb, info]
        self.change(report)
        for number in range(self.extra if order.kind == "build" else 0):
            writer.add(f"x{number}_1_all.deb", 1, io.BytesIO(b"x"))
        for path in found:
            data = path.read_bytes()
            writer.add(path.name, len(data), io.BytesIO(data))
        return report

    tree: str = ""


class Line:
    """A site, its context with a canned worker, and packages in git."""

    def __init__(self, directory: Path) -> None:
        self.site = config.load(directory / "invirtibuilder.yaml")
        self.engine = CannedEngine()
        made = make_context(self.site)
        engines = dict.fromkeys(made.engines, self.engine)
        self.context = dataclasses.replace(made, engines=engines)
        self.work: dict[str, Work] = {}

    def package(self, name: str, version: str = "1.0", folder: Path | None = None) -> Work:
        if name not in self.work:
            repository = hosting.create_package(self.site, name)
            self.work[name] = Work.init(
                Path(tempfile.mkdtemp(dir=self.site.directory)) / "work", repository.path
            )
        work = self.work[name]
        (work.path / "debian/source").mkdir(parents=True, exist_ok=True)
        changelog = (
            f"{name} ({version}) unstable; urgency=medium\n\n  * Test.\n\n"
            " -- Ada Test <ada@example.org>  Fri, 02 Jan 2026 03:04:05 +0000\n"
        )
        work.commit(
            f"version {version}",
            **{"debian/changelog": changelog, "debian/source/format": "3.0 (native)\n"},
        )
        assert work.push("main").code == 0
        self.engine.tree = work.git("rev-parse", "HEAD^{tree}").text
        return work

    def job(self, pocket: str, package: str, commit: str = "main") -> Job:
        request = Request.new("submit", [pocket, package, commit], principal=ME, via="test")
        return self.context.jobs.create(request)

    def run(self, job: Job) -> Job:
        advance(self.context, job)
        return job

    def until(self, job: Job, stage: str) -> Job:
        """Take a job up to, and not including, a stage."""
        names = [name for name, _ in STAGES]
        before = names[names.index(stage) - 1]
        stopping = dataclasses.replace(self.context, stopping=lambda: job.fact(before) is not None)
        with pytest.raises(Stopping):
            advance(stopping, job)
        return job

    def together(self, *jobs: Job) -> None:
        """Have jobs that are ready to be published wait for their pocket's lock at once."""
        pocket = self.site.pockets[jobs[0].pocket]
        threads = [threading.Thread(target=self.run, args=(job,)) for job in jobs]
        with files.locked(self.context.archive(pocket).reprepro.lock):
            for thread in threads:
                thread.start()
            end = time.monotonic() + 30
            while len(self.context.ready.of(pocket.name)) < len(jobs):
                assert time.monotonic() < end
                time.sleep(0.01)
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="line-") as name:
        directory = Path(name)
        arguments = ["init", str(directory), "--name", "test", "--suite", "bookworm"]
        assert invirtibuilder(arguments) == 0
        yield directory


@pytest.fixture
def line(made_once: Path, tmp_path: Path) -> Iterator[Line]:
    directory = Path(tempfile.mkdtemp(prefix="site-"))
    shutil.copytree(
        made_once,
        directory,
        symlinks=True,
        dirs_exist_ok=True,
        ignore=lambda d, names: [n for n in names if n.startswith("S.")],
    )
    yield Line(directory)
    subprocess.run(["gpgconf", "--homedir", directory / "gnupg", "--kill", "all"], check=False)
    remove(directory)


@pytest.fixture
def daemon(line: Line) -> Iterator[Daemon]:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    made = Daemon(
        line.site,
        lambda text, *_, **__: line.__dict__.setdefault("log", []).append(text),
        drain=True,
    )
    made._context = line.context
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def states(line: Line) -> list[str]:
    return [str(job.status.state) for job in line.context.jobs.all()]


def broken(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(5, "the disk is ill")
