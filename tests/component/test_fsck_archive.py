"""fsck on what it must leave alone, and on what is kept besides the newest publication."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from invirtibuilder.errors import Exit
from invirtibuilder.fsck import check as fsck
from invirtibuilder.fsck.findings import Memory
from invirtibuilder.run import run
from invirtibuilder.settings import Pocket
from invirtibuilder.states import State
from tests.support import packages
from tests.support.packages import Repo
from tests.support.published import POCKET, Published, published, put_back


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Published, Path]]:
    with published(tmp_path_factory.mktemp("fsck")) as made:
        yield made


@pytest.fixture
def site(made: tuple[Published, Path]) -> Iterator[Published]:
    yield made[0]
    put_back(*made)


def _aged(path: Path) -> None:
    """Older than what may be in somebody's hands."""
    old = time.time() - 3 * 86400
    os.utime(path, (old, old))


def test_a_branch_is_no_leftover_whatever_its_name(site: Published) -> None:
    names = ("tmp_feature", "tmp_user/x", "objects/tmp_obj_x")
    for name in names:
        ref = f"HEAD:refs/heads/{name}"
        run(["git", "-C", site.repo.path, "push", "-q", site.bare, ref], env=packages.identity())
    for path in (site.bare / "refs/heads").rglob("*"):
        _aged(path)
    before = site.git("for-each-ref")
    assert all(f"refs/heads/{name}" in before for name in names)
    assert not site.check(mend=True).findings
    assert site.git("for-each-ref") == before


def test_what_git_itself_leaves_is_found(site: Published) -> None:
    objects = site.bare / "objects"
    left = [
        objects / "ab/tmp_obj_Xy12",
        objects / "pack/tmp_pack_Xy12",
        objects / "pack/.tmp-12-pack-0f.pack",
        objects / "info/commit-graphs/tmp_graph_Xy12",
        objects / "tmp_objdir-incoming-Xy12",
        site.bare / "refs/heads/main.lock",
        site.bare / "packed-refs.lock",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith("tmp_objdir"):
            (path / "pack").mkdir(parents=True)
            (path / "pack/tmp_pack_Xy12").touch()
            _aged(path / "pack/tmp_pack_Xy12")
        else:
            path.touch()
        _aged(path)
    report = site.check(mend=True)
    assert {f.what for f in report.findings if f.repaired} == {
        str(path.relative_to(site.place.directory)) for path in left
    }
    assert not [path for path in left if path.exists()]
    assert not site.kinds()


@pytest.fixture
def newer(site: Published, tmp_path: Path) -> Published:
    """The site with greet 1.1 in publication 3; what publication 2 shows is kept."""
    clone = tmp_path / "greet"
    run(["git", "clone", "-q", site.repo.path, clone], env=packages.identity())
    repo = packages.upgraded(Repo(path=clone, commit="", name="greet", version="1.0"), "1.1")
    site.place.push(repo)
    assert site.place.submitted(POCKET, repo).status.state == State.PUBLISHED
    assert not site.kinds()
    return site


def _moved(site: Published) -> None:
    path = site.pool("greet_1.1_*.deb")
    elsewhere = site.publications.root / "pool/main/z"
    elsewhere.mkdir()
    path.rename(elsewhere / path.name)


KEPT: dict[str, tuple[Callable[[Published], object], set[str]]] = {
    "an older deb gone": (lambda s: s.pool("greet_1.0_*.deb").unlink(), {"file-missing"}),
    "an older deb": (lambda s: s.pool("greet_1.0_*.deb").write_bytes(b"x"), {"file-differs"}),
    "an older tarball": (lambda s: s.pool("*_1.0.tar.xz").unlink(), {"file-missing"}),
    "a deb elsewhere": (_moved, {"file-missing", "pool-unreferenced"}),
    "an older tag": (lambda s: s.git("tag", "-d", "debian/1.0"), {"tag-missing"}),
    "an older ref": (
        lambda s: s.git("update-ref", "-d", "refs/invirtibuilder/staging/1.0"),
        {"kept-ref-missing"},
    ),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_an_older_publication_needs_is_looked_at(newer: Published, what: str) -> None:
    before = newer.git("for-each-ref")
    damage, kinds = KEPT[what]
    damage(newer)
    assert kinds <= newer.kinds()
    report = newer.check(mend=True)
    drift = {kind for kind in kinds if kind != "pool-unreferenced"}
    assert {f.kind for f in report.findings if f.repaired} == drift, report
    assert newer.kinds(full=True) == kinds - drift
    assert newer.git("for-each-ref") == before


def test_a_kept_publication_is_missed(newer: Published) -> None:
    numbers = newer.publications.numbers()
    shutil.rmtree(newer.publications.path(2))
    report = newer.check()
    assert [f.kind for f in report.findings if f.drift] == ["publication-missing"]
    done = newer.place.cli("rebuild-state")
    assert done.code == Exit.OK, done
    assert "publication 2, an earlier one" in done.text
    assert newer.publications.numbers() == numbers
    assert "publication-missing" not in newer.kinds()


def test_what_retention_removed_is_not_missed(newer: Published) -> None:
    later = newer.place.context.clock() + timedelta(days=2)
    assert newer.publications.prune(later, count=1) == [1]
    assert not newer.kinds()
    # Not even one of the oldest may be gone otherwise.
    shutil.rmtree(newer.publications.path(2))
    assert "publication-missing" in newer.kinds()


def test_a_publication_in_between_is_no_drift(site: Published, tmp_path: Path) -> None:
    other = packages.native(tmp_path / "other", "other")
    site.place.package(other)
    published: list[State] = []

    class Between(list[Pocket]):
        """Something is published once the last pocket was looked at."""

        def __iter__(self) -> Iterator[Pocket]:
            yield from super().__iter__()
            if not published:
                published.append(site.place.submitted(POCKET, other).status.state)

    pockets = Between([site.place.site.pockets[POCKET]])
    report = fsck.check(site.place.context, pockets, level="b", full=False, mend=False)
    assert published == [State.PUBLISHED]
    assert not report.findings


def test_what_is_gone_is_not_remembered(newer: Published) -> None:
    path = newer.publications.root / "pool/main/g/greet/more_1_all.deb"
    path.write_bytes(b"more")

    def remembered() -> set[str]:
        return set(json.loads((newer.place.directory / "run/fsck.json").read_text())["seen"])

    memory = Memory(newer.place.directory / "run/fsck.json", full=False)
    memory.sha256(path)
    memory.save()
    assert str(path) in remembered()
    path.unlink()
    newer.check()
    assert str(path) not in remembered()
    assert len(remembered()) > 10
