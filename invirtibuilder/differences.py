"""What differs between two states of pockets: packages, their commits, their binary packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from invirtibuilder import gitcmd, model
from invirtibuilder.errors import Fault, Malformed, NotFound
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.stages import history
from invirtibuilder.superproject import Superproject

MAX_LOG = 20
"""Commits of one package that are shown in one direction; of more, how many there are."""

Binaries = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A pocket's state; `commit` of the superproject is None before its first publication."""

    pocket: str
    commit: str | None
    date: str


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """A commit of a package, as `git log --oneline` shows it."""

    commit: str
    author: str
    subject: str


@dataclass(frozen=True, kw_only=True)
class Log:
    """Commits that one side has and the other has not, the newest first, and how many in all."""

    entries: tuple[LogEntry, ...] = ()
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Change:
    """One package: `old` and `new` are None where it is not there.

    `came` has the commits that only the new one has, `went` those that only the old one has.
    `binaries` has each binary package that differs, with its version on both sides.
    """

    package: str
    old: str | None
    new: str | None
    old_commit: str | None
    new_commit: str | None
    binaries: Mapping[str, tuple[str | None, str | None]]
    came: Log
    went: Log

    @property
    def kind(self) -> str:
        """added, removed or changed."""
        return "added" if self.old is None else "removed" if self.new is None else "changed"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """From state A to state B."""

    a: Side
    b: Side
    changes: tuple[Change, ...]

    def as_json(self) -> dict[str, Any]:
        changes = [{"kind": change.kind, **asdict(change)} for change in self.changes]
        return {"a": asdict(self.a), "b": asdict(self.b), "changes": changes}


def sides(site: Site, a: str, b: str) -> tuple[Side, Side]:
    """The states that two words name: POCKET, POCKET@COMMIT, POCKET@DATE, COMMIT or DATE.

    A commit of the superproject may stand alone, and a date beside a word with a pocket. Raises
    NotFound and Malformed.
    """
    pockets = [word.partition("@")[0] for word in (a, b)]
    known = next((site.pockets[name] for name in pockets if name in site.pockets), None)
    return _side(site, a, known), _side(site, b, known)


def _side(site: Site, words: str, known: Pocket | None) -> Side:
    name, _, state = words.partition("@")
    superproject = Superproject(site.superproject)
    if name in site.pockets:
        pocket = site.pockets[name]
        commit = (
            history.commit_at(site, pocket, state) if state else superproject.tip(pocket.branch)
        )
    elif state:
        raise NotFound(
            f"no such pocket: {model.printable(name)[:80]}",
            hint=f"one of {', '.join(site.pockets)}",
            code="no-pocket",
        )
    elif isinstance(_moment(words), datetime):
        if known is None:
            raise NotFound(f"{words}: of which pocket?", hint=f"POCKET@{words}", code="no-state")
        pocket, commit = known, history.commit_at(site, known, words)
    else:
        pocket, commit = _anywhere(site, words)
    date = model.iso(superproject.date(commit)) if commit else ""
    return Side(pocket=pocket.name, commit=commit, date=date)


def _moment(words: str) -> str | datetime:
    try:
        return model.moment(words)
    except Malformed as fault:
        raise NotFound(
            f"neither a pocket nor a state of one: {model.printable(words)[:80]!r}",
            hint="POCKET, POCKET@COMMIT, POCKET@DATE or COMMIT",
            code="no-state",
        ) from fault


def _anywhere(site: Site, words: str) -> tuple[Pocket, str]:
    """The pocket whose history has the commit of that id."""
    for pocket in site.pockets.values():
        try:
            return pocket, history.commit_at(site, pocket, words)
        except NotFound as fault:
            if fault.code != "no-state":
                raise
    raise NotFound(
        f"{model.printable(words)[:80]} is no pocket, and no commit of the superproject",
        hint="POCKET, POCKET@COMMIT, POCKET@DATE or COMMIT",
        code="no-state",
    )


def compare(site: Site, a: Side, b: Side) -> Difference:
    """Every package that is not the same on both sides, by name."""
    old, new = _records(site, a), _records(site, b)
    changes = [
        _change(site, package, old.get(package), new.get(package))
        for package in sorted({*old, *new})
        if _identity(old.get(package)) != _identity(new.get(package))
    ]
    return Difference(a=a, b=b, changes=tuple(changes))


def _records(site: Site, side: Side) -> dict[str, dict[str, Any]]:
    if side.commit is None:
        return {}
    return Superproject(site.superproject).content(side.commit)[1]


def _identity(record: Mapping[str, Any] | None) -> object:
    if record is None:
        return None
    files = sorted((f["name"], f["sha256"]) for f in record["files"])
    return record["version"], record["commit"], files


def _change(
    site: Site, package: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
) -> Change:
    before: Binaries = old["binaries"] if old else {}
    after: Binaries = new["binaries"] if new else {}
    names = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
    old_commit, new_commit = (str(r["commit"]) if r else None for r in (old, new))
    came = went = Log()
    if old_commit and new_commit and old_commit != new_commit:
        came = _log(site, package, old_commit, new_commit)
        went = _log(site, package, new_commit, old_commit)
    return Change(
        package=package,
        old=str(old["version"]) if old else None,
        new=str(new["version"]) if new else None,
        old_commit=old_commit,
        new_commit=new_commit,
        binaries={name: (before.get(name), after.get(name)) for name in names},
        came=came,
        went=went,
    )


def _log(site: Site, package: str, without: str, of: str) -> Log:
    """The commits of `of` that `without` does not have; nothing when git has them no more."""
    path = site.package_repository(package)
    between = f"{model.commit_id(without)}..{model.commit_id(of)}"
    form = "--format=%H%x00%an%x00%s"
    try:
        count = int(gitcmd.git(path, "rev-list", "--count", between, "--").text)
        done = gitcmd.git(path, "log", f"--max-count={MAX_LOG}", form, between, "--")
    except Fault:
        return Log()
    parts = [line.split("\0") for line in done.out.decode("utf-8", "replace").split("\n") if line]
    entries = [LogEntry(commit=c, author=author, subject=subject) for c, author, subject in parts]
    return Log(entries=tuple(entries), count=count)


def text(found: Difference) -> str:
    """For a person, with nothing that a terminal would act on."""
    lines = [f"{mark} {_stated(side)}" for mark, side in (("---", found.a), ("+++", found.b))]
    for change in found.changes:
        mark = {"added": "+", "removed": "-", "changed": "~"}[change.kind]
        versions = " -> ".join(v for v in (change.old, change.new) if v)
        if change.old == change.new:
            versions = f"{change.new} (other content)"
        lines.append(f"{mark} {change.package} {versions}")
        for name, (old, new) in change.binaries.items():
            lines.append(f"    {name}: {old or 'none'} -> {new or 'none'}")
        lines += _logged("", change.came)
        lines += _logged("without ", change.went)
    if not found.changes:
        lines.append("no difference")
    return "\n".join(lines)


def _stated(side: Side) -> str:
    return (
        f"{side.pocket} {side.commit[:12]} {side.date}" if side.commit else f"{side.pocket} empty"
    )


def _logged(word: str, log: Log) -> list[str]:
    lines = [
        f"      {word}{e.commit[:12]} {model.printable(e.subject)[:200]}"
        f" ({model.printable(e.author)[:80]})"
        for e in log.entries
    ]
    more = log.count - len(log.entries)
    return [*lines, f"      and {more} more"] if more > 0 else lines
