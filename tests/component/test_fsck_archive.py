"""fsck on what it must leave alone, and on what is kept besides the newest publication."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.run import run
from tests.support import packages
from tests.support.published import Published, published, put_back


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
