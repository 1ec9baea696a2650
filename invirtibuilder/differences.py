"""What differs between two states of pockets: packages, their commits, their binary packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from invirtibuilder import gitcmd, model
from invirtibuilder.errors import Fault, Malformed, NotFound
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.stages import history
from invirtibuilder.superproject import Superproject

MAX_LOG = 1000
"""Commits of one package in one direction; of more, how many there are."""
SHOWN = 20
"""How many of them a person is shown."""

Binaries = Mapping[str, str]
State = tuple[Pocket, str | None]


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
    """Commits that one side has and the other has not, the newest first, and how many in all.

    `more` is how many of these are not in `entries`.
    """

    entries: tuple[LogEntry, ...] = ()
    count: int = 0
    more: int = 0


@dataclass(frozen=True, kw_only=True)
class Change:
    """One package: `old` and `new` are None where it is not there.

    `came` has the commits that only the new one has, `went` those that only the old one has; of a
    package that is on one side only they would be all that it has ever had, and are empty.
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


def sides(
    site: Site, a: str, b: str, *, may_see: Callable[[str], bool] = lambda pocket: True
) -> tuple[Side, Side]:
    """The states that two words name: POCKET, POCKET@COMMIT, POCKET@DATE, COMMIT or DATE.

    A commit of the superproject may stand alone, if it is of a pocket that the caller `may_see`,
    and a date beside a word that says of which pocket. Raises NotFound and Malformed.
    """
    found = [_state(site, words, may_see) for words in (a, b)]
    known = next((state[0] for state in found if state), None)
    if known is None:
        raise NotFound(f"{a}: of which pocket?", hint=f"POCKET@{a}", code="no-state")

    def side(words: str, state: State | None) -> Side:
        pocket, commit = state or (known, history.commit_at(site, known, words))
        date = model.iso(Superproject(site.superproject).date(commit)) if commit else ""
        return Side(pocket=pocket.name, commit=commit, date=date)

    return side(a, found[0]), side(b, found[1])


def _state(site: Site, words: str, may_see: Callable[[str], bool]) -> State | None:
    """The pocket, and the commit in its history, that words name; None for a date alone."""
    name, _, state = words.partition("@")
    superproject = Superproject(site.superproject)
    if name in site.pockets:
        pocket = site.pockets[name]
        tip = superproject.tip(pocket.branch)
        return pocket, history.commit_at(site, pocket, state) if state else tip
    if state:
        raise NotFound(
            f"no such pocket: {model.printable(name)[:80]}",
            hint=f"one of {', '.join(site.pockets)}",
            code="no-pocket",
        )
    moment = _moment(words)
    return None if isinstance(moment, datetime) else _anywhere(site, moment, may_see)


def _moment(words: str) -> str | datetime:
    try:
        return model.moment(words)
    except Malformed as fault:
        raise NotFound(
            f"neither a pocket nor a state of one: {model.printable(words)[:80]!r}",
            hint="POCKET, POCKET@COMMIT, POCKET@DATE or COMMIT",
            code="no-state",
        ) from fault


def _anywhere(site: Site, prefix: str, may_see: Callable[[str], bool]) -> tuple[Pocket, str]:
    """The only commit in all pockets' histories whose id starts so, and its pocket."""
    superproject = Superproject(site.superproject)
    found = [
        (pocket, commit)
        for pocket in site.pockets.values()
        if (named := superproject.commits_named(pocket.branch, prefix)) and may_see(pocket.name)
        for commit in named
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise history.ambiguous(prefix, [f"{pocket.name}@{commit}" for pocket, commit in found])
    raise NotFound(
        f"{prefix} is no pocket, and no commit of the superproject",
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
    return Log(entries=tuple(entries), count=count, more=max(0, count - len(entries)))


def text(found: Difference) -> str:
    """For a person, with nothing that a terminal would act on."""
    lines = [f"{mark} {_stated(side)}" for mark, side in (("---", found.a), ("+++", found.b))]
    for change in found.changes:
        mark = {"added": "+", "removed": "-", "changed": "~"}[change.kind]
        versions = " -> ".join(v for v in (change.old, change.new) if v)
        if change.old == change.new:
            versions = f"{change.new} (other content)"
        if change.kind != "changed":
            versions += f" at {str(change.new_commit or change.old_commit)[:12]}"
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
        for e in log.entries[:SHOWN]
    ]
    more = log.count - len(lines)
    return [*lines, f"      and {more} more"] if more > 0 else lines
