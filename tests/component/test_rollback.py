"""Rollback: a pocket as it was, as a new publication, and what APT makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import hosting, rebuild
from invirtibuilder.errors import Refused
from invirtibuilder.fsck import check
from invirtibuilder.jobs import Job
from invirtibuilder.run import run
from invirtibuilder.spool import Request
from invirtibuilder.stages import again
from invirtibuilder.stages.rollback import assess_rollback
from invirtibuilder.states import State
from tests.support.aptclient import AptClient
from tests.support.line import ME, Line


def published(line: Line, name: str, version: str, pocket: str = "staging") -> str:
    """Publish a version; the superproject's commit."""
    line.package(name, version)
    job = line.run(line.job(pocket, name))
    assert job.status.state == State.PUBLISHED, job.status
    return str(job.need("publish")["superproject_commit"])


def allowed(line: Line, pocket: str = "staging") -> None:
    """Who runs the tests may roll back."""
    acl: Any = line.site.pockets[pocket].acl
    acl["rollback"] = acl["submit"]


def rolled_back(line: Line, *args: str) -> Job:
    job = line.context.jobs.create(Request.new("rollback", args, principal=ME, via="test"))
    return line.run(job)


def codes(line: Line, moment: str, *packages: str, pocket: str = "staging") -> set[str]:
    """The reasons of a refusal."""
    with pytest.raises(Refused) as caught:
        assess_rollback(line.context, principal=ME, pocket=pocket, moment=moment, packages=packages)
    assert all(r.message for r in caught.value.reasons)
    return {r.code for r in caught.value.reasons}


def versions(line: Line, pocket: str = "staging") -> dict[str, str]:
    records = line.context.superproject.records(line.site.pockets[pocket].branch)
    return {name: record["version"] for name, record in records.items()}


@pytest.fixture
def apt(line: Line, tmp_path: Path) -> AptClient:
    made = AptClient(folder=tmp_path / "apt")
    client = hosting.client(line.site, line.site.pockets["staging"])
    made.configure(client.sources, client.downgrade)
    return made


def test_a_pocket_goes_back_whole(line: Line, apt: AptClient) -> None:
    allowed(line)
    first = published(line, "alpha", "1.0")
    commit = line.work["alpha"].head
    published(line, "alpha", "2.0")
    last = published(line, "beta", "1.0")
    tags = line.context.repository("alpha").refs("refs/tags/")
    job = rolled_back(line, "staging", first[:12])
    assert job.status.state == State.PUBLISHED, job.status
    fact = job.need("publish")
    assert versions(line) == {"alpha": "1.0"}
    superproject = line.context.superproject
    assert superproject.pin("staging", "alpha") == commit
    # History goes on: two commits on top of what there was, in one publication.
    log = run(["git", "log", "--format=%H %s", f"{last}..staging"], cwd=superproject.path).text
    assert [text.split(" ", 1)[1] for text in log.splitlines()] == [
        "beta leaves staging",
        "alpha back to 1.0 in staging",
    ]
    assert superproject.contains("staging", last)
    assert fact["superproject_commit"] == superproject.tip("staging")
    assert superproject.trailers(fact["superproject_commit"])["Rollback-To"] == first
    record = superproject.record("staging", "alpha") or {}
    assert (record["job"], record["rolled_back_to"]) == (job.id, first)
    assert record["publication"] == fact["publication"] == 5
    assert line.context.repository("alpha").refs("refs/tags/") == tags
    apt.update()
    assert (apt.candidate("alpha"), apt.candidate("beta")) == ("1.0", "")
    events = [p.name for p in sorted((line.site.events / job.id).glob("*-*.json"))]
    assert [name[3:-5] for name in events] == ["submitted", "started", "published"]
    notes = [json.loads((line.site.events / job.id / name).read_text())["note"] for name in events]
    assert notes[:2] == ["", ""]
    assert "by a lower version only with" in notes[2]
    assert "`sources staging --downgrade` prints (Pin-Priority 1001)" in notes[2]


@pytest.mark.parametrize("lost", ["", "buildinfo", "jobs"])
def test_what_was_given_up_is_published_again_and_not_made_again(line: Line, lost: str) -> None:
    """Also when it would come out otherwise by now, and when only the pool still has it."""
    allowed(line)
    first = published(line, "alpha", "1.0")
    published(line, "alpha", "2.0")
    before = line.context.superproject.record("staging", "alpha") or {}
    assert rolled_back(line, "staging", first).status.state == State.PUBLISHED
    for path in line.site.jobs.rglob("*.buildinfo") if lost == "buildinfo" else ():
        path.unlink()
    if lost == "jobs":
        shutil.rmtree(line.site.jobs)
        list(rebuild.rebuild(line.context))
    line.engine.content = "of a newer compressor"
    asked = len(line.engine.asked)
    job = line.run(line.job("staging", "alpha"))
    assert job.status.state == State.PUBLISHED, job.status
    assert versions(line) == {"alpha": "2.0"}
    assert line.engine.asked[asked:] == []
    after = line.context.superproject.record("staging", "alpha") or {}
    assert after["files"] == before["files"]
    assert (after["job"], after["built"], after["reused"]) == (job.id, job.id, before["built"])
    pockets = list(line.site.pockets.values())
    report = check.check(line.context, pockets, level="b", full=True, mend=False)
    assert not report.drift, report.lines
    # And it goes on to be promoted, rolled back and published.
    assert rolled_back(line, "staging", first).status.state == State.PUBLISHED
    assert line.run(line.job("prod", "alpha")).status.state == State.PUBLISHED


def test_what_is_kept_nowhere_is_not_published_again(line: Line) -> None:
    allowed(line)
    first = published(line, "alpha", "1.0")
    published(line, "alpha", "2.0")
    assert rolled_back(line, "staging", first).status.state == State.PUBLISHED
    job = line.until(line.job("staging", "alpha"), "export")
    assert again.taken(line.context, job)
    for path in [*line.site.jobs.rglob("alpha_2.0*"), *line.site.archive.rglob("alpha_2.0*")]:
        path.unlink()
    assert again.taken(line.context, job) is None


def test_apt_goes_back_with_the_preferences_for_it(line: Line, apt: AptClient) -> None:
    allowed(line)
    published(line, "alpha", "1.0")
    first = published(line, "alpha", "1.1")
    published(line, "alpha", "2.0")
    rolled_back(line, "staging", first)
    stanza = "Package: alpha\nStatus: install ok installed\nVersion: 2.0\nArchitecture: all\n"
    (apt.folder / "status").write_text(stanza + "Maintainer: a <a@example.org>\nDescription: a\n")
    apt.update()
    plan = apt.apt("apt-get", "-s", "--allow-downgrades", "dist-upgrade").text
    assert "Inst alpha [2.0] (1.1" in plan
    client = hosting.client(line.site, line.site.pockets["staging"])
    apt.configure(client.sources, client.preferences)
    (apt.folder / "status").write_text(stanza + "Maintainer: a <a@example.org>\nDescription: a\n")
    assert "Inst alpha" not in apt.apt("apt-get", "-s", "dist-upgrade").text


def test_one_package_goes_back_and_comes_again(line: Line) -> None:
    allowed(line)
    before = published(line, "alpha", "1.0")
    published(line, "beta", "1.0")
    both = published(line, "alpha", "2.0")
    published(line, "beta", "2.0")
    assert rolled_back(line, "staging", both, "beta").status.state == State.PUBLISHED
    assert versions(line) == {"alpha": "2.0", "beta": "1.0"}
    assert rolled_back(line, "staging", before, "beta").status.state == State.PUBLISHED
    assert versions(line) == {"alpha": "2.0"}
    assert rolled_back(line, "staging", both).status.state == State.PUBLISHED
    assert versions(line) == {"alpha": "2.0", "beta": "1.0"}
    # From where it is now, a higher version is all that is asked for.
    published(line, "beta", "1.5")


def test_who_may(line: Line) -> None:
    first = published(line, "alpha", "1.0")
    published(line, "alpha", "2.0")
    assert codes(line, first) == {"not-permitted"}
    # A backtracking pocket takes any commit anyway, from whoever may submit.
    back = published(line, "alpha", "3.0", pocket="dev")
    old = versions(line, "dev")
    published(line, "alpha", "1.5", pocket="dev")
    assert rolled_back(line, "dev", back).status.state == State.PUBLISHED
    assert versions(line, "dev") == old
    with pytest.raises(Refused):
        assess_rollback(
            line.context, principal="mallory@EXAMPLE.ORG", pocket="dev", moment=back, packages=()
        )


def test_what_cannot_be_rolled_back(line: Line) -> None:
    allowed(line)
    first = published(line, "alpha", "1.0")
    last = published(line, "beta", "1.0")
    assert codes(line, first, pocket="nowhere") == {"no-pocket"}
    assert codes(line, "0" * 40) == {"no-state"}
    assert codes(line, "1999-01-01") == {"no-state"}
    assert codes(line, "2999-01-01") == {"nothing-to-do"}
    assert codes(line, last) == {"nothing-to-do"}
    assert codes(line, first, "alpha") == {"nothing-to-do"}
    assert codes(line, first, "gamma") == {"not-in-pocket"}
    assert codes(line, first, "gamma", "beta", "delta") == {"not-in-pocket"}
    job = rolled_back(line, "staging", "2999-01-01")
    assert job.status.state == State.REFUSED
    assert line.context.superproject.tip("staging") == last


def test_what_is_no_longer_kept_is_named(line: Line) -> None:
    allowed(line)
    first = published(line, "alpha", "1.0")
    published(line, "alpha", "2.0")
    record = line.context.superproject.record_at(first, "alpha") or {}
    shutil.rmtree(line.site.jobs / record["job"] / "artifacts")
    # From the pool, as long as it is there.
    assert rolled_back(line, "staging", first).status.state == State.PUBLISHED
    tip = published(line, "alpha", "3.0")
    (deb,) = (line.site.archive / "staging/pool").rglob("alpha_1.0_all.deb")
    deb.unlink()
    with pytest.raises(Refused) as caught:
        assess_rollback(line.context, principal=ME, pocket="staging", moment=first, packages=())
    (reason,) = caught.value.reasons
    assert reason.code == "files-gone"
    assert "alpha 1.0: alpha_1.0_all.deb is no longer kept" in reason.message
    assert line.context.superproject.tip("staging") == tip
