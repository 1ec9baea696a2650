"""gc: what is no longer kept goes, what is needed stays, and each thing is told with its reason."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import hosting, keptbases, model, retention
from invirtibuilder.errors import Fault
from invirtibuilder.fsck import check
from invirtibuilder.gitrepo import JOBS
from invirtibuilder.jobs import Job
from invirtibuilder.retention import Waste
from invirtibuilder.settings import Retention
from invirtibuilder.stages import finish, history, validity
from invirtibuilder.stages.uploads import kept_upload
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.aptclient import AptClient
from tests.support.cannedworker import CannedWorker
from tests.support.line import Line, broken
from tests.support.place import Place

DAY = timedelta(days=1)


def published(line: Line, version: str, name: str = "alpha") -> Job:
    line.package(name, version)
    job = line.run(line.job("staging", name))
    assert job.status.state == State.PUBLISHED, job.status
    return job


def keeping(line: Line, *, publications: int, days: float = 1) -> None:
    """What staging keeps."""
    pockets: Any = line.site.pockets
    kept = Retention(publications=publications, seconds=days * 86400)
    pockets["staging"] = dataclasses.replace(pockets["staging"], retention=kept)


def after(line: Line, days: float, *, dry_run: bool = False) -> list[Waste]:
    """What goes when so much time has passed."""
    later = model.utcnow() + days * DAY
    context = dataclasses.replace(line.context, clock=lambda: later)
    return list(retention.collect(context, dry_run=dry_run))


def names(found: list[Waste], kind: str) -> list[str]:
    return [waste.name for waste in found if waste.kind == kind]


def there(line: Line) -> set[str]:
    """Every file of the site, but for locks, logs and what reprepro writes anew."""
    root = line.site.directory
    files = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    ends = ("journal", ".lock", ".fact", "run/maintenance.json", "run/bases.json")
    return {f for f in files if "/db" not in f and not f.endswith(ends)}


def test_bases_that_kept_sources_were_exported_in_are_needed(line: Line) -> None:
    """Workers are told of those, and of no others."""
    keeping(line, publications=1)
    one, two, three = (str(n) * 64 for n in (1, 2, 3))
    for base, version, name in (
        *((one, "1.0", "alpha"), (two, "1.0", "beta")),
        *((three, "1.1", "beta"), (three, "1.2", "beta")),
    ):
        line.engine.base = base
        published(line, version, name)
    domain = line.site.pockets["staging"].domain
    room = line.context.room(line.site.pockets["staging"], own_packages=False)
    assert room.keep is None, "nobody has looked yet"
    assert names(after(line, 2, dry_run=True), "base") == []
    assert keptbases.needed(line.site) is None
    # While the publications are kept which show beta 1.0.
    after(line, 0)
    assert (keptbases.needed(line.site) or {})[domain] == {one, two, three}
    assert [w.name for w in after(line, 2) if w.kind == "base"] == [f"{domain}: {two[:16]}"]
    room = line.context.room(line.site.pockets["staging"], own_packages=False)
    assert room.keep == (one, three)
    # What is exported meanwhile is needed at once, and while its job is not over.
    line.engine.base = "4" * 64
    line.package("alpha", "1.3")
    line.until(line.job("staging", "alpha"), "build")
    room = line.context.room(line.site.pockets["staging"], own_packages=False)
    assert room.keep == (one, three, "4" * 64)
    assert names(after(line, 2), "base") == []


def test_what_is_exported_while_gc_looks_is_not_forgotten(line: Line) -> None:
    site = line.site
    keptbases.replace(site, None, {"trusted": frozenset({"1" * 64})})
    before = keptbases.needed(site)
    for digest in ("2" * 64, "not a digest", ""):
        keptbases.need(site, "trusted", digest)
    keptbases.replace(site, before, {"trusted": frozenset({"3" * 64})})
    assert keptbases.needed(site) == {"trusted": frozenset({"2" * 64, "3" * 64})}


def test_an_export_for_fsck_asks_for_the_recorded_base(line: Line) -> None:
    line.engine.base = "5" * 64
    published(line, "1.0")
    line.engine.base = "6" * 64
    pockets = [line.site.pockets["staging"]]
    check.check(line.context, pockets, level="c", full=False, mend=False)
    assert line.engine.asked[-1].room.base == "5" * 64


def test_what_was_superseded_long_ago_goes(line: Line, tmp_path: Path) -> None:
    keeping(line, publications=2)
    jobs = [published(line, f"{n}.0") for n in range(1, 6)]
    before = there(line)
    told = after(line, 2, dry_run=True)
    assert there(line) == before
    found = after(line, 2)
    assert [dataclasses.replace(w, size=0) for w in found] == [
        dataclasses.replace(w, size=0) for w in told
    ]
    # Of 1 (the first, empty one) to 6, the last two before the present one stay.
    assert names(found, "publication") == ["1", "2", "3"]
    gone = [f"pool/main/a/alpha/alpha_{n}.0{e}" for n in (1, 2) for e in (".dsc", ".tar.xz")]
    gone += [f"pool/main/a/alpha/alpha_{n}.0_all.deb" for n in (1, 2)]
    assert sorted(names(found, "file")) == sorted(gone)
    assert names(found, "job") == [job.id for job in jobs[:2]]
    assert all(waste.why and waste.text for waste in found)
    assert all(waste.size > 0 for waste in found if waste.kind != "ref")
    # What has gone tells what it was all the same.
    assert jobs[0].status.state == State.PUBLISHED
    assert jobs[0].need("publish")["publication"] == 2
    assert "no longer kept: attempts, source, artifacts" in (
        (jobs[0].directory / "journal").read_text()
    )
    # Kept publications are whole.
    for version, job in (("3.0", jobs[2]), ("4.0", jobs[3]), ("5.0", jobs[4])):
        commit = job.need("publish")["superproject_commit"]
        apt = AptClient(folder=tmp_path / version)
        apt.configure(hosting.client(line.site, line.site.pockets["staging"], at=commit).sources)
        apt.update()
        assert apt.candidate("alpha") == version
        assert apt.download("alpha")
        record = line.context.superproject.record_at(commit, "alpha") or {}
        assert kept_upload(line.context, line.site.pockets["staging"], record).files
        assert (job.directory / "artifacts").is_dir()
    with pytest.raises(Fault, match="no longer kept"):
        first = jobs[0].need("publish")["superproject_commit"]
        hosting.client(line.site, line.site.pockets["staging"], at=first)
    # And there is nothing left to do, nor does anything stand in the way of the next one.
    assert after(line, 2) == []
    published(line, "6.0")


def test_what_is_signed_again_pushes_no_state_out(line: Line) -> None:
    keeping(line, publications=5)
    first = published(line, "1.0")
    published(line, "2.0")
    pockets: Any = line.site.pockets
    pockets["staging"] = dataclasses.replace(pockets["staging"], valid_for=3600.0)
    now = model.utcnow()
    context = dataclasses.replace(line.context, clock=lambda: now)
    for _ in range(6):
        now += DAY / 2
        validity.keep_valid(context, pockets["staging"])
    found = after(line, 5)
    # Of 4 to 9 each is the second state signed again.
    assert names(found, "publication") == [str(number) for number in range(3, 9)]
    assert len(found) == 6
    commit = first.need("publish")["superproject_commit"]
    assert history.point(line.site, line.site.pockets["staging"], commit).publication == 2


def test_nothing_goes_within_a_day_or_by_time_alone(line: Line) -> None:
    keeping(line, publications=0)
    published(line, "1.0")
    published(line, "2.0")
    before = there(line)
    assert after(line, 0.9) == []
    keeping(line, publications=5)
    assert after(line, 400) == []
    assert there(line) == before
    keeping(line, publications=0)
    found = after(line, 400)
    assert names(found, "publication") == ["1", "2"]
    assert len(names(found, "job")) == 1


def test_files_that_nobody_knows_go_and_a_version_may_come_again(line: Line) -> None:
    keeping(line, publications=0)
    published(line, "1.0")
    stray = line.site.archive / "staging/pool/main/s/stray/stray_1.0.dsc"
    stray.parent.mkdir(parents=True)
    stray.write_text("left over")
    assert names(after(line, 0), "file") == ["pool/main/s/stray/stray_1.0.dsc"]
    assert not stray.parent.parent.exists()
    # reprepro has forgotten what went: other bytes of that name are no clash.
    published(line, "2.0")
    assert len(names(after(line, 2), "file")) == 3
    with line.context.archive(line.site.pockets["staging"]).reprepro.lock.open() as lock:
        reprepro = line.context.archive(line.site.pockets["staging"]).reprepro
        assert "alpha_1.0" not in str(reprepro.references(lock_fd=lock.fileno()))
        listed = reprepro.call("dumpunreferenced", lock_fd=lock.fileno()).text
        assert listed == ""


def test_what_another_pocket_shows_is_needed(line: Line) -> None:
    keeping(line, publications=0)
    first = published(line, "1.0")
    moved = line.run(line.job("prod", "alpha"))
    assert moved.need("build")["reused"] == first.id
    published(line, "2.0")
    found = after(line, 400)
    assert names(found, "job") == []
    assert (first.directory / "artifacts").is_dir()


def test_jobs_that_made_nothing(line: Line) -> None:
    line.package("alpha")
    line.engine.change = lambda report: report.update(debs={}) if "debs" in report else None
    failed = line.run(line.job("staging", "alpha"))
    assert failed.status.state == State.FAILED
    running = line.until(line.job("staging", "alpha"), "verify")
    held = line.context.repository("alpha").refs(JOBS)
    assert {ref.split("/")[3] for ref in held} == {running.id}
    line.context.repository("alpha").keep(
        f"{JOBS}20260102T030405.678901-abcd/commit", line.work["alpha"].head
    )
    assert names(after(line, 6), "job") == []
    found = after(line, 8)
    assert names(found, "job") == [failed.id]
    assert not (failed.directory / "attempts").exists()
    assert (running.directory / "attempts").exists()
    assert line.context.repository("alpha").refs(JOBS) == held


def test_what_cannot_be_finished_keeps_everything(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping(line, publications=0)
    published(line, "1.0")
    line.package("alpha", "2.0")
    with monkeypatch.context() as patch:
        patch.setattr(finish, "_finish", broken)
        job = line.run(line.job("staging", "alpha"))
        assert job.status.state == State.WAITING
        assert after(line, 400) == []
    assert len(names(after(line, 400), "job")) == 1
    assert str(line.run(job).status.state) == State.PUBLISHED


@pytest.fixture
def place() -> Iterator[tuple[Place, CannedWorker]]:
    with places.canned() as made:
        yield made


def test_the_command(place: tuple[Place, CannedWorker], tmp_path: Path) -> None:
    site, _ = place
    repo = packages.native(tmp_path / "greet")
    site.package(repo)
    assert site.submitted("staging", repo).status.state == State.PUBLISHED
    stray = site.site.archive / "staging/pool/main/s/stray/stray_1.0.dsc"
    stray.parent.mkdir(parents=True)
    stray.write_text("left over")
    told = site.cli("gc", "--dry-run")
    assert told.code == 0, told.err
    assert told.text.splitlines() == [
        "staging: file pool/main/s/stray/stray_1.0.dsc (9 bytes): no kept publication has it",
        "1 would go, 9 bytes",
    ]
    assert stray.exists()
    value = json.loads(site.cli("gc", "--json").out)
    assert (value["dry_run"], value["size"], len(value["gone"])) == (False, 9, 1)
    assert not stray.exists()
    assert site.cli("gc").text == "0 gone, 0 bytes"
    assert site.cli("fsck").code == 0
    assert site.cli("gc", "everything").code == 64
