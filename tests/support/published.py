"""A site whose pocket `staging` has one package: what is to be damaged, and then comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invirtibuilder import files
from invirtibuilder.apt.publications import Publications
from invirtibuilder.apt.signer import Signer
from invirtibuilder.fsck import check as fsck
from invirtibuilder.run import run
from invirtibuilder.stages.context import Archive
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.cannedworker import CannedWorker
from tests.support.packages import Repo
from tests.support.place import Place

POCKET = "staging"


class Published:
    """A site with one package in `staging`, whose damage is undone after each test."""

    def __init__(self, place: Place, worker: CannedWorker, repo: Repo) -> None:
        self.place = place
        self.worker = worker
        self.repo = repo

    @property
    def archive(self) -> Archive:
        return self.place.context.archive(self.place.site.pockets[POCKET])

    @property
    def publications(self) -> Publications:
        return self.archive.publications

    @property
    def signer(self) -> Signer:
        return self.place.context.signer(self.place.site.pockets[POCKET])

    @property
    def bare(self) -> Path:
        return self.place.site.package_repository(self.repo.name)

    @property
    def record(self) -> dict[str, Any]:
        record = self.place.context.superproject.record(POCKET, self.repo.name)
        assert record
        return record

    def dist(self) -> Path:
        number = self.publications.current()
        assert number
        return self.publications.path(number) / "dists" / POCKET

    def pool(self, pattern: str) -> Path:
        (path,) = (self.publications.root / "pool").rglob(pattern)
        return path

    def git(self, *args: str) -> str:
        return run(["git", f"--git-dir={self.bare}", *args], env=packages.identity()).text

    def rewrite(self, change: Callable[[dict[str, Any]], None], commit: str = "") -> None:
        """One more superproject commit, whose record is changed and whose trailers are not."""
        superproject, record = self.place.context.superproject, self.record
        tip = superproject.tip(POCKET)
        assert tip
        trailers = superproject.trailers(tip)
        change(record)
        with superproject.chain(tip) as chain:
            new = chain.add(
                package=self.repo.name,
                commit=commit or self.repo.commit,
                record=record,
                subject="damage",
                trailers=trailers,
                author=("Ada", "ada@example.org"),
                date=superproject.history(POCKET)[0].date,
            )
        superproject.move(POCKET, new, tip)

    def kinds(self, *, level: str = "b", full: bool = False) -> set[str]:
        """The kinds of everything that is found."""
        return {finding.kind for finding in self.check(level=level, full=full).findings}

    def check(self, *, level: str = "b", full: bool = False, mend: bool = False) -> fsck.Report:
        """Of the one pocket."""
        pockets = [self.place.site.pockets[POCKET]]
        return fsck.check(self.place.context, pockets, level=level, full=full, mend=mend)


@contextmanager
def published(folder: Path) -> Iterator[tuple[Published, Path]]:
    """The site, and a copy of it for `put_back`."""
    with places.canned() as (place, worker):
        repo = packages.native(folder / "greet", binaries=("greet", "greet-doc"))
        place.package(repo)
        assert place.submitted(POCKET, repo).status.state == State.PUBLISHED
        run(["cp", "-a", place.directory, folder / "copy"])
        yield Published(place, worker, repo), folder / "copy"


def put_back(published: Published, copy: Path) -> None:
    """All of the site but its configuration and sockets, as it was copied."""
    for name in ("superproject.git", "packages", "archive", "jobs", "origs", "events", "run"):
        _put_back(copy / name, published.place.directory / name)


def _put_back(source: Path, target: Path) -> None:
    for path in target.iterdir():
        if not path.is_socket():
            files.remove_tree(path)
    for path in source.iterdir():
        if not path.is_socket():
            run(["cp", "-a", path, target])
