"""What a site no longer keeps: by each pocket's `retention`, and never what is still needed.

A kept publication needs its pool files, its indices, the records, source packages and artifacts of
the jobs that made what it shows, and the bases that their sources were exported in. Upstream
tarballs, facts, journals and superproject stay for good.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import files, hosting, keptbases, maintenance, model
from invirtibuilder.gitrepo import JOBS
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Archive, Context, Wait
from invirtibuilder.stages.transaction import settled

HEAVY = ("attempts", "source", "artifacts", "upload", "repository.bundle", "export-order.json")
"""What is large in a job's directory; the rest of it tells what happened, and stays."""


@dataclass(frozen=True, kw_only=True)
class Waste:
    """Something that goes, or has gone: its kind, its name, why, and about how many bytes."""

    kind: str  # publication, file, base, job or ref
    pocket: str  # or nothing
    name: str
    why: str
    size: int

    @property
    def text(self) -> str:
        """A line for a person."""
        where = f"{self.pocket}: " if self.pocket else ""
        return f"{where}{self.kind} {self.name} ({self.size} bytes): {self.why}"


def collect(context: Context, *, dry_run: bool = False) -> Generator[Waste]:
    """Remove what is no longer kept, and tell each thing; with `dry_run` only tell.

    Safe to cut off and to repeat, beside a daemon at work. A pocket with a publication that
    cannot be finished keeps all it has, and so does every job then.
    """
    gone = {name: {"gone": 0, "bytes": 0} for name in context.site.pockets}
    for waste in _collect(context, dry_run):
        if sums := gone.get(waste.pocket):
            sums["gone"] += 1
            sums["bytes"] += waste.size
        yield waste
    if not dry_run:
        maintenance.note(context.site, maintenance.GC, context.clock(), gone)


def _collect(context: Context, dry_run: bool) -> Iterator[Waste]:
    needed: set[str] | None = set()
    before = keptbases.needed(context.site)
    bases = _bases_at_work(context)
    for pocket in context.site.pockets.values():
        try:
            with settled(context, pocket) as (archive, lock_fd):
                if needed is not None:
                    jobs, found = _needed(context, pocket, archive)
                    needed |= jobs
                    bases[pocket.domain] |= found
                yield from _Archive(context, pocket, archive, lock_fd, dry_run).collect()
        except Wait:
            needed = None
    if needed is not None:
        yield from _bases(context, before, bases, dry_run)
        yield from _jobs(context, needed, dry_run)
    yield from _refs(context, dry_run)


@dataclass(frozen=True)
class _Archive:
    """A pocket's archive, whose lock is held."""

    context: Context
    pocket: Pocket
    archive: Archive
    lock_fd: int
    dry_run: bool

    def collect(self) -> Iterator[Waste]:
        yield from self._publications()
        yield from self._files()

    def _publications(self) -> Iterator[Waste]:
        publications, kept = self.archive.publications, self.pocket.retention
        old = _outdated(self.context, self.pocket, self.archive)
        for number, superseded in old.items():
            why = f"superseded at {model.iso(superseded)}; {kept.publications} states before now stay"
            yield self._waste("publication", str(number), why, publications.path(number))
        if not self.dry_run:
            publications.prune(self.context.clock(), seconds=kept.seconds, count=kept.publications)

    def _files(self) -> Iterator[Waste]:
        """Pool files of no kept publication; out of the database first, then off the disk."""
        publications, reprepro = self.archive.publications, self.archive.reprepro
        old = _outdated(self.context, self.pocket, self.archive)
        known: dict[str, frozenset[str]] = {}
        named = reprepro.references(lock_fd=self.lock_fd)
        for number in publications.numbers():
            if number not in old:
                named |= publications.pool_files(number, known)
        root = publications.root
        there = sorted(p for p in (root / "pool").rglob("*") if p.is_file())
        gone = [path for path in there if str(path.relative_to(root)) not in named]
        for path in gone:
            why = "no kept publication has it"
            yield self._waste("file", str(path.relative_to(root)), why, path)
        if gone and not self.dry_run:
            reprepro.begin()
            reprepro.forget([str(p.relative_to(root)) for p in gone], lock_fd=self.lock_fd)
            reprepro.commit()
            for path in gone:
                path.unlink()
                _remove_empty(path.parent, root / "pool")

    def _waste(self, kind: str, name: str, why: str, path: Path) -> Waste:
        return Waste(kind=kind, pocket=self.pocket.name, name=name, why=why, size=_size(path))


def _outdated(context: Context, pocket: Pocket, archive: Archive) -> dict[int, datetime]:
    kept = pocket.retention
    return archive.publications.outdated(
        context.clock(), seconds=kept.seconds, count=kept.publications
    )


def _needed(context: Context, pocket: Pocket, archive: Archive) -> tuple[set[str], set[str]]:
    """The jobs, and the bases of the exports, of all that the kept publications show, and that the
    branch records now."""
    publications, superproject = archive.publications, context.superproject
    old = _outdated(context, pocket, archive)
    commits = {publications.commit(n) for n in publications.numbers() if n not in old}
    commits |= {superproject.tip(pocket.branch) or ""}
    seen: set[str] = set()
    jobs: set[str] = set()
    bases: set[str] = set()
    for commit in sorted(commits - {""}):
        for package, blob in superproject.record_ids(commit).items():
            if blob not in seen:
                seen.add(blob)
                record = superproject.record_at(commit, package) or {}
                jobs |= {str(record.get(key)) for key in ("job", "built", "reused")}
                bases.add(_base(record))
    return jobs, bases - {""}


def _base(record: Mapping[str, Any]) -> str:
    """The base that a record's source was exported in."""
    return str(record.get("environment", {}).get("export", {}).get("base", ""))


def _bases_at_work(context: Context) -> dict[str, set[str]]:
    """The bases, by domain, of what was exported and is not published yet."""
    found: dict[str, set[str]] = {name: set() for name in context.site.domains}
    for job in context.jobs.unfinished():
        pocket = context.site.pockets.get(job.pocket)
        if pocket and (fact := job.fact("export")):
            found[pocket.domain].add(str(fact["environment"].get("base", "")))
    return found


def _bases(
    context: Context,
    before: keptbases.Needed | None,
    found: Mapping[str, set[str]],
    dry_run: bool,
) -> Iterator[Waste]:
    """Tell workers which older bases are needed no more; each removes them with its next one."""
    for domain, digests in sorted((before or {}).items()):
        for digest in sorted(digests - found.get(domain, set())):
            why = "no kept publication was exported in it; the worker's next base replaces it"
            yield Waste(kind="base", pocket="", name=f"{domain}: {digest[:16]}", why=why, size=0)
    if not dry_run:
        now = {domain: frozenset(digests - {""}) for domain, digests in found.items()}
        keptbases.replace(context.site, before, now)


def _jobs(context: Context, needed: set[str], dry_run: bool) -> Iterator[Waste]:
    """The sources, artifacts and attempts of jobs that ended long ago and that nobody needs."""
    now = context.clock()
    for job in context.jobs.all():
        status = job.status
        if not status.final or job.id in needed:
            continue
        pocket = context.site.pockets.get(job.pocket)
        if pocket is None:  # it may come back
            continue
        ended = datetime.fromisoformat(status.since)
        heavy = [path for name in HEAVY if (path := job.directory / name).exists()]
        if heavy and ended < now - timedelta(seconds=pocket.retention.seconds):
            names = ", ".join(path.name for path in heavy)
            size = sum(map(_size, heavy))
            why = f"{status.state} at {status.since}: {names}"
            yield Waste(kind="job", pocket=job.pocket, name=job.id, why=why, size=size)
            if not dry_run:
                _lighten(job, heavy, names)


def _lighten(job: Job, heavy: list[Path], names: str) -> None:
    job.remark(f"no longer kept: {names}")
    for path in heavy:
        files.remove_tree(path)


def _refs(context: Context, dry_run: bool) -> Iterator[Waste]:
    """What holds objects for jobs that are over."""
    over = {job.id for job in context.jobs.all() if job.status.final}
    known = set(context.jobs.names())
    for package in hosting.package_names(context.site):
        repository = context.repository(package)
        for ref in repository.refs(JOBS):
            job = ref.removeprefix(JOBS).partition("/")[0]
            if job in over or job not in known:
                why = f"job {job} is over"
                yield Waste(kind="ref", pocket="", name=f"{package}: {ref}", why=why, size=0)
                if not dry_run:
                    repository.unkeep(ref)


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _size(path: Path) -> int:
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(p.lstat().st_size for p in paths if p.is_file() and not p.is_symlink())
