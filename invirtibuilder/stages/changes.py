"""What becomes of one package in a pocket: a commit of the superproject, and the refs with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from invirtibuilder import files, model
from invirtibuilder.errors import Reason, Refused
from invirtibuilder.gitcmd import Move
from invirtibuilder.gitrepo import JOBS, Repository
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import uploads
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.dependencies import owners
from invirtibuilder.stages.uploads import Upload
from invirtibuilder.superproject import Chain


@dataclass(frozen=True, kw_only=True)
class Change:
    """What becomes of one package in a pocket: one commit of the superproject.

    `job` is who the record and the commit name. Without a `commit` the package goes; else
    `record` is all that is to be recorded but publication and time, and `upload` what APT gets;
    without one, what APT has of it stays but for what another source takes (`losses`).
    """

    package: str
    job: str
    commit: str | None
    record: Mapping[str, Any]
    upload: Upload | None
    subject: str
    trailers: Mapping[str, str]

    @property
    def loses(self) -> bool:
        """Whether it only loses binary packages to others."""
        return self.upload is None and self.commit is not None


def losses(context: Context, pocket: Pocket, coming: Sequence[Change]) -> Iterator[Change]:
    """What becomes of the sources from which these take binary packages: records without them.

    So what is recorded of a pocket is what APT has, each file once.
    """
    by = {name: c.package for c in coming if c.upload for name in c.upload.packages}
    if not pocket.allow_takeover or not by:
        return
    lost: dict[str, dict[str, str]] = {}
    for name, source in owners(context, pocket, by).items():
        if source not in {change.package for change in coming}:
            lost.setdefault(source, {})[name] = by[name]
    for source, taken in sorted(lost.items()):
        record = context.superproject.record(pocket.branch, source)
        if record is None:
            continue
        to = ", ".join(sorted(set(taken.values())))
        yield Change(
            package=source,
            job=coming[-1].job,
            commit=str(record["commit"]),
            record=uploads.record_without(record, taken),
            upload=None,
            subject=f"{source} in {pocket.name} loses {', '.join(sorted(taken))} to {to}",
            trailers=uploads.trailers(record),
        )


def written(
    context: Context,
    pocket: Pocket,
    change: Change,
    *,
    chain: Chain,
    number: int,
    date: datetime,
) -> dict[str, Any]:
    """Write the objects of a change, no ref yet: the next commit of a chain, and the refs.

    It is JSON, to be written down before anything is done: a redo makes the same. Raises Refused
    for what is in the way of a ref.
    """
    refs = _refs(context, pocket, change, date) if change.commit else {}
    commit = _composed(context, change, chain, number, date)
    return {
        "package": change.package,
        "job": change.job,
        "commit": commit,
        "refs": refs,
        "loses": change.loses,
    }


def _composed(context: Context, change: Change, chain: Chain, number: int, date: datetime) -> str:
    site = context.site
    record = {**change.record, "publication": number, "published": model.iso(date)}
    return chain.add(
        package=change.package,
        commit=change.commit,
        record=record,
        subject=change.subject,
        trailers={"Job": change.job, **change.trailers, "Publication": str(number)},
        author=(site.tagger_name, site.tagger_mail),
        date=date,
    )


def _refs(context: Context, pocket: Pocket, change: Change, date: datetime) -> dict[str, str]:
    """What has to point where once this is published: kept refs, and the version's tag."""
    record, commit = change.record, str(change.commit)
    site, repository = context.site, context.repository(change.package)
    version = str(record["version"])
    there = repository.refs("refs/")
    kept = pocket.kept_ref(version)
    refs = {kept: commit}
    if not pocket.allow_backtracking:
        tag = pocket.tag(version)
        made = there.get(f"refs/tags/{tag}")
        if made:
            _tag_is_here(repository, tag, commit)
        refs[f"refs/tags/{tag}"] = made or repository.tag_object(
            tag,
            commit,
            f"{change.package} {version} in {pocket.name}\n\nJob: {change.job}\n",
            site.tagger_name,
            site.tagger_mail,
            date,
        )
    for name, target in uploads.held(record).items():
        refs[f"{kept}-{name.lower()}"] = target
    nothing_in_the_way(repository, refs, there)
    return refs


def _tag_is_here(repository: Repository, tag: str, commit: str) -> None:
    """Another pocket may have tagged the version since admission. Raises Refused."""
    if repository.peeled(f"refs/tags/{tag}") != commit:
        message = f"the tag {tag} does not point to {commit[:12]} (any more)"
        hint = "a version once tagged stays: use a higher one"
        raise Refused([Reason(code="tag-elsewhere", message=message, hint=hint)])


def nothing_in_the_way(
    repository: Repository, refs: Mapping[str, str], there: Mapping[str, str]
) -> None:
    """Each ref can be made, of all that are `there`. Raises Refused with every one that not.

    Pushes cannot make such refs; imports, other pockets and earlier configurations can.
    """
    reasons = []
    for name, target in refs.items():
        parts = name.split("/")
        above = {"/".join(parts[:n]) for n in range(3, len(parts))}
        wrong = [
            found
            for found, oid in there.items()
            if found in above
            or found.startswith(f"{name}/")
            or (found == name and oid != target and not _same_commit(repository, found, target))
        ]
        reasons += [
            Reason(
                code="ref-in-the-way",
                message=f"{found} is in the way of {name}",
                hint="a higher version has other refs; or the administrator moves it away",
            )
            for found in wrong
        ]
    if reasons:
        raise Refused(reasons)


def _same_commit(repository: Repository, tag: str, target: str) -> bool:
    """Whether a tag of another object, made by another pocket meanwhile, is of the same commit."""
    if not tag.startswith("refs/tags/"):
        return False
    here, there = repository.commits_of([repository.ref(tag) or "", target])
    return here is not None and here == there


def make_refs(
    repository: Repository, refs: Mapping[str, str], there: Mapping[str, str], job: str
) -> None:
    """Make what `written` gave, after the commit point, with all refs that are `there`.

    Those that held the objects for the job go. Safe to repeat.
    """
    right = [
        name
        for name, target in refs.items()
        if name in there and (there[name] == target or _same_commit(repository, name, target))
    ]
    moves: dict[str, Move] = {name: (None, refs[name]) for name in refs.keys() - set(right)}
    held = {n: oid for n, oid in there.items() if n.startswith(f"{JOBS}{job}/")}
    repository.set_refs(moves | {name: (oid, None) for name, oid in held.items()})
    repository.sync_refs(right)


@contextmanager
def repositories_locked(context: Context, packages: Iterable[str]) -> Iterator[None]:
    """For the moment in which tags are looked at and made: another pocket may make them, too."""
    with ExitStack() as stack:
        for name in sorted(packages):
            path = context.repository(name).path
            if path.is_dir():
                stack.enter_context(files.locked(path / "publishing"))
        yield
