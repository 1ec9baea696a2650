"""gc beside jobs: it takes nothing that they need, whenever they come, and holds none up."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import files, keptbases, model, retention
from invirtibuilder.fsck import check
from invirtibuilder.gitrepo import JOBS
from invirtibuilder.jobs import Job
from invirtibuilder.pipeline import advance
from invirtibuilder.retention import Waste
from invirtibuilder.settings import Retention
from invirtibuilder.spool import Request
from invirtibuilder.stages.context import Context, Stopping
from invirtibuilder.states import State
from tests.support import hooked
from tests.support.line import ME, Line
from tests.support.place import until, waiting

POCKETS = ("dev", "staging", "prod")


@pytest.fixture
def kept(line: Line) -> Line:
    """A site that keeps one state before the present one, whose packages anybody may move."""
    pockets: Any = line.site.pockets
    for name in POCKETS:
        acl: Any = pockets[name].acl
        acl["rollback"] = acl["promote"] = acl["submit"]
        less = Retention(publications=1, seconds=86400)
        pockets[name] = dataclasses.replace(pockets[name], retention=less)
    return line


def published(line: Line, *versions: str) -> list[Job]:
    """Publish versions of alpha in staging, in turn."""
    jobs = []
    for version in versions:
        line.package("alpha", version)
        jobs.append(line.run(line.job("staging", "alpha")))
        assert jobs[-1].status.state == State.PUBLISHED, jobs[-1].status
    return jobs


def asked(line: Line, action: str, *args: str) -> Job:
    return line.context.jobs.create(Request.new(action, args, principal=ME, via="test"))


def back_to(line: Line, job: Job) -> Job:
    """A rollback of staging to what this job has published."""
    return asked(line, "rollback", "staging", job.need("publish")["superproject_commit"])


def later(line: Line) -> Context:
    """When all but what is kept has long been superseded."""
    now = model.utcnow() + timedelta(days=3)
    return dataclasses.replace(line.context, clock=lambda: now)


def collected(line: Line) -> list[Waste]:
    return list(retention.collect(later(line)))


def up_to(line: Line, job: Job, fact: str) -> Job:
    """Take a job up to, and with, a fact."""
    with pytest.raises(Stopping):
        advance(dataclasses.replace(line.context, stopping=lambda: bool(job.fact(fact))), job)
    return job


def sound(line: Line) -> None:
    """Git, the archive and the records say the same, the .buildinfo files too."""
    pockets = list(line.site.pockets.values())
    report = check.check(line.context, pockets, level="b", full=True, mend=False)
    assert not report.drift, report.lines


def ended(job: Job, *, gone: str = "") -> None:
    assert job.status.state == (State.REFUSED if gone else State.PUBLISHED), job.status
    assert not gone or [reason["code"] for reason in job.status.reasons] == [gone]


@pytest.mark.parametrize("lost", [(), ("artifacts", "source")])
@pytest.mark.parametrize("fact", ["", "announce"])
def test_a_rollback_that_waits_finds_its_files(kept: Line, lost: Sequence[str], fact: str) -> None:
    """With the job that made them, or in the pool alone."""
    first, *_ = published(kept, "1.0", "2.0", "3.0")
    for name in lost:
        shutil.rmtree(first.directory / name)
    job = back_to(kept, first)
    if fact:
        up_to(kept, job, fact)
    found = collected(kept)
    assert {waste.kind for waste in found} == {"publication"}, [waste.text for waste in found]
    ended(kept.run(job))
    # When it is over, the rest goes as ever.
    assert {waste.kind for waste in collected(kept)} == {"publication", "file", "job"}
    if not lost:
        sound(kept)


def test_a_promotion_that_waits_finds_its_files(kept: Line) -> None:
    published(kept, "1.0", "2.0", "3.0")
    job = up_to(kept, asked(kept, "promote", "staging", "prod", "alpha"), "announce")
    assert collected(kept)
    ended(kept.run(job))
    sound(kept)


def test_what_is_published_again_while_gc_goes_on_keeps_its_job(kept: Line) -> None:
    """Its pocket was looked at before."""
    domain = kept.site.pockets["staging"].domain
    both = frozenset({"1" * 64, "2" * 64})
    keptbases.replace(kept.site, None, {domain: both})
    kept.engine.base = "1" * 64
    (first,) = published(kept, "1.0")
    kept.engine.base = "2" * 64
    published(kept, "2.0", "3.0")
    # Something in the last pocket: gc stands still at each thing that it tells.
    stray = kept.site.archive / "prod/pool/main/s/stray/stray_1.0.dsc"
    stray.parent.mkdir(parents=True)
    stray.write_text("left over")
    found = []
    for waste in retention.collect(later(kept)):
        found.append(waste)
        if waste.pocket == "prod":
            ended(kept.run(back_to(kept, first)))
    assert first.id not in {waste.name for waste in found}
    assert (first.directory / "artifacts").is_dir()
    assert "base" not in {waste.kind for waste in found}
    assert (keptbases.needed(kept.site) or {})[domain] == both
    sound(kept)


def test_a_rollback_that_comes_too_late_is_not_admitted(kept: Line) -> None:
    """What gc is about to remove is still there when it comes."""
    first, *_ = published(kept, "1.0", "2.0", "3.0")
    for name in ("artifacts", "source"):
        shutil.rmtree(first.directory / name)
    lock = kept.context.archive(kept.site.pockets["staging"]).reprepro.lock
    job = back_to(kept, first)
    thread = threading.Thread(target=kept.run, args=(job,))
    hidden = job.directory.rename(kept.site.jobs / ".hidden")

    def removing(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.remove" and "/pool/main/a/" in str(args[0]) and hidden.exists():
            hidden.rename(job.directory)
            thread.start()
            until(lambda: waiting(lock) or job.fact("admit"))

    with hooked.at(removing):
        collected(kept)
    thread.join()
    ended(job, gone="files-gone")
    assert job.fact("admit") is None


def test_artifacts_that_go_before_they_are_used_again_are_built(kept: Line) -> None:
    (first,) = published(kept, "1.0")
    job = kept.until(kept.job("prod", "alpha"), "export")

    def linking(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.link" and Path(args[0]).parent == first.directory / "artifacts":
            files.remove_tree(first.directory / "artifacts")

    with hooked.at(linking):
        kept.run(job)
    ended(job)
    assert job.need("build")["reused"] is None


def test_the_refs_of_a_job_that_comes_meanwhile_stay(kept: Line) -> None:
    for name in ("alpha", "beta"):
        kept.package(name)
    old = f"{JOBS}20260102T030405.678901-abcd/commit"
    kept.context.repository("alpha").keep(old, kept.work["alpha"].head)
    beta = kept.context.repository("beta")
    held: dict[str, str] = {}
    for waste in retention.collect(kept.context):
        assert waste.name == f"alpha: {old}"
        kept.until(kept.job("staging", "beta"), "verify")
        held = dict(beta.refs(JOBS))
    assert held
    assert beta.refs(JOBS) == held
    assert not kept.context.repository("alpha").refs(JOBS)


def test_a_gc_that_was_cut_off_is_gone_on_with(kept: Line) -> None:
    first, *_ = published(kept, "1.0", "2.0", "3.0")
    for waste in retention.collect(later(kept)):
        if waste.kind == "job":
            break
    assert not (first.directory / "artifacts").exists()
    (waste,) = collected(kept)
    assert (waste.kind, waste.name) == ("job", first.id)
    journal = (first.directory / "journal").read_text()
    assert "no longer kept: attempts, source, artifacts\n" in journal
    assert not list(first.directory.glob(".*"))
    assert collected(kept) == []


def test_a_publication_does_not_wait_for_what_gc_reads(kept: Line) -> None:
    published(kept, "1.0", "2.0")
    kept.package("alpha", "3.0")
    job = kept.until(kept.job("staging", "alpha"), "publish")
    lock = kept.context.archive(kept.site.pockets["staging"]).reprepro.lock
    read: dict[bool, set[str]] = {False: set(), True: set()}

    def opening(event: str, args: tuple[Any, ...]) -> None:
        path = Path(str(args[0]))
        if event == "open" and path.name in ("Packages", "Sources") and "staging" in path.parts:
            read[is_held(lock)].add(path.parts[path.parts.index("publications") + 1])
            if not is_held(lock) and not job.fact("publish"):
                kept.run(job)

    with hooked.at(opening):
        list(retention.collect(kept.context))
    ended(job)
    # Under the lock nothing is read but what has come since.
    assert read == {False: {"00000001", "00000002", "00000003"}, True: {"00000004"}}


def is_held(lock: Path) -> bool:
    try:
        with files.locked(lock, wait=False):
            return False
    except files.Busy:
        return True
