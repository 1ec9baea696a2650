"""What nobody needs any more: refs of nothing published, files of processes that were killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from invirtibuilder import debchanges, files, gitcmd, hosting, model
from invirtibuilder.apt.publications import Publications
from invirtibuilder.errors import Fault
from invirtibuilder.fsck.findings import Finding
from invirtibuilder.fsck.indices import MAX_RELEASE, listed_files, read_index
from invirtibuilder.gitrepo import JOBS
from invirtibuilder.jobs import Jobs
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Context

AGE = 24 * 3600.0
"""Seconds; what is younger may be in somebody's hands."""

FORM = "%(refname)%00%(objectname)%00%(*objectname)%00%(contents:trailers:key=Job,valueonly)"
TEMPORARY = (
    *("jobs/.*", "jobs/*/.*", "jobs/*/upload", "jobs/*/repository.bundle", "queue/tmp/*"),
    *("origs/.*", "run/.*.tmp", "events/*/.*.tmp", "archive/*/publications/.*"),
    *(
        "archive/*/private/db.txn.*",
        "archive/*/private/db.old",
        "archive/*/private/trial",
        "archive/*/by-hash/SHA256/.*",
    ),
    *("archive/*/.*.tmp", "archive/*/.dists.new"),
    *(
        f"{repository}/{pattern}"
        for repository in ("packages/*.git", "superproject.git")
        # A branch may have any of these names but that of a lock.
        for pattern in ("objects/**/tmp_*", "objects/pack/.tmp-*", "**/*.lock", ".*.tmp")
    ),
)
"""What only a process that was killed leaves: patterns below the site's directory."""

KEPT = ("events/*/.lock", "events/*/.*.lock", "jobs/*/.lock")
"""What those patterns find besides, and is no leftover."""


def check_files(context: Context, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Temporary files that are older than a day."""
    site = context.site
    kept = {path for pattern in KEPT for path in site.directory.glob(pattern)}
    found = {path for pattern in TEMPORARY for path in site.directory.glob(pattern)}
    over = _over(context)
    for path in sorted(found - kept):
        if found.intersection(path.parents):
            continue
        with suppress(FileNotFoundError):
            age = now() - path.lstat().st_mtime
            job = path.relative_to(site.directory).parts[1]
            if age > AGE or (path.match("jobs/*/*") and job in over):
                name = str(path.relative_to(site.directory))
                yield Finding(kind="leftover", pocket="", what=name, message=f"{name} is left over")


def _over(context: Context) -> set[str]:
    return {job.id for job in Jobs(context.site.jobs).all() if job.status.final}


def check_refs(context: Context) -> Iterator[Finding]:
    """Refs and tags that only publications make, of versions that no pocket ever published."""
    site = context.site
    # A job gives its refs back before it is over, and a publication stands in the history before it
    # makes any: so, in this order, what comes meanwhile looks right.
    over = _over(context)
    refs = {package: list(_refs(context, package)) for package in hosting.package_names(site)}
    published: dict[str, set[str]] = {name: set() for name in site.pockets}
    jobs = set()
    for name, pocket in site.pockets.items():
        for commit in context.superproject.history(pocket.branch):
            published[name].add(model.tag_version(commit.trailers.get("Version", "")))
            jobs.add(commit.trailers.get("Job", ""))
    for package, found in refs.items():
        for ref, job in found:
            if ref.startswith(JOBS):
                if ref.removeprefix(JOBS).split("/")[0] in over:
                    message = f"{package}: {ref} is of a job that is over"
                    what = f"{package} {ref}"
                    yield Finding(kind="leftover", pocket="", what=what, message=message)
            elif ref.startswith("refs/invirtibuilder/"):
                yield from _kept(package, ref, published)
            elif ref.startswith("refs/tags/") and job and job not in jobs:
                message = f"{package}: {ref} was made for job {job}, which published nothing"
                yield Finding(kind="tag-without-publication", pocket="", what=ref, message=message)


def _refs(context: Context, package: str) -> Iterator[tuple[str, str]]:
    """Each ref of a repository, and the job that it says it was made for."""
    path = context.site.package_repository(package)
    done = gitcmd.git(path, "for-each-ref", f"--format={FORM}")
    for line in done.out.decode("utf-8", "replace").split("\n"):
        parts = line.split("\0")
        # Others are a trailer's own line end.
        if len(parts) == 4:
            yield parts[0], parts[3].strip()


def _kept(package: str, ref: str, published: dict[str, set[str]]) -> Iterator[Finding]:
    pocket, _, version = ref.removeprefix("refs/invirtibuilder/").partition("/")
    for suffix in ("-pristine-tar", "-upstream-tag"):
        version = version.removesuffix(suffix)
    if pocket in published and version not in published[pocket]:
        message = f"{package}: {ref} is of a version that {pocket} never published"
        yield Finding(kind="ref-without-publication", pocket=pocket, what=ref, message=message)


def check_pool(context: Context, pocket: Pocket, lock_fd: int) -> Iterator[Finding]:
    """Files in the pool that neither a kept publication nor reprepro's database names."""
    archive = context.archive(pocket)
    needed = set()
    for number in archive.publications.numbers():
        needed |= _named(archive.publications, number, pocket.codename)
    with suppress(Fault):
        for entry in archive.reprepro.listing(lock_fd=lock_fd):
            needed.add(entry.filename)
    root = archive.publications.root
    for path in sorted((root / "pool").rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and name not in needed:
            message = f"{name}: no kept publication names it"
            yield Finding(kind="pool-unreferenced", pocket=pocket.name, what=name, message=message)


def _named(publications: Publications, number: int, codename: str) -> set[str]:
    dist = publications.path(number) / "dists" / codename
    try:
        release = files.read_capped(dist / "Release", limit=MAX_RELEASE)
        index = read_index(debchanges.paragraph(release))
        return {path for _, path in listed_files(dist, index)}
    except (OSError, Fault):
        # Another finding says so.
        return set()


def path_of(context: Context, finding: Finding) -> Path:
    """The file or directory that a leftover is."""
    return files.contained(context.site.directory, finding.what)
