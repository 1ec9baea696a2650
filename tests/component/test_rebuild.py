"""rebuild-state: what is deleted comes back from git, pool and kept artifacts."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import rebuild
from invirtibuilder.apt.publications import Publications
from invirtibuilder.errors import Exit, PackageFault
from invirtibuilder.jobs import Job
from invirtibuilder.run import run
from invirtibuilder.stages import database
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.aptclient import AptClient, file_uri
from tests.support.cannedworker import CannedWorker
from tests.support.packages import Repo
from tests.support.place import ROOT, Place

Made = tuple[Place, CannedWorker, Repo, dict[str, Job]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site with two packages in two pockets, one of them in two versions."""
    folder = tmp_path_factory.mktemp("rebuild")
    with places.canned() as (place, _):
        greet = packages.native(folder / "greet", binaries=("greet", "greet-doc"))
        other = packages.native(folder / "other", "other")
        for repo in (greet, other):
            place.package(repo)
        for pocket, repo in (("staging", greet), ("staging", other), ("dev", greet)):
            assert place.submitted(pocket, repo).status.state == State.PUBLISHED
        newer = packages.upgraded(greet, "1.1")
        place.push(newer)
        assert place.submitted("staging", newer).status.state == State.PUBLISHED
        run(["cp", "-a", place.directory, folder / "site"])
        run(["cp", "-a", greet.path, folder / "work"])
        yield folder


@pytest.fixture
def made(kept: Path) -> Iterator[Made]:
    with places.canned() as (place, worker):
        for path in place.directory.iterdir():
            if path.name not in ("run", "invirtibuilder.yaml"):
                shutil.rmtree(path)
        for path in (kept / "site").iterdir():
            if path.name not in ("run", "invirtibuilder.yaml"):
                run(["cp", "-a", path, place.directory])
        repo = Repo(path=kept / "work", commit="", name="greet", version="1.1")
        yield place, worker, repo, {job.id: job for job in place.context.jobs.all()}


def _everything(site: Path) -> None:
    for name in ("jobs", "origs", "events"):
        shutil.rmtree(site / name)
    for pocket in ("dev", "staging", "prod"):
        archive = site / "archive" / pocket
        for name in ("publications", "by-hash", "private"):
            shutil.rmtree(archive / name)
        (archive / "dists").unlink()
        (archive / "key.asc").unlink()


LOST: dict[str, Callable[[Path], object]] = {
    "jobs": lambda site: shutil.rmtree(site / "jobs"),
    "a torn database": lambda site: (site / "archive/staging/private/db/packages.db").write_bytes(
        (site / "archive/staging/private/db/packages.db").read_bytes()[:9000]
    ),
    "private": lambda site: shutil.rmtree(site / "archive/staging/private"),
    "publications": lambda site: shutil.rmtree(site / "archive/staging/publications"),
    "dists": lambda site: (site / "archive/staging/dists").unlink(),
    "pool": lambda site: shutil.rmtree(site / "archive/staging/pool"),
    "everything": _everything,
}


def _publications(place: Place) -> Publications:
    return place.context.archive(place.site.pockets["staging"]).publications


@pytest.mark.parametrize("what", LOST)
def test_what_is_lost_comes_back(made: Made, tmp_path: Path, what: str) -> None:
    place, _, repo, before = made
    told = {name: (job.status, job.request, job.need("publish")) for name, job in before.items()}
    records = place.context.superproject.records("staging")
    numbers = _publications(place).numbers()
    LOST[what](place.directory)
    done = place.cli("rebuild-state")
    assert done.code == Exit.OK, (done.text, done.err)
    # The first one was empty.
    assert set(_publications(place).numbers()) >= set(numbers[1:])
    assert place.cli("fsck", "--full").code == Exit.OK
    assert place.cli("rebuild-state").text == "nothing was missing"
    assert place.context.superproject.records("staging") == records
    for job in place.context.jobs.all():
        status, request, fact = told.pop(job.id)
        assert job.status.state == status.state == State.PUBLISHED
        assert (job.status.version, job.status.commit) == (status.version, status.commit)
        assert (job.request.action, job.request.principal) == (request.action, request.principal)
        assert (job.request.args[:2], job.request.time) == (request.args[:2], request.time)
        again = job.need("publish")
        assert {**again, "date": ""} == {**fact, "date": ""}
    assert not told
    # Clients see what they saw, and a next publication comes to them.
    apt = AptClient(folder=tmp_path)
    apt.configure(
        f"Types: deb\nURIs: {file_uri(place.site.archive / 'staging')}\nSuites: staging\n"
        f"Components: main\nSigned-By: {place.site.archive}/staging/key.asc\n"
    )
    apt.update()
    assert apt.candidate("greet") == "1.1"
    assert apt.download("greet")
    assert apt.candidate("other") == "1.0"
    clone = tmp_path / "clone"
    run(["git", "clone", "--quiet", repo.path, clone], env=packages.identity())
    upgraded = packages.upgraded(Repo(path=clone, commit="", name="greet", version="1.1"), "1.2")
    place.push(upgraded)
    job = place.submitted("staging", upgraded)
    assert job.status.state == State.PUBLISHED, job.status
    apt.update()
    assert apt.candidate("greet") == "1.2"
    assert place.cli("fsck").code == Exit.OK


def test_earlier_states_come_back_and_stay(made: Made, tmp_path: Path) -> None:
    place, _, _, _ = made
    _everything(place.directory)
    assert place.cli("rebuild-state").code == Exit.OK
    place.cli("gc", check=True)
    first = place.context.superproject.history("staging")[-1]
    apt = AptClient(folder=tmp_path)
    apt.configure(place.cli("sources", "staging", "--at", first.id, check=True).text + "\n")
    apt.update()
    assert (apt.candidate("greet"), apt.candidate("other")) == ("1.0", "")
    assert apt.download("greet-doc")
    assert place.cli("fsck", "--full").code == Exit.OK


def test_an_earlier_state_with_a_lost_file_is_given_up(made: Made) -> None:
    place, _, _, _ = made
    _everything(place.directory)
    pool = place.site.archive / "staging/pool"
    (lost,) = pool.rglob("greet-doc_1.0_*.deb")
    lost.unlink()
    done = place.cli("rebuild-state")
    assert done.code == Exit.OK, (done.text, done.err)
    told = "cannot be made again: greet 1.0: greet-doc_1.0_all.deb is no longer kept"
    assert {f"staging: publication {n} {told}" for n in (2, 3)} <= set(done.text.splitlines())
    assert _publications(place).numbers() == [4]
    assert place.cli("fsck").code == Exit.OK
    assert place.cli("rebuild-state").text == "nothing was missing"


def test_an_earlier_state_that_reprepro_refuses_is_given_up(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had begun is undone: the states before come as they were."""
    place, _, _, _ = made
    _everything(place.directory)
    exchanged = database.exchanged

    def refused(*args: Any, **options: Any) -> None:
        exchanged(*args, **options)
        # From the newest state, of publication 4, to that of 3.
        if args[1].name == "staging" and set(args[3]) == {"greet"} and not seen:
            seen.append(args)
            raise PackageFault("reprepro refuses it")

    seen: list[object] = []
    monkeypatch.setattr(database, "exchanged", refused)
    told = list(rebuild.rebuild(place.context))
    assert "staging: publication 3 cannot be made again: reprepro refuses it" in told
    assert "staging: publication 2, an earlier one" in told
    assert _publications(place).numbers() == [2, 4]
    packages_of = place.site.archive / "staging/publications/00000002/dists/staging/main"
    text = (packages_of / "binary-amd64/Packages").read_text()
    assert "Package: greet\nVersion: 1.0\n" in text.replace("Source: greet\n", "")
    assert "Package: other\n" not in text
    assert place.cli("fsck").code == Exit.OK


def test_what_retention_does_not_keep_does_not_come_back(made: Made) -> None:
    place, _, _, _ = made
    place.edit("  staging:\n", "  staging:\n    retention: {publications: 1, time: 1d}\n")
    _everything(place.directory)
    later = datetime.now(UTC) + timedelta(days=2)
    list(rebuild.rebuild(replace(place.context, clock=lambda: later)))
    assert _publications(place).numbers() == [3, 4]


def test_a_published_version_goes_on_to_another_pocket_after_a_loss(made: Made) -> None:
    place, _, repo, _ = made
    shutil.rmtree(place.directory / "jobs")
    assert place.cli("rebuild-state").code == Exit.OK
    commit = run(["git", "-C", repo.path, "rev-parse", "HEAD"]).text
    job = place.submitted("prod", repo, commit)
    assert job.status.state == State.PUBLISHED, job.status


def test_it_refuses_beside_a_daemon(made: Made) -> None:
    place = made[0]
    with place.daemon():
        done = place.cli("rebuild-state")
    assert done.code == Exit.MACHINE
    assert b"stop it first" in done.err


def test_a_person_sees_how_far_it_is(made: Made) -> None:
    """Lines come as soon as they are true; at a terminal, now and then, also how much was read."""
    place = made[0]
    shutil.rmtree(place.site.archive / "staging/publications")
    words = [sys.executable, "-m", "invirtibuilder", "--config", str(place.config), "rebuild-state"]
    program = (
        "import runpy, sys; from invirtibuilder.cli import subcommand; subcommand.PAUSE = 0;"
        f"sys.argv = {words[2:]!r}; runpy.run_module('invirtibuilder', run_name='__main__')"
    )
    script = ["script", "--quiet", "--return", "--command", shlex.join([words[0], "-c", program])]
    done = run([*script, "/dev/null"], cwd=ROOT, timeout=300)
    lines = [line.strip() for line in done.text.splitlines()]
    (made_again,) = (n for n, line in enumerate(lines) if "publication 2, an earlier one" in line)
    first = next(n for n, line in enumerate(lines) if line == "files checked: 1 so far")
    assert made_again < first
    assert b"so far" not in place.cli("fsck", "--full").err


def test_what_is_nowhere_is_said(made: Made) -> None:
    place = made[0]
    shutil.rmtree(place.directory / "jobs")
    shutil.rmtree(place.directory / "archive/staging/pool")
    shutil.rmtree(place.directory / "archive/staging/private/db")
    done = place.cli("rebuild-state")
    assert done.code == Exit.REFUSED
    assert b"no longer kept" in done.err


def test_what_is_nowhere_in_one_pocket_keeps_no_other_away(made: Made) -> None:
    """dev comes first, and its only file of greet is gone."""
    place = made[0]
    for name in ("jobs", "archive/dev/pool", "archive/dev/private", "archive/staging/private"):
        shutil.rmtree(place.directory / name)
    (place.directory / "archive/staging/dists").unlink()
    done = place.cli("rebuild-state")
    assert done.code == Exit.REFUSED
    assert b"no longer kept" in done.err
    assert "dev: cannot be made anew: greet 1.0~dev+" in done.text
    assert "staging: publication" in done.text
    assert place.cli("fsck", "staging", "prod").code == Exit.OK


def test_promotions_and_rollbacks_come_back_too(made: Made) -> None:
    """And fsck has nothing to say of them before, nor of what retention removes."""
    place = made[0]
    may = f"      promote: [{places.ME}]\n      rollback: [{places.ME}]\n      cancel:"
    place.edit("      cancel:", may)
    tip = place.context.superproject.history("staging")
    with place.daemon():
        for words in (
            ["promote", "staging", "prod", "greet", "other"],
            ["rollback", "staging", tip[1].id, "--package", "greet"],
            ["rollback", "staging", tip[-1].id],
        ):
            done = place.cli(*words, "--wait")
            assert done.code == 0, (words, done.err)
    assert place.cli("fsck").text.startswith("clean: ")
    assert place.cli("gc").code == 0
    assert place.cli("fsck").text.startswith("clean: ")
    before = {job.id: (job.request.action, job.status.state) for job in place.context.jobs.all()}
    shutil.rmtree(place.directory / "jobs")
    done = place.cli("rebuild-state")
    assert done.code == Exit.OK, done.text
    after = {job.id: (job.request.action, job.status.state) for job in place.context.jobs.all()}
    # A rollback that took something away has left its name only, in the commit.
    gone = before.keys() - after.keys()
    assert {name: before[name] for name in after} == after
    assert {before[name][0] for name in gone} <= {"rollback"}
    assert place.cli("fsck").code == Exit.OK
