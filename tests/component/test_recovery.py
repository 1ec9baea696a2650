"""Crashes and surprises between two steps: publishing, workers, the socket, layers."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import files, hosting, pipeline, runner
from invirtibuilder.answers import Answers
from invirtibuilder.apt.publications import Publications
from invirtibuilder.engine import Attempt, SocketEngine
from invirtibuilder.errors import Blame, PackageFault
from invirtibuilder.jobs import Job
from invirtibuilder.pipeline import advance
from invirtibuilder.sandbox import layers
from invirtibuilder.sandbox.ids import Ids
from invirtibuilder.sandbox.userns import upper_of
from invirtibuilder.spool import Request
from invirtibuilder.stages import again, finish, orders, publish, transaction
from invirtibuilder.stages.context import Stopping
from invirtibuilder.states import State
from tests.support.line import ME, Line, broken
from tests.support.listening import listens
from tests.support.place import until

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
    transaction.recover(line.context, line.site.pockets["staging"])


def test_after_the_commit_point_a_job_waits_instead_of_failing(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.package("hello")
    real = finish._finish
    monkeypatch.setattr(finish, "_finish", broken)
    job = line.run(line.job("staging", "hello"))
    assert line.context.superproject.pin("staging", "hello")
    assert job.status.state == State.WAITING
    monkeypatch.setattr(finish, "_finish", real)
    assert line.run(job).status.state == State.PUBLISHED
    assert len(list(line.site.events.glob(f"{job.id}/*-published.json"))) == 1
    assert line.context.superproject.trailers(line.context.superproject.tip("staging") or "")


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
    change = {"package": job.package, "job": job.id, "commit": commit, "refs": {}}
    intent = {
        "publication": int(superproject.trailers(commit)["Publication"]),
        "commit": commit,
        "parent": None,
        "jobs": [{"job": job.id, "changes": [change]}],
    }
    pocket = line.site.pockets["staging"]
    files.write_json(line.context.archive(pocket).reprepro.private / finish.INTENT, intent)
    transaction.recover(line.context, pocket)


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
    monkeypatch.setattr(transaction, "_fill", refusing)
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
    job = line.job("prod", "hello")
    run_until(line, job, "export")
    assert again.taken(line.context, job)
    other = dataclasses.replace(line.site.pockets["prod"], **difference)
    site = dataclasses.replace(line.site, pockets={**line.site.pockets, "prod": other})
    assert again.taken(dataclasses.replace(line.context, site=site), job) is None


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
    until(lambda: line.engine.held)
    job.ask_cancel(ME)
    thread.join(60)
    frozen = thread.is_alive()
    for fd in line.engine.held:
        os.close(fd)
    thread.join(60)
    assert not frozen
    assert job.status.state == State.CANCELLED


def test_a_cancel_that_comes_before_the_adoption_stops_the_build(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon was down when it was asked for: the build is over before its job is."""
    monkeypatch.setattr(orders, "GRACE", 0.5)
    line.package("hello")
    line.engine.hang = True
    job = line.job("staging", "hello")
    started = dataclasses.replace(line.context, stopping=lambda: bool(line.engine.held))
    with pytest.raises(Stopping):
        advance(started, job)
    attempt = Attempt(job.directory / "attempts/export-1")
    assert attempt.running
    job.ask_cancel(ME)
    line.run(job)
    assert attempt.lock.read_text() == "cancel\n"
    for fd in line.engine.held:
        os.close(fd)
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
    thread.join(60)
    frozen = thread.is_alive()
    for fd in line.engine.held:
        os.close(fd)
    thread.join(60)
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
    line: Line, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    context = line.context
    job = line.context.jobs.create(
        Request.new("base-refresh", ["staging"], principal=ME, via="test")
    )
    if what == "cancelled":
        job.ask_cancel(ME)
    elif what == "no worker":
        absent = SocketEngine(line.site.directory / "no-such-worker.sock")
        context = dataclasses.replace(context, engines=dict.fromkeys(context.engines, absent))
    else:
        monkeypatch.setattr("invirtibuilder.stages.base.carry_out", broken)
    runner.take(context, job)
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
    thread = threading.Thread(target=server.serve, args=(stop, lambda: None), daemon=True)
    thread.start()
    until(lambda: listens(path))
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
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(OSError):
        for _ in range(600):
            clients[0].send(b"{")
            time.sleep(0.1)
    for client in clients:
        client.close()


# Layers.


def test_a_layer_whose_removal_was_cut_off_can_be_made_again(
    ids: Ids, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)

    def make() -> None:
        with layers.made(tmp_path, "name", ids, most=1 << 30) as tree:
            upper_of(tree).mkdir(parents=True)

    make()
    with monkeypatch.context() as patch:
        patch.setattr(layers, "discard", broken)
        with pytest.raises(OSError):
            layers._discard_free(tmp_path / "name", ids)
    make()
    with layers.held(tmp_path, "name") as layer:
        assert layer
    layers.collect(tmp_path, ids, most=1 << 30)
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    layers.discard(tmp_path / "name", ids)
