"""reprepro's database is damaged outside of any transaction: it is found, and fails no job."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from invirtibuilder.errors import Exit
from invirtibuilder.pipeline import advance
from invirtibuilder.run import run
from invirtibuilder.states import State
from tests.support import packages
from tests.support.packages import Repo
from tests.support.published import POCKET, Published, published, put_back


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Published, Path]]:
    with published(tmp_path_factory.mktemp("database")) as made:
        yield made


@pytest.fixture
def site(made: tuple[Published, Path]) -> Iterator[Published]:
    yield made[0]
    put_back(*made)


def _database(site: Published) -> Path:
    return site.archive.reprepro.private / "db"


def _torn(name: str) -> Callable[[Published], None]:
    def tear(site: Published) -> None:
        path = _database(site) / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return tear


def _without(name: str) -> Callable[[Published], None]:
    return lambda site: (_database(site) / name).unlink()


def _reprepro(site: Published, *words: str | Path) -> None:
    base, out = site.archive.reprepro.private, site.archive.reprepro.root
    run(["reprepro", "-b", base, "--outdir", out, "--export=silent-never", *words])


def _removed(site: Published, *words: str) -> None:
    *options, package = words
    _reprepro(site, "--keepunreferencedfiles", *options, "remove", POCKET, package)


def _other_content(site: Published) -> None:
    """A binary of the recorded name and version, of other bytes; the pool has the recorded ones."""
    deb = site.pool("greet-doc_*.deb")
    recorded = deb.read_bytes()
    folder = deb.with_name("other")
    run(["dpkg-deb", "--raw-extract", deb, folder])
    (folder / "more").write_text("more\n")
    # The pool's file goes with it.
    _reprepro(site, "remove", POCKET, "greet-doc")
    other = folder.with_suffix(".deb")
    run(["dpkg-deb", "--root-owner-group", "--build", folder, other])
    _reprepro(site, "-S", "misc", "-P", "optional", "includedeb", POCKET, other)
    shutil.rmtree(folder)
    other.unlink()
    deb.write_bytes(recorded)


DAMAGE: dict[str, Callable[[Published], None]] = {
    "packages torn": _torn("packages.db"),
    "references torn": _torn("references.db"),
    "checksums torn": _torn("checksums.db"),
    "caches torn": _torn("release.caches.db"),
    "contents torn": _torn("contents.cache.db"),
    "no packages": _without("packages.db"),
    "no references": _without("references.db"),
    "no checksums": _without("checksums.db"),
    "a binary less": lambda site: _removed(site, "greet-doc"),
    "the source alone": lambda site: _removed(site, "-T", "deb", "greet"),
    "another binary": _other_content,
    "nothing": lambda site: shutil.rmtree(_database(site)),
}


def _other(site: Published, folder: Path) -> Repo:
    other = packages.native(folder / "other", "other")
    site.place.package(other)
    return other


@pytest.mark.parametrize("what", DAMAGE)
def test_no_job_fails_for_it(site: Published, tmp_path: Path, what: str) -> None:
    DAMAGE[what](site)
    job = site.place.submitted(POCKET, _other(site, tmp_path))
    assert job.status.state == State.PUBLISHED, job.status
    clone = tmp_path / "greet"
    run(["git", "clone", "-q", site.repo.path, clone], env=packages.identity())
    newer = packages.upgraded(Repo(path=clone, commit="", name="greet", version="1.0"), "1.1")
    site.place.push(newer)
    job = site.place.submitted(POCKET, newer)
    assert job.status.state == State.PUBLISHED, job.status


@pytest.mark.parametrize("what", DAMAGE)
def test_it_is_found_and_made_anew(site: Published, what: str) -> None:
    DAMAGE[what](site)
    assert site.kinds() == {"database-differs"}
    done = site.place.cli("rebuild-state")
    assert (done.code, "reprepro's database" in done.text) == (Exit.OK, True), done
    assert not site.kinds()
    assert site.place.cli("rebuild-state").text == "nothing was missing"


def test_fsck_repairs_it(site: Published) -> None:
    DAMAGE["references torn"](site)
    report = site.check(mend=True)
    assert [f.repaired for f in report.findings] == ["made anew from the records"]
    assert not site.kinds()


def test_a_job_waits_when_it_cannot_be_made_anew(site: Published, tmp_path: Path) -> None:
    other = _other(site, tmp_path)
    DAMAGE["references torn"](site)
    jobs, aside = site.place.site.jobs, tmp_path / "aside"
    tarball = site.pool("*.tar.xz")
    (source,) = jobs.glob("*/source/*.tar.xz")
    for path in (tarball, source):
        aside.mkdir(exist_ok=True)
        shutil.move(path, aside / path.parent.name)
    job = site.place.submitted(POCKET, other)
    assert job.status.state == State.WAITING, job.status
    assert "is damaged, and cannot be made anew" in job.status.reasons[0]["message"]
    for path in (tarball, source):
        shutil.move(aside / path.parent.name, path)
    advance(site.place.context, job)
    assert site.place.ended(job.id).status.state == State.PUBLISHED
    assert not site.kinds()
