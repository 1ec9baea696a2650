"""What a site no longer keeps: by each pocket's `retention`, and never what is still needed.

A kept publication needs its pool files, its indices, the records, source packages and artifacts of
the jobs that made what it shows, and the bases that their sources were exported in. So does a state
that a rollback which is not over goes back to; what a promotion moves is what its origin shows.
Upstream tarballs, facts, journals and superproject stay for good.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import files, hosting, keptbases, maintenance, model
from invirtibuilder.errors import MachineFault, Malformed
from invirtibuilder.gitrepo import JOBS
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Archive, Context, Wait
from invirtibuilder.stages.rollback import asked_for, coming_back
from invirtibuilder.stages.transaction import all_settled, settled
from invirtibuilder.stages.uploads import pool_folder

HEAVY = ("attempts", "source", "artifacts", "upload", "repository.bundle", "export-order.json")
"""What is large in a job's directory; the rest of it tells what happened, and stays."""

REUSABLE = ("source", "artifacts")
"""Of that, what may be published again."""

ASIDE = ".gone-"
"""How a folder with such begins from which nobody publishes any more."""


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
    before = keptbases.needed(context.site)
    needs = _Needs(context)
    settled_all = True
    for pocket in context.site.pockets.values():
        known = _read_ahead(context, pocket, needs)
        try:
            with settled(context, pocket) as (archive, lock_fd):
                yield from _Archive(context, pocket, archive, lock_fd, known, dry_run).collect()
        except Wait:
            settled_all = False
    if settled_all:
        yield from _jobs(context, needs, before, dry_run)
    yield from _refs(context, dry_run)


def _kept(context: Context, pocket: Pocket, archive: Archive) -> list[int]:
    """The publications that stay."""
    old = _outdated(context, pocket, archive)
    return [number for number in archive.publications.numbers() if number not in old]


def _outdated(context: Context, pocket: Pocket, archive: Archive) -> dict[int, datetime]:
    kept = pocket.retention
    return archive.publications.outdated(
        context.clock(), seconds=kept.seconds, count=kept.publications
    )


Need = tuple[frozenset[str], str]
"""The jobs that made what a record has, and the base that its source was exported in."""


class _Needs:
    """What the states of pockets need. A state never changes: it is read once."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._states: dict[str, list[Need]] = {}
        self._records: dict[str, Need] = {}

    def now(self) -> tuple[set[str], dict[str, set[str]]]:
        """The jobs, and by domain the bases, that are needed now; most of it was read before."""
        jobs: set[str] = set()
        bases: dict[str, set[str]] = {name: set() for name in self.context.site.domains}
        for pocket in self.context.site.pockets.values():
            for made_by, base in self.of(pocket):
                jobs |= made_by
                bases[pocket.domain].add(base)
        # What was exported and is not published yet.
        for job in self.context.jobs.unfinished():
            asked = self.context.site.pockets.get(job.pocket)
            if asked and (fact := job.fact("export")):
                bases[asked.domain].add(str(fact["environment"].get("base", "")))
        return jobs, {domain: digests - {""} for domain, digests in bases.items()}

    def of(self, pocket: Pocket) -> set[Need]:
        """Of what the kept publications show, the branch records, and rollbacks go back to."""
        archive, superproject = self.context.archive(pocket), self.context.superproject
        commits = {archive.publications.commit(n) for n in _kept(self.context, pocket, archive)}
        commits |= {superproject.tip(pocket.branch) or ""} | asked_for(self.context, pocket)
        return {need for commit in commits - {""} for need in self._state(commit)}

    def _state(self, commit: str) -> list[Need]:
        if commit not in self._states:
            superproject = self.context.superproject
            found = superproject.record_ids(commit)
            for package, content in found.items():
                if content not in self._records:
                    record = superproject.record_at(commit, package) or {}
                    self._records[content] = _need(record)
            self._states[commit] = [self._records[content] for content in found.values()]
        return self._states[commit]


def _need(record: Mapping[str, Any]) -> Need:
    jobs = frozenset(str(record.get(key)) for key in ("job", "built", "reused"))
    return jobs, str(record.get("environment", {}).get("export", {}).get("base", ""))


def _read_ahead(context: Context, pocket: Pocket, needs: _Needs) -> dict[str, frozenset[str]]:
    """What the kept publications name, by index, and need: read while others can publish."""
    archive = context.archive(pocket)
    known: dict[str, frozenset[str]] = {}
    # Who collects at the same time may take one away; what is missed is read later.
    with suppress(MachineFault, FileNotFoundError):
        needs.of(pocket)
        for number in _kept(context, pocket, archive):
            archive.publications.pool_files(number, known)
    return known


@dataclass(frozen=True)
class _Archive:
    """A pocket's archive, whose lock is held, and what is known of its indices."""

    context: Context
    pocket: Pocket
    archive: Archive
    lock_fd: int
    known: dict[str, frozenset[str]]
    dry_run: bool

    def collect(self) -> Iterator[Waste]:
        old = _outdated(self.context, self.pocket, self.archive)
        yield from self._publications(old)
        yield from self._files(old)

    def _publications(self, old: Mapping[int, datetime]) -> Iterator[Waste]:
        publications, count = self.archive.publications, self.pocket.retention.publications
        for number, superseded in old.items():
            why = f"superseded at {model.iso(superseded)}; {count} states before now stay"
            yield self._waste("publication", str(number), why, publications.path(number))
        if not self.dry_run:
            publications.remove(old)

    def _files(self, old: Collection[int]) -> Iterator[Waste]:
        """Pool files that nothing needs; out of the database first, then off the disk."""
        publications, reprepro = self.archive.publications, self.archive.reprepro
        named = reprepro.references(lock_fd=self.lock_fd)
        for number in publications.numbers():
            if number not in old:
                named |= publications.pool_files(number, self.known)
        back = {
            f"{pool_folder(record['package'])}/{file['name']}"
            for record in coming_back(self.context, self.pocket)
            for file in record["files"]
        }
        root = publications.root
        there = (
            f"{folder}/{name}".removeprefix(f"{root}/")
            for folder, _, names in os.walk(root / "pool")
            for name in names
        )
        # Below pool/COMPONENT.
        gone = sorted(n for n in there if n not in named and n.split("/", 2)[-1] not in back)
        for name in gone:
            yield self._waste("file", name, "no kept publication has it", root / name)
        if gone and not self.dry_run:
            reprepro.begin()
            reprepro.forget(gone, lock_fd=self.lock_fd)
            reprepro.commit()
            for name in gone:
                (root / name).unlink()
                _remove_empty((root / name).parent, root / "pool")

    def _waste(self, kind: str, name: str, why: str, path: Path) -> Waste:
        return Waste(kind=kind, pocket=self.pocket.name, name=name, why=why, size=_size(path))


def _jobs(
    context: Context, needs: _Needs, before: keptbases.Needed | None, dry_run: bool
) -> Iterator[Waste]:
    """Bases that are needed no more, and what is large of jobs that nobody needs.

    Whatever is published, or admitted to go back, may need a job that it has not needed a moment
    ago. So what is needed is looked at once more while nobody publishes, and what goes is out of
    the way before anybody does again; removing it takes its time.
    """
    over = list(_over(context, needs.now()[0]))
    try:
        with all_settled(context):
            jobs, bases = needs.now()
            gone = [one for one in over if one.job.id not in jobs]
            if not dry_run:
                for one in gone:
                    one.put_aside()
                # Each worker removes the others with its next one.
                found = {domain: frozenset(digests) for domain, digests in bases.items()}
                keptbases.replace(context.site, before, found)
    except Wait:
        return
    for domain, digests in sorted((before or {}).items()):
        for digest in sorted(digests - bases.get(domain, set())):
            why = "no kept publication was exported in it; the worker's next base replaces it"
            yield Waste(kind="base", pocket="", name=f"{domain}: {digest[:16]}", why=why, size=0)
    for one in gone:
        yield one.waste
        if not dry_run:
            one.remove()


@dataclass(frozen=True)
class _Over:
    """A job that ended long ago, with something large."""

    job: Job
    names: str
    waste: Waste

    def put_aside(self) -> None:
        """Out of sight of whoever looks for files to publish again."""
        aside = self.job.directory / f"{ASIDE}{secrets.token_hex(4)}"
        for name in REUSABLE:
            if (self.job.directory / name).exists():
                aside.mkdir(exist_ok=True)
                (self.job.directory / name).rename(aside / name)

    def remove(self) -> None:
        """Remove what is large, and note that in the job's journal."""
        self.job.remark(f"no longer kept: {self.names}")
        plain = (self.job.directory / name for name in HEAVY if name not in REUSABLE)
        for path in (*plain, *self.job.directory.glob(f"{ASIDE}*")):
            files.remove_tree(path)


def _over(context: Context, needed: Collection[str]) -> Iterator[_Over]:
    """Jobs with sources, artifacts and attempts that ended long ago and that nobody needs."""
    now = context.clock()
    for job in context.jobs.all():
        status = job.status
        if not status.final or job.id in needed:
            continue
        pocket = context.site.pockets.get(job.pocket)
        if pocket is None:  # it may come back
            continue
        ended = datetime.fromisoformat(status.since)
        heavy = _heavy(job)
        if heavy and ended < now - timedelta(seconds=pocket.retention.seconds):
            names = ", ".join(path.name for path in heavy)
            size = sum(map(_size, heavy))
            why = f"{status.state} at {status.since}: {names}"
            waste = Waste(kind="job", pocket=job.pocket, name=job.id, why=why, size=size)
            yield _Over(job, names, waste)


def _heavy(job: Job) -> list[Path]:
    """What a job has of HEAVY, and what was put aside and not removed yet."""
    places = (job.directory, *sorted(job.directory.glob(f"{ASIDE}*")))
    paths = (place / name for place in places for name in HEAVY)
    return [path for path in paths if path.exists()]


def _refs(context: Context, dry_run: bool) -> Iterator[Waste]:
    """What holds objects for jobs that are over."""
    for package in hosting.package_names(context.site):
        repository = context.repository(package)
        for ref in repository.refs(JOBS):
            job = ref.removeprefix(JOBS).partition("/")[0]
            # Looked at after its ref was seen: that of a new job is never without the job.
            if _is_over(context, job):
                why = f"job {job} is over"
                yield Waste(kind="ref", pocket="", name=f"{package}: {ref}", why=why, size=0)
                if not dry_run:
                    repository.unkeep(ref)


def _is_over(context: Context, name: str) -> bool:
    """Whether no job of this name is on its way; one that cannot be read may be."""
    directory = context.site.jobs / name
    if not model.JOB.fullmatch(name) or not directory.is_dir():
        return True
    try:
        return Job(directory).status.final
    except (OSError, Malformed, LookupError, TypeError, ValueError):
        return False


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _size(path: Path) -> int:
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(p.lstat().st_size for p in paths if p.is_file() and not p.is_symlink())
