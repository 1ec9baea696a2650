"""Promotion: packages of one pocket come to another, all or none, in one publication."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.errors import Refused
from invirtibuilder.fsck import check
from invirtibuilder.jobs import Job
from invirtibuilder.pipeline import advance
from invirtibuilder.run import run
from invirtibuilder.spool import Request
from invirtibuilder.stages import promote, uploads
from invirtibuilder.stages.context import Stopping
from invirtibuilder.stages.promote import assess_promotion
from invirtibuilder.states import State
from tests.support.line import ME, Line


def published(line: Line, name: str, version: str = "1.0", pocket: str = "staging") -> Job:
    line.package(name, version)
    job = line.run(line.job(pocket, name))
    assert job.status.state == State.PUBLISHED, job.status
    return job


def allowed(line: Line, *pockets: str) -> None:
    """Who runs the tests may promote there."""
    for pocket in pockets:
        acl: Any = line.site.pockets[pocket].acl
        acl["promote"] = acl["submit"]


def promotion(line: Line, *args: str) -> Job:
    return line.context.jobs.create(Request.new("promote", args, principal=ME, via="test"))


def refusal(line: Line, origin: str, target: str, *packages: str) -> dict[str, str]:
    """Messages of the reasons, by code."""
    with pytest.raises(Refused) as caught:
        assess_promotion(
            line.context, principal=ME, origin=origin, target=target, packages=packages
        )
    return {r.code: r.message for r in caught.value.reasons}


def pool(line: Line, pocket: str) -> dict[str, str]:
    """What the pocket's pool has, by SHA-256."""
    files = (line.site.archive / pocket / "pool").rglob("*")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}


def versions(line: Line, pocket: str) -> dict[str, str]:
    records = line.context.superproject.records(line.site.pockets[pocket].branch)
    return {name: record["version"] for name, record in records.items()}


def depending(line: Line, monkeypatch: pytest.MonkeyPatch, **depends: str) -> None:
    """Binary packages of these names, as the canned worker makes them, get these Depends.

    Or another field, where that is named.
    """

    def field(words: str) -> str:
        return words if ":" in words else f"Depends: {words}"

    def build(argv: Any, **more: Any) -> Any:
        if "--build" in argv:
            control = Path(argv[-2]) / "DEBIAN/control"
            for name, needs in depends.items():
                text = control.read_text()
                if text.startswith(f"Package: {name}\n"):
                    control.write_text(text.replace("Maintainer:", f"{field(needs)}\nMaintainer:"))
        return run(argv, **more)

    monkeypatch.setattr("tests.support.debs.run", build)


def test_the_very_files_move_in_one_publication(line: Line) -> None:
    allowed(line, "prod")
    made = {name: published(line, name) for name in ("alpha", "beta", "gamma")}
    job = line.run(promotion(line, "staging", "prod", "beta", "alpha"))
    assert job.status.state == State.PUBLISHED, job.status
    assert versions(line, "prod") == {"alpha": "1.0", "beta": "1.0"}
    there, here = pool(line, "staging"), pool(line, "prod")
    assert here.items() <= there.items()
    assert len(here) == 6
    log = run(["git", "log", "--reverse", "--format=%s", "prod"], cwd=line.site.superproject)
    wanted = [f"{name} 1.0 from staging for prod" for name in ("beta", "alpha")]
    assert log.text.splitlines() == wanted
    publications = line.context.archive(line.site.pockets["prod"]).publications
    assert publications.current() == job.need("publish")["publication"] == 2
    record = line.context.superproject.record("prod", "alpha") or {}
    assert (record["job"], record["built"]) == (job.id, made["alpha"].id)
    assert (record["pocket"], record["promoted_from"]) == ("prod", "staging")
    assert line.context.superproject.pin("prod", "alpha") == made["alpha"].status.commit
    # Nothing was built; who asked is told once, with all packages.
    assert not list((job.directory / "attempts").iterdir())
    (event,) = (line.site.events / job.id).glob("*-published.json")
    assert '"beta alpha"' in event.read_text()
    tags = line.context.repository("alpha").refs("refs/tags/")
    assert list(tags) == ["refs/tags/debian/1.0"]
    # And on from there: the next promotion has something older to replace.
    published(line, "alpha", "2.0")
    assert line.run(promotion(line, "staging", "prod", "alpha")).status.state == State.PUBLISHED
    assert versions(line, "prod") == {"alpha": "2.0", "beta": "1.0"}


def test_what_cannot_be_promoted(line: Line) -> None:
    published(line, "alpha")
    assert list(refusal(line, "staging", "prod", "alpha")) == ["not-permitted"]
    allowed(line, "prod")
    assert list(refusal(line, "nowhere", "prod", "alpha")) == ["no-pocket"]
    assert list(refusal(line, "staging", "nowhere", "alpha")) == ["no-pocket"]
    assert list(refusal(line, "prod", "prod", "alpha")) == ["same-pocket"]
    assert "beta" in refusal(line, "staging", "prod", "alpha", "beta")["not-in-pocket"]
    line.run(promotion(line, "staging", "prod", "alpha"))
    assert "alpha 1.0 already" in refusal(line, "staging", "prod", "alpha")["already-there"]
    published(line, "alpha", "2.0", pocket="prod")
    # Both of TO's rules, and each package that is in the way.
    found = refusal(line, "staging", "prod", "alpha", "beta")
    assert set(found) == {"not-descendant", "version-not-higher", "not-in-pocket"}
    assert found["version-not-higher"].startswith("alpha: ")
    job = line.run(promotion(line, "staging", "prod", "alpha", "beta"))
    assert job.status.state == State.REFUSED
    assert len(job.status.reasons) == 3
    assert versions(line, "prod") == {"alpha": "2.0"}


def test_all_or_none(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something goes wrong with one of them when all has been checked."""
    allowed(line, "prod")
    published(line, "alpha")
    beta = published(line, "beta")
    real = uploads.kept_upload
    calls: list[str] = []

    def spoil(context: Any, pocket: Any, record: Any) -> Any:
        upload = real(context, pocket, record)
        calls.append(record["package"])
        if calls.count("beta") == 2:  # under the lock
            (deb,) = (beta.directory / "artifacts").glob("*.deb")
            bad = line.site.directory / deb.name
            bad.write_bytes(b"no package")
            files = tuple(bad if p.name == deb.name else p for p in upload.files)
            return dataclasses.replace(upload, files=files)
        return upload

    monkeypatch.setattr(uploads, "kept_upload", spoil)
    job = line.run(promotion(line, "staging", "prod", "alpha", "beta"))
    assert job.status.state == State.FAILED
    assert line.context.superproject.tip("prod") is None
    assert not versions(line, "prod")


def test_dependencies_that_stay_behind_are_named(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed(line, "prod")
    depending(line, monkeypatch, alpha="beta (>= 1.0), libc6 (>= 2.3) | nothing-else")
    published(line, "beta")
    published(line, "alpha")
    found = refusal(line, "staging", "prod", "alpha")
    assert list(found) == ["dependency-broken"]
    assert "alpha 1.0 needs beta (>= 1.0), which prod would not have" in found["dependency-broken"]
    # Together they may; what neither pocket has is the mirror's.
    job = line.run(promotion(line, "staging", "prod", "alpha", "beta"))
    assert job.status.state == State.PUBLISHED, job.status
    # What stays in TO needs what would go.
    depending(line, monkeypatch, gamma="beta (= 1.0)")
    published(line, "gamma", pocket="prod")
    published(line, "beta", "2.0")
    message = refusal(line, "staging", "prod", "beta")["dependency-broken"]
    assert "gamma 1.0 needs beta (= 1.0)" in message
    # Who may promote may do so all the same, and it is recorded.
    job = line.run(promotion(line, "staging", "prod", "beta", "--despite-dependencies"))
    assert job.status.state == State.PUBLISHED, job.status
    assert versions(line, "prod")["beta"] == "2.0"
    assert "in spite of it: gamma 1.0 needs beta" in (job.directory / "journal").read_text()
    (commit,) = line.context.superproject.history("prod")[:1]
    assert "gamma 1.0 needs beta (= 1.0)" in commit.trailers["Despite-Dependencies"]
    report = check.check(
        line.context, [line.site.pockets["prod"]], level="b", full=True, mend=False
    )
    assert not report.drift, report.findings


def test_what_apt_could_not_install_beside_what_stays_is_named(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed(line, "prod")
    published(line, "beta")
    job = line.run(promotion(line, "staging", "prod", "beta"))
    assert job.status.state == State.PUBLISHED, job.status
    depending(line, monkeypatch, alpha="Breaks: beta (<< 2.0)", gamma="Conflicts: delta")
    for name in ("alpha", "delta", "gamma"):
        published(line, name)
    # Two that exclude each other everywhere do so on purpose.
    job = line.run(promotion(line, "staging", "prod", "delta"))
    assert job.status.state == State.PUBLISHED, job.status
    assert line.run(promotion(line, "staging", "prod", "gamma")).status.state == State.PUBLISHED
    # Nor is it the move's fault where alpha has the same trouble.
    job = line.run(promotion(line, "staging", "prod", "alpha"))
    assert job.status.state == State.PUBLISHED, job.status
    published(line, "beta", "2.0")
    published(line, "alpha", "1.1")
    message = refusal(line, "staging", "prod", "alpha")["dependency-broken"]
    assert message.startswith("alpha beside beta could not be installed from prod: ")
    assert "alpha : Breaks: beta (< 2.0)" in message
    job = line.run(promotion(line, "staging", "prod", "alpha", "beta"))
    assert job.status.state == State.PUBLISHED, job.status


def test_what_the_pocket_has_lost_in_the_meantime_is_seen(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed(line, "prod")
    acl: Any = line.site.pockets["prod"].acl
    acl["rollback"] = acl["submit"]
    for name in ("zeta", "beta"):
        published(line, name)
        job = line.run(promotion(line, "staging", "prod", name))
        assert job.status.state == State.PUBLISHED, job.status
    before = line.context.superproject.history("prod")[1].id
    depending(line, monkeypatch, alpha="beta (>= 1.0)")
    published(line, "alpha")
    waiting = promotion(line, "staging", "prod", "alpha")
    announced = dataclasses.replace(
        line.context, stopping=lambda: waiting.fact("announce") is not None
    )
    with pytest.raises(Stopping):
        advance(announced, waiting)
    back = Request.new("rollback", ["prod", before], principal=ME, via="test")
    assert line.run(line.context.jobs.create(back)).status.state == State.PUBLISHED
    line.run(waiting)
    assert waiting.status.state == State.REFUSED
    assert [r["code"] for r in waiting.status.reasons] == ["dependency-broken"]
    assert versions(line, "prod") == {"zeta": "1.0"}


def test_what_is_rebuilt_and_what_moves_come_together(line: Line) -> None:
    allowed(line, "prod")
    line.package("alpha")
    job = line.run(line.job("dev", "alpha"))
    assert job.status.state == State.PUBLISHED, job.status
    old = versions(line, "dev")["alpha"]
    whole = promotion(line, "dev", "prod", "alpha")
    told: list[Job] = []
    line.context = dataclasses.replace(line.context, tell=told.append)
    line.run(whole)
    assert str(whole.status.state) == State.WAITING
    assert "alpha" in whole.status.reasons[0]["message"]
    assert f"{old} is rebuilt as 1.0: its version is dev's own" in (
        (whole.directory / "journal").read_text()
    )
    (part,) = told
    assert (part.package, part.pocket, part.part_of) == ("alpha", "prod", whole.id)
    # Built, but not published by itself.
    line.run(part)
    assert str(part.status.state) == State.WAITING
    assert line.context.superproject.tip("prod") is None
    assert told[-1].id == whole.id
    assert not whole.status.wake
    line.run(whole)
    assert whole.status.state == State.PUBLISHED, whole.status
    assert versions(line, "prod") == {"alpha": "1.0"}
    assert not part.status.wake
    line.run(part)
    assert part.status.state == State.PUBLISHED
    assert len(list((line.site.events / part.id).glob("*-published.json"))) == 1
    record = line.context.superproject.record("prod", "alpha") or {}
    assert (record["job"], record["built"], record["promoted_from"]) == (part.id, part.id, "dev")
    tip = line.context.superproject.tip("prod") or ""
    assert line.context.superproject.trailers(tip)["Promotion"] == whole.id
    assert part.need("publish")["superproject_commit"] == tip


def changed(line: Line, pocket: str, **settings: Any) -> None:
    pockets: Any = line.site.pockets
    pockets[pocket] = dataclasses.replace(pockets[pocket], **settings)


def mixed(line: Line) -> tuple[Job, Job]:
    """A promotion of alpha, which moves, and beta, which is rebuilt; and the rebuild."""
    allowed(line, "dev", "prod")
    # One whose builds prod takes; what comes to be there has staging's version or dev's own.
    changed(line, "dev", domain=line.site.pockets["prod"].domain)
    published(line, "alpha")
    moved = line.run(promotion(line, "staging", "dev", "alpha"))
    assert moved.status.state == State.PUBLISHED, moved.status
    published(line, "beta", pocket="dev")
    whole = promotion(line, "dev", "prod", "alpha", "beta")
    line.run(whole)
    assert whole.status.state == State.WAITING, whole.status
    (part,) = promote.parts_of(line.context, whole)
    return whole, part


def test_what_moves_and_what_is_rebuilt_is_one_publication(line: Line) -> None:
    whole, part = mixed(line)
    journal = (whole.directory / "journal").read_text()
    assert "alpha: 1.0 moves" in journal
    assert re.search(r"beta: 1\.0\S+ is rebuilt as 1\.0: its version is dev's own", journal)
    line.run(part)
    assert line.context.superproject.tip("prod") is None
    line.run(whole)
    line.run(part)
    assert [str(job.status.state) for job in (whole, part)] == ["published"] * 2
    assert versions(line, "prod") == {"alpha": "1.0", "beta": "1.0"}
    publications = line.context.archive(line.site.pockets["prod"]).publications
    assert publications.numbers() == [1, 2]
    assert [job.need("publish")["publication"] for job in (whole, part)] == [2, 2]
    superproject = line.context.superproject
    assert publications.commit(2) == superproject.tip("prod")
    assert len(superproject.history("prod")) == 2
    # The very files of the one, and of the other what its rebuild has made.
    here = pool(line, "prod")
    moved = {name: sha256 for name, sha256 in here.items() if name.startswith("alpha")}
    assert len(moved) == 3
    assert moved.items() <= pool(line, "staging").items()
    made = {file["name"]: file["sha256"] for file in part.need("build")["files"]}
    assert here["beta_1.0_all.deb"] == made["beta_1.0_all.deb"]
    records = superproject.records("prod")
    assert records["beta"]["built"] == part.id
    assert {record["promoted_from"] for record in records.values()} == {"dev"}
    everywhere = list(line.site.pockets.values())
    report = check.check(line.context, everywhere, level="b", full=True, mend=False)
    assert not report.drift, report.findings


def rebuilt(line: Line) -> tuple[Job, Job]:
    """A promotion of alpha, which is rebuilt, and the rebuild."""
    allowed(line, "prod")
    # One that the files of staging cannot go to, as its base is another.
    changed(line, "prod", options=("nocheck",))
    published(line, "alpha")
    whole = line.run(promotion(line, "staging", "prod", "alpha"))
    (part,) = promote.parts_of(line.context, whole)
    return whole, part


def test_a_base_that_differs_is_said(line: Line) -> None:
    whole, part = rebuilt(line)
    assert "1.0 is rebuilt as 1.0: the pockets differ in build_options" in (
        (whole.directory / "journal").read_text()
    )
    assert part.request.principal == ME


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_when_a_part_ends_nothing_is_published(line: Line, how: str) -> None:
    whole, part = mixed(line)
    if how == "fails":
        line.engine.change = lambda report: report.update(debs={}) if "debs" in report else None
    else:
        part.ask_cancel(ME)
    line.run(part)
    assert part.status.final
    line.run(whole)
    assert whole.status.state == State.FAILED
    assert whole.status.reasons[0]["code"] == "part-failed"
    assert part.id in whole.status.reasons[0]["message"]
    # What could have moved has not, either.
    assert line.context.superproject.tip("prod") is None
    assert not pool(line, "prod")
    assert line.context.archive(line.site.pockets["prod"]).publications.numbers() == [1]


@pytest.mark.parametrize("built", [False, True])
def test_a_cancelled_promotion_ends_its_parts(line: Line, built: bool) -> None:
    whole, part = rebuilt(line)
    if built:
        line.run(part)
    whole.ask_cancel(ME)
    line.run(whole)
    assert whole.status.state == State.CANCELLED
    line.run(part)
    assert part.status.state == State.CANCELLED
    assert line.context.superproject.tip("prod") is None


def test_a_promotion_that_is_cut_off_makes_its_parts_once(line: Line) -> None:
    whole, part = rebuilt(line)
    line.run(whole)
    line.run(whole)
    assert [j.id for j in promote.parts_of(line.context, whole)] == [part.id]
    assert len(line.context.jobs.names()) == 3


def test_a_pocket_that_moved_on_meanwhile(line: Line) -> None:
    whole, part = rebuilt(line)
    line.run(part)
    other = line.job("prod", "alpha", line.work["alpha"].head)
    assert line.run(other).status.state == State.PUBLISHED, other.status
    line.run(whole)
    assert whole.status.state == State.REFUSED
    assert whole.status.reasons[0]["code"] == "overtaken"
    line.run(part)
    assert part.status.state == State.CANCELLED
