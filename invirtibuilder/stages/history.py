"""A pocket as it was: by a commit of the superproject, or by a date."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from invirtibuilder import model
from invirtibuilder.errors import NotFound
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.stages.context import archive
from invirtibuilder.superproject import Superproject


@dataclass(frozen=True, kw_only=True)
class Point:
    """A state of a pocket.

    `commit` is what was asked for; `last` is the commit whose content its publication has, which
    is a later one when several were published together.
    """

    commit: str
    last: str
    publication: int
    date: datetime

    @property
    def text(self) -> str:
        """What is shown, in a line, for a person."""
        shown = f"publication {self.publication} of {model.iso(self.date)}, commit {self.last[:12]}"
        if self.last == self.commit:
            return shown
        return f"{self.commit[:12]} was published together with later ones: {shown}"


def commit_at(site: Site, pocket: Pocket, words: str) -> str:
    """The superproject's commit that these words name in the pocket's history.

    Raises Malformed, and NotFound (codes no-state, state-ambiguous).
    """
    superproject = Superproject(site.superproject)
    moment = model.moment(words)
    if isinstance(moment, datetime):
        found = superproject.commit_before(pocket.branch, moment)
        if found is None:
            raise NotFound(
                f"{pocket.name} had published nothing by {model.iso(moment)}",
                hint=f"`git log {pocket.branch}` in the superproject has the dates",
                code="no-state",
            )
        return found
    known = superproject.commits_named(pocket.branch, moment)
    if len(known) == 1:
        return known[0]
    if known:
        raise ambiguous(words, known)
    raise NotFound(
        f"{words} is no commit of the superproject in the history of {pocket.name}",
        hint=f"`git log {pocket.branch}` in the superproject has them",
        code="no-state",
    )


def ambiguous(words: str, known: Iterable[str]) -> NotFound:
    """What to raise for words that name all of these."""
    listed = ", ".join(known)
    return NotFound(
        f"{words} is ambiguous: {listed}", hint="give more digits", code="state-ambiguous"
    )


def point(site: Site, pocket: Pocket, words: str) -> Point:
    """The state that a commit or a date names, with the publication that shows it.

    Raises NotFound, also (code state-gone) when retention has dropped it.
    """
    commit = commit_at(site, pocket, words)
    superproject = Superproject(site.superproject)
    publications = archive(site, pocket).publications
    number = int(superproject.trailers(commit)["Publication"])
    current = publications.current() or 0
    shown: tuple[int, str] | None = None
    for kept in publications.numbers():
        if not number <= kept <= current:
            continue
        of = publications.commit(kept)
        # The same content may have been signed again, and the first one gone since.
        if not of or int(superproject.trailers(of)["Publication"]) != number:
            break
        shown = kept, of
    if shown is None:
        raise NotFound(
            f"publication {number} of {pocket.name}, with commit {commit[:12]}, is no longer kept",
            hint=f"pockets: {pocket.name}: retention says how long; `rollback` may bring it back",
            code="state-gone",
        )
    return Point(
        commit=commit, last=shown[1], publication=shown[0], date=publications.date(shown[0])
    )
