"""The line against hostile results, crashes between two steps, and broken things on disk."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import config, files, hosting, model, pipeline
from invirtibuilder.answers import Answers
from invirtibuilder.apt.publications import Publications
from invirtibuilder.cli import init
from invirtibuilder.daemon import Daemon, make_context
from invirtibuilder.engine import Attempt, SocketEngine
from invirtibuilder.errors import Blame, MachineFault, PackageFault, Reason
from invirtibuilder.jobs import Job
from invirtibuilder.order import Manifest, Order, ResultWriter, read_order
from invirtibuilder.pipeline import advance
from invirtibuilder.sandbox import layers
from invirtibuilder.sandbox.ids import Ids
from invirtibuilder.sandbox.userns import upper_of
from invirtibuilder.spool import Request, Spool, local_principal
from invirtibuilder.stages import orders, publish
from invirtibuilder.stages.build import _published_before
from invirtibuilder.stages.context import Stopping
from invirtibuilder.states import State
from tests.support import debs
from tests.support.gitwork import Work

ME = local_principal(os.geteuid())
Change = Callable[[dict[str, Any]], None]


@dataclasses.dataclass
class CannedEngine:
    """A worker that answers at once; `change` may spoil the report of a build."""

    version: str = "1.0"
    change: Change = lambda report: None
    reasons: tuple[Reason, ...] = ()
    hang: bool = False
    extra: int = 0
    held: list[int] = dataclasses.field(default_factory=list)

    def check(self) -> None:
        pass

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
        with attempt.order.open("rb") as stream:
            order = read_order(stream)
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
                    environment={"base": "0" * 64},
                    report=report,
                )
            )

    def _do(self, order: Order, folder: Path, writer: ResultWriter) -> dict[str, Any]:
        if self.reasons:
            return {}
        content = order.content
        source, version = content["package"], content["version"]
        debs.upload(folder, source, version)
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
            self.work[name] = Work.init(Path(tempfile.mkdtemp()) / "work", repository.path)
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


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="line-") as name:
        directory = Path(name)
        key = init._key(directory / "gnupg", "test")
        text = init.TEMPLATE.format(
            name="test", key=key, suite="bookworm", architecture="amd64", principal=ME
        )
        (directory / "invirtibuilder.yaml").write_text(text)
        site = config.load(directory / "invirtibuilder.yaml")
        hosting.ensure_site(site)
        context = make_context(site)
        for pocket in site.pockets.values():
            hosting.ensure_pocket(context, pocket)
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
    shutil.rmtree(directory)


@pytest.fixture
def daemon(line: Line) -> Iterator[Daemon]:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    made = Daemon(
        line.site, lambda text: line.__dict__.setdefault("log", []).append(text), drain=True
    )
    made._context = line.context
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def states(line: Line) -> list[str]:
    return [str(job.status.state) for job in line.context.jobs.all()]


# Jobs on disk.


def test_the_line_publishes(line: Line) -> None:
    line.package("hello")
    job = line.run(line.job("staging", "hello"))
    assert job.status.state == State.PUBLISHED, job.status
    assert line.context.repository("hello").ref("refs/tags/debian/1.0")


def test_a_cancel_between_two_writes_of_the_line_is_kept(line: Line) -> None:
    """The main thread cancels while the job's own thread is between reading and writing."""
    job = line.job("staging", "hello")
    job.move(State.RUNNING)
    stale = job.status
    job.ask_cancel("ada@EXAMPLE.ORG")
    job._write(dataclasses.replace(stale, stage="export"))
    assert job.cancel_asked == "ada@EXAMPLE.ORG"


def test_a_cancel_does_not_bring_a_job_back_to_life(line: Line) -> None:
    job = line.job("staging", "hello")
    job.move(State.RUNNING)
    other = Job(job.directory)
    before = other.status
    job.move(State.FAILED)
    assert before.state == State.RUNNING
    other.ask_cancel("ada@EXAMPLE.ORG")
    assert job.status.state == State.FAILED


@pytest.mark.parametrize("spoil", ["state.json", "request.json", "empty"])
def test_one_unreadable_job_does_not_stop_the_others(
    line: Line, daemon: Daemon, spoil: str
) -> None:
    broken = line.job("staging", "hello")
    if spoil == "empty":
        shutil.rmtree(broken.directory)
        broken.directory.mkdir()
    else:
        (broken.directory / spoil).write_text("{")
    line.package("hello")
    good = line.job("staging", "hello")
    daemon.run()
    assert good.status.state == State.PUBLISHED


def test_very_many_reasons_leave_a_job_readable(line: Line, daemon: Daemon) -> None:
    """4 MiB is the limit of what is read back."""
    line.package("hello")
    text = "\U000e0001" * 8000
    line.engine.reasons = tuple(Reason(code="x", message=text) for _ in range(50))
    job = line.job("staging", "hello")
    daemon.run()
    assert job.status.state == State.FAILED
    assert job.status.reasons
    event = next(line.site.events.glob(f"{job.id}/*-failed.json"))
    assert files.read_json(event)["state"] == "failed"


def test_many_unfit_packages_leave_a_job_readable(line: Line, daemon: Daemon) -> None:
    line.package("hello")

    def many(report: dict[str, Any]) -> None:
        if "debs" in report:
            (fields,) = report["debs"].values()
            fields["Source"] = "x" * 1000
            for number in range(1500):
                report["debs"][f"x{number}_1_all.deb"] = {**fields, "Package": f"x{number}"}

    line.engine.change = many
    line.engine.extra = 1500
    job = line.job("staging", "hello")
    daemon.run()
    assert job.status.state == State.FAILED
    assert job.status.blame == Blame.PACKAGE


@pytest.mark.parametrize(
    "value",
    [[], {"x.deb": "text"}, {"x.deb": {"Package": ["hello"], "Version": 1}}, {"x.deb": None}, 5],
)
def test_a_report_of_other_types_is_the_packages_fault(line: Line, value: object) -> None:
    line.package("hello")

    def spoil(report: dict[str, Any]) -> None:
        if "debs" in report:
            report["debs"] = value

    line.engine.change = spoil
    job = line.run(line.job("staging", "hello"))
    assert (job.status.state, job.status.blame) == (State.FAILED, Blame.PACKAGE)


def test_what_export_reports_is_bounded_in_the_record(line: Line) -> None:
    line.package("hello")

    def spoil(report: dict[str, Any]) -> None:
        if "differences" in report:
            report["differences"] = [*("d" * 500 for _ in range(5000)), {"a": [1.5]}]
            report["orig_from"] = {f"o{n}": "x" * 1000 for n in range(2000)}

    line.engine.change = spoil
    job = line.run(line.job("staging", "hello"))
    record = line.context.superproject.record("staging", "hello")
    assert job.status.state == State.PUBLISHED
    assert len(json.dumps(record)) < 400_000


# The queue.


def test_the_daemon_may_take_an_entry_before_its_writer_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the submitter hears `try again later` of what was accepted."""
    spool = Spool(tmp_path)
    spool.create()
    link = os.link

    def link_and_take(*args: Any, **kwargs: Any) -> None:
        link(*args, **kwargs)
        for entry in spool.entries(frozenset()):
            entry.path.unlink()

    monkeypatch.setattr(os, "link", link_and_take)
    spool.put(Request.new("submit", ["dev", "hello", "main"], principal=ME, via="test"))


@pytest.mark.parametrize("name", ["x" * 255, "bad\udcff.json", "line\nbreak", "directory/"])
def test_no_entry_stops_the_daemon(line: Line, daemon: Daemon, name: str) -> None:
    new = line.site.queue / "new"
    for _ in range(2):
        if name.endswith("/"):
            (new / name).mkdir()
            (new / name / "file").touch()
        else:
            (new / name).write_text("{}")
        daemon.take_up()
    assert not list(new.iterdir())


# Publishing.


def test_a_tag_that_came_in_between_is_not_published_as_ours(line: Line) -> None:
    """Another pocket published the version from another commit while this job waited."""
    work = line.package("hello")
    job = line.job("staging", "hello")
    run_until(line, job, "publish")
    other = work.commit("another")
    assert work.push("HEAD:refs/heads/other").code == 0
    line.context.repository("hello").set_ref("refs/tags/debian/1.0", other, None)
    line.run(job)
    assert job.status.state == State.REFUSED, job.status
    assert line.context.superproject.pin("staging", "hello") is None


def run_until(line: Line, job: Job, stage: str) -> None:
    """Take a job up to, and not including, a stage."""

    def stop() -> bool:
        names = [name for name, _ in pipeline.STAGES]
        return job.fact(names[names.index(stage) - 1]) is not None

    with pytest.raises(Stopping):
        advance(dataclasses.replace(line.context, stopping=stop), job)


@pytest.mark.parametrize("ref", ["refs/tags/debian", "refs/tags/debian/1.0/x"])
def test_a_ref_in_the_way_of_the_tag_is_found_before_the_commit_point(line: Line, ref: str) -> None:
    """An import, or an older tag format, may have left one; afterwards it would stay for ever."""
    work = line.package("hello")
    line.context.repository("hello").set_ref(ref, work.head, None)
    job = line.run(line.job("staging", "hello"))
    assert job.status.state in (State.REFUSED, State.FAILED)
    assert line.context.superproject.pin("staging", "hello") is None
    line.package("other")
    assert line.run(line.job("staging", "other")).status.state == State.PUBLISHED


def test_a_kept_ref_in_the_way_is_found_before_the_commit_point(line: Line) -> None:
    work = line.package("hello")
    older = work.commit("older")
    assert work.push("HEAD:refs/heads/older").code == 0
    repository = line.context.repository("hello")
    repository.keep("refs/invirtibuilder/staging/1.0", older)
    job = line.run(line.job("staging", "hello", work.git("rev-parse", "HEAD~1").text))
    assert job.status.state in (State.REFUSED, State.FAILED)
    assert line.context.superproject.pin("staging", "hello") is None
    publish.recover(line.context, line.site.pockets["staging"])


def test_after_the_commit_point_a_job_waits_instead_of_failing(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.package("hello")
    finish = publish._finish
    monkeypatch.setattr(publish, "_finish", broken)
    job = line.run(line.job("staging", "hello"))
    assert line.context.superproject.pin("staging", "hello")
    assert job.status.state == State.WAITING
    monkeypatch.setattr(publish, "_finish", finish)
    assert line.run(job).status.state == State.PUBLISHED
    assert len(list(line.site.events.glob(f"{job.id}/*-published.json"))) == 1
    assert line.context.superproject.trailers(line.context.superproject.tip("staging") or "")


def broken(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(5, "the disk is ill")


def test_what_happens_after_publishing_does_not_undo_the_verdict(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.package("hello")
    monkeypatch.setattr(Publications, "prune", broken)
    assert line.run(line.job("staging", "hello")).status.state == State.PUBLISHED


def test_a_published_job_stays_published_when_another_came_between(line: Line) -> None:
    """Killed after the commit point; an older job of the same package runs first then."""
    work = line.package("hello")
    first = line.job("staging", "hello")
    run_until(line, first, "publish")
    publish.publish(line.context, first)  # and killed before it wrote its fact
    recovered(line, first)
    line.package("hello", "2.0")
    assert work
    second = line.run(line.job("staging", "hello"))
    assert second.status.state == State.PUBLISHED
    assert line.run(first).status.state == State.PUBLISHED


def recovered(line: Line, job: Job) -> None:
    """As if the kill had been in `_finish`: the intent is still there."""
    superproject = line.context.superproject
    commit = superproject.tip("staging")
    assert commit
    intent = {
        "job": job.id,
        "package": job.package,
        "publication": int(superproject.trailers(commit)["Publication"]),
        "commit": commit,
        "parent": None,
        "refs": {},
    }
    pocket = line.site.pockets["staging"]
    files.write_json(line.context.archive(pocket).reprepro.private / publish.INTENT, intent)
    publish.recover(line.context, pocket)


def test_a_first_publication_that_was_cut_off_is_made_again(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    pocket = line.site.pockets["prod"]
    shutil.rmtree(line.site.archive / "prod")
    with monkeypatch.context() as patch:
        patch.setattr(Publications, "switch", broken)
        with pytest.raises(OSError):
            hosting.ensure_pocket(line.context, pocket)
    hosting.ensure_pocket(line.context, pocket)
    assert line.context.archive(pocket).publications.current() is not None


def test_a_failed_publication_leaves_the_store_of_tarballs_alone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = line.job("staging", "hello")
    line.package("hello")
    run_until(line, job, "publish")
    fact = job.need("export")
    orig = job.directory / "source" / "hello_1.0.orig.tar.xz"
    orig.write_bytes(b"of a submission that is not published")
    fact["files"].append({"name": orig.name, "size": orig.stat().st_size, "sha256": "0" * 64})
    job.write_fact("export", fact)
    monkeypatch.setattr(publish, "_transact", refusing)
    line.run(job)
    assert job.status.state == State.FAILED
    assert not list(line.site.origs.iterdir())


def refusing(*_args: Any, **_kwargs: Any) -> None:
    raise PackageFault("refused", code="reprepro-refused")


@pytest.mark.parametrize("where", ["superproject", "tag", "packed-refs"])
def test_a_lock_that_a_killed_git_left_does_not_last(line: Line, where: str) -> None:
    line.package("hello")
    path = {
        "superproject": line.site.superproject / "refs/heads/staging.lock",
        "tag": line.context.repository("hello").path / "refs/tags/debian/1.0.lock",
        "packed-refs": line.context.repository("hello").path / "packed-refs.lock",
    }[where]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert path.name.endswith(".lock")
    old = time.time() - 3600
    os.utime(path, (old, old))
    assert line.run(line.job("staging", "hello")).status.state == State.PUBLISHED


# Builds that were published before.


@pytest.mark.parametrize(
    "difference",
    [
        {"architectures": ("arm64",)},
        {"mirror": "http://other.invalid/debian"},
        {"isolation": "vm"},
        {"components": ("main", "contrib")},
    ],
)
def test_artifacts_are_reused_only_between_like_pockets(
    line: Line, difference: dict[str, Any]
) -> None:
    line.package("hello")
    assert line.run(line.job("staging", "hello")).status.state == State.PUBLISHED
    again = line.job("prod", "hello")
    run_until(line, again, "build")
    prod = line.site.pockets["prod"]
    assert _published_before(line.context, again, prod)
    other = dataclasses.replace(prod, **difference)
    assert not _published_before(line.context, again, other)


# Workers.


def test_a_frozen_worker_cannot_hold_a_cancelled_job(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "GRACE", 0.5, raising=False)
    line.package("hello")
    line.engine.hang = True
    job = line.job("staging", "hello")
    thread = threading.Thread(target=line.run, args=(job,), daemon=True)
    thread.start()
    time.sleep(0.5)
    job.ask_cancel(ME)
    thread.join(10)
    frozen = thread.is_alive()
    for fd in line.engine.held:
        os.close(fd)
    thread.join(10)
    assert not frozen
    assert job.status.state == State.CANCELLED


def test_a_frozen_worker_is_a_lost_attempt_in_the_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "longest", lambda limits: 0.3, raising=False)
    line.package("hello")
    line.engine.hang = True
    job = line.job("staging", "hello")
    thread = threading.Thread(target=line.run, args=(job,), daemon=True)
    thread.start()
    thread.join(10)
    frozen = thread.is_alive()
    for fd in line.engine.held:
        os.close(fd)
    thread.join(10)
    assert not frozen
    assert (job.status.state, job.status.blame) == (State.FAILED, Blame.MACHINE)


def test_a_worker_that_is_not_there_is_waited_for(line: Line) -> None:
    line.package("hello")
    absent = SocketEngine(line.site.directory / "no-such-worker.sock")
    context = dataclasses.replace(line.context, engines=dict.fromkeys(line.context.engines, absent))
    job = line.job("staging", "hello")
    advance(context, job)
    assert job.status.state == State.WAITING
    assert line.run(job).status.state == State.PUBLISHED


@pytest.mark.parametrize("what", ["cancelled", "no worker", "disk"])
def test_a_base_refresh_ends_in_a_state(
    line: Line, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    job = line.context.jobs.create(
        Request.new("base-refresh", ["staging"], principal=ME, via="test")
    )
    if what == "cancelled":
        job.ask_cancel(ME)
    elif what == "no worker":
        absent = SocketEngine(line.site.directory / "no-such-worker.sock")
        daemon._context = dataclasses.replace(
            line.context, engines=dict.fromkeys(line.context.engines, absent)
        )
    else:
        monkeypatch.setattr("invirtibuilder.stages.base.carry_out", broken)
    daemon._advance(job)
    wanted = {"cancelled": State.CANCELLED, "no worker": State.WAITING, "disk": State.FAILED}
    assert job.status.state == wanted[what]


# The socket.


def test_idle_clients_neither_stay_nor_keep_the_daemon_from_ending(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invirtibuilder.answers.DEADLINE", 2.0)
    path = line.site.directory / "run" / "test.sock"
    stop = threading.Event()
    server = Answers(path, line.context, frozenset())
    thread = threading.Thread(target=server.serve, args=(stop,), daemon=True)
    thread.start()
    until(path.exists)
    clients = []
    for _ in range(20):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        clients.append(client)
    started = time.monotonic()
    while time.monotonic() < started + 3:  # slower than the deadline, but never idle
        for client in clients:
            try:
                client.send(b"{")
            except OSError:
                pass
        time.sleep(0.2)
    stop.set()
    thread.join(3)
    assert not thread.is_alive()
    with pytest.raises(OSError):
        for _ in range(5):
            clients[0].send(b"{")
            time.sleep(0.1)
    for client in clients:
        client.close()


def until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


# Layers.


def test_a_layer_whose_removal_was_cut_off_can_be_made_again(
    ids: Ids, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)

    def make() -> None:
        with layers.made(tmp_path, "name", ids) as tree:
            upper_of(tree).mkdir(parents=True)

    make()
    with monkeypatch.context() as patch:
        patch.setattr(layers, "discard", broken)
        with pytest.raises(OSError):
            layers._discard_free(tmp_path / "name", ids)
    make()
    with layers.held(tmp_path, "name") as layer:
        assert layer
    layers.collect(tmp_path, ids)
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    layers.discard(tmp_path / "name", ids)


# A daemon on an ill machine.


def full(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_cancel_after_the_commit_point_comes_too_late(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.package("hello")
    with monkeypatch.context() as patch:
        patch.setattr(publish, "_finish", broken)
        job = line.run(line.job("staging", "hello"))
        job.ask_cancel(ME)
    assert line.run(job).status.state == State.PUBLISHED


def test_a_disk_too_full_for_states_does_not_stop_the_daemon(
    line: Line, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invirtibuilder.daemon.ILL", 0.2)
    line.package("hello")
    job = line.job("staging", "hello")
    real = Job._write
    left = [3]

    def write(self: Job, status: Any) -> None:
        if left[0]:
            left[0] -= 1
            full()
        real(self, status)

    monkeypatch.setattr(Job, "_write", write)
    daemon.run()
    assert job.status.state == State.PUBLISHED


def test_entries_wait_for_a_full_disk(
    line: Line, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.package("hello")
    daemon._spool.put(Request.new("submit", ["staging", "hello", "main"], principal=ME, via="t"))
    with monkeypatch.context() as patch:
        patch.setattr("invirtibuilder.jobs.Jobs.create", full)
        daemon.take_up()
    assert len(list(daemon._spool.new.iterdir())) == 1
    daemon.run()
    assert states(line) == ["published"]


def test_a_program_that_finds_the_disk_full_makes_the_job_wait(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_args: Any, **_kwargs: Any) -> None:
        raise MachineFault("reprepro failed: No space left on device")

    line.package("hello")
    with monkeypatch.context() as patch:
        patch.setattr(publish, "_transact", told)
        job = line.run(line.job("staging", "hello"))
        assert job.status.state == State.WAITING
    assert line.run(job).status.state == State.PUBLISHED


def test_a_clock_that_went_back_does_not_hold_a_job(line: Line, daemon: Daemon) -> None:
    line.package("hello")
    job = line.job("staging", "hello")
    job.move(State.RUNNING)
    job.move(State.WAITING, wake=datetime(2999, 1, 1, tzinfo=UTC))
    daemon.run()
    assert job.status.state == State.PUBLISHED
