"""A site's state made anew from git, the pool and kept artifacts: there is no other database.

What the superproject records comes back: jobs that published, reprepro's databases, what clients
see, what they saw before as far as retention keeps it, the store of upstream tarballs. What never
was in git does not: jobs that published nothing, logs, deliveries of events, and what only a job
had kept (.buildinfo files).
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import files, hosting, model
from invirtibuilder.errors import Fault, PackageFault, Refused
from invirtibuilder.fsck import content, indices
from invirtibuilder.fsck.findings import Memory
from invirtibuilder.jobs import Job, Status
from invirtibuilder.settings import Pocket
from invirtibuilder.spool import Request
from invirtibuilder.stages import again, database, transaction, uploads
from invirtibuilder.stages.context import Archive, Context
from invirtibuilder.states import State
from invirtibuilder.superproject import Commit

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What one commit of the superproject brought: a package with its record."""

    commit: Commit
    package: str
    record: Record


def rebuild(context: Context) -> Generator[str]:
    """Make what is missing or does not fit; what was done, in words.

    Safe to repeat, and to be cut off; by the site's own daemon, also beside jobs of its own.
    Raises Fault when a recorded file is nowhere any more, once the other pockets are made.
    """
    failed: list[Fault] = []
    hosting.ensure_site(context.site)
    for pocket in context.site.pockets.values():
        state = content.state_of(context, pocket)
        yield from _jobs(context, pocket, state)
    for pocket in context.site.pockets.values():
        try:
            yield from _archive(context, pocket)
            hosting.ensure_pocket(context, pocket)
            yield from _earlier(context, pocket)
        except Fault as fault:
            yield f"{pocket.name}: cannot be made anew: {fault}"
            failed.append(fault)
    if failed:
        raise failed[0]


# Jobs.


def _jobs(context: Context, pocket: Pocket, state: content.State) -> Iterator[str]:
    """The jobs that published in this pocket and are not there."""
    found: dict[str, list[Published]] = {}
    for commit in reversed(state.history):
        job = commit.trailers.get("Job", "")
        if model.JOB.fullmatch(job) and not (context.site.jobs / job / "request.json").exists():
            _, records = context.superproject.content(commit.id)
            found.setdefault(job, []).extend(
                Published(commit=commit, package=package, record=record)
                for package, record in records.items()
                if record["job"] == job and record["commit"] == commit.trailers.get("Commit")
            )
    for job, published in found.items():
        if not published:
            yield f"{pocket.name}: job {job} only took packages away; it is not made again"
            continue
        _job(context, pocket, job, published)
        yield f"{pocket.name}: job {job}"


def _request(pocket: Pocket, job: str, published: list[Published]) -> Request:
    first = published[0].record
    packages = [each.package for each in published]
    if str(first.get("built", job)) == job:
        action, args = "submit", [pocket.name, packages[0], str(first["commit"])]
    elif "promoted_from" in first:
        action, args = "promote", [str(first["promoted_from"]), pocket.name, *packages]
    else:
        action, args = "rollback", [pocket.name, str(first["rolled_back_to"]), *packages]
    return Request(
        id=job,
        action=action,
        args=tuple(args),
        principal=str(first["principal"]),
        via=str(first["via"]),
        addr="",
        time=str(first["requested"]),
    )


def _job(context: Context, pocket: Pocket, name: str, published: list[Published]) -> None:
    """One job as it would be after its publication; whole or not at all."""
    beside = context.site.jobs / f".{name}"
    files.remove_tree(beside)
    (beside / "attempts").mkdir(parents=True)
    request = _request(pocket, name, published)
    last = published[-1]
    files.write_json(beside / "request.json", request.as_json())
    status = Status(
        state=State.PUBLISHED,
        stage="notify",
        since=str(last.record["published"]),
        version=str(last.record["version"]),
        commit=str(last.record["commit"]),
    )
    files.write_json(beside / "state.json", {**vars_of(status), "state": str(status.state)})
    job = Job(beside, context.clock)
    for stage, fact in _facts(published).items():
        job.write_fact(stage, fact)
    if request.action == "submit":
        _artifacts(context, pocket, beside, last.record)
    job.remark(f"made again from the superproject's commit {last.commit.id}")
    files.remove_tree(context.site.jobs / name)
    beside.rename(context.site.jobs / name)
    files.sync_directory(context.site.jobs)


def vars_of(status: Status) -> dict[str, Any]:
    """The fields of a status as a job keeps them."""
    return {name: getattr(status, name) for name in status.__dataclass_fields__} | {"cancel_by": ""}


def _facts(published: list[Published]) -> dict[str, dict[str, Any]]:
    """What each stage would have written, as far as the record has it."""
    last = published[-1]
    record = last.record
    exported, built = again.exported(record), again.built(record)
    admitted = {
        **{key: record[key] for key in ("commit", "tree", "version", "changelog_version")},
        **{key: record[key] for key in ("changelog_entry", "stamp", "pristine_tar")},
        "upstream_tag": record["upstream_tag"],
        "native": not any(".orig" in str(f["name"]) for f in exported["files"]),
        "urgency": "medium",
        "changes": [],
        "pinned": None,
        "compression": "",
        "components": [],
    }
    packages = [
        {
            "package": each.package,
            "version": each.record["version"],
            "commit": each.record["commit"],
            "superproject_commit": each.commit.id,
        }
        for each in published
    ]
    return {
        "admit": admitted,
        "announce": {"accepted": True},
        "export": exported,
        "build": built,
        "verify": {"binaries": list(built["debs"]), "buildinfo": record["buildinfo"]},
        "publish": {
            "publication": record["publication"],
            "date": record["published"],
            "superproject_commit": last.commit.id,
            "files": [file for each in published for file in each.record["files"]],
            "packages": packages,
        },
        "notify": {"queued": True},
    }


def _artifacts(context: Context, pocket: Pocket, folder: Path, record: Record) -> None:
    """What the pool still has of a job's source and binaries, under the same content only."""
    pool = content.pool_files(context.site.archive / pocket.name)
    for name in ("source", "artifacts"):
        (folder / name).mkdir()
    for file in record["files"]:
        name = str(file["name"])
        for path in pool.get(name, []):
            if uploads.sha256(path) == file["sha256"]:
                target = (
                    folder / ("artifacts" if name.endswith(again.ARTIFACTS) else "source") / name
                )
                try:
                    os.link(path, target)
                except OSError:
                    shutil.copyfile(path, target)
                break
    made = {path.name for path in (folder / "artifacts").iterdir()}
    if not made >= {str(f["name"]) for f in again.built(record)["files"]}:
        # Only whole artifacts are published again by another job; these are in the pool anyway.
        files.remove_tree(folder / "artifacts")
    files.sync_tree(folder)


# The archive.


def _archive(context: Context, pocket: Pocket) -> Iterator[str]:
    """The database, and a publication of what is recorded, where they do not fit."""
    # What was begun is finished or undone first.
    if why := transaction.recover(context, pocket):
        raise Fault(why)
    with transaction.settled(context, pocket) as (archive, lock_fd):
        # As it is now that nobody else publishes.
        state = content.state_of(context, pocket)
        for name in _origs(context, pocket, state):
            yield f"{pocket.name}: upstream tarball {name}"
        fits = not list(indices.database(context, pocket, state, lock_fd))
        shown = indices.newest(context, pocket, state)
        memory = Memory(context.site.directory / "run" / "fsck.json", full=True)
        whole = shown is not None and not _broken(context, pocket, state, memory, shown)
        if fits and whole and shown is not None:
            if archive.publications.current() != shown:
                archive.publications.switch(shown)
                yield f"{pocket.name}: clients see publication {shown}"
            return
        number = _published_anew(context, pocket, state, archive, lock_fd, fill=not fits)
        if not fits:
            yield f"{pocket.name}: reprepro's database with {len(state.records)} sources"
        yield f"{pocket.name}: publication {number}, which clients see"


def _earlier(context: Context, pocket: Pocket) -> Iterator[str]:
    """The publications before that retention keeps, as far as all of their files are kept.

    Each is signed anew, so its Date is of now. Those that are gone are from now on not missing.
    """
    with transaction.settled(context, pocket) as (archive, lock_fd):
        state = content.state_of(context, pocket)
        since = archive.publications.kept_from
        wanted = {n: c for n, c in _kept_states(context, pocket, state).items() if n >= since}
        memory = Memory(context.site.directory / "run" / "fsck.json", full=True)
        there = {
            number
            for number in archive.publications.numbers()
            if not _broken(context, pocket, state, memory, number)
        }
        shown = {archive.publications.commit(number) for number in there}
        todo = {n: c for n, c in wanted.items() if n not in there and c not in shown}
        if state.tip and todo:
            archive.reprepro.begin()
            try:
                yield from _made_again(context, pocket, archive, lock_fd, state.tip, todo)
            finally:
                # It has the newest state again.
                archive.reprepro.restore()
        made = set(archive.publications.numbers())
        if gone := {*(todo.keys() - made), *indices.missing(archive.publications, state)}:
            archive.publications.keep_from(max(gone) + 1)
            numbers = ", ".join(map(str, sorted(gone)))
            yield f"{pocket.name}: publications that are gone and do not come back: {numbers}"


def _kept_states(context: Context, pocket: Pocket, state: content.State) -> dict[int, str]:
    """The commit of each publication before the newest that retention keeps, newest first."""
    old = context.clock() - timedelta(seconds=pocket.retention.seconds)
    states = itertools.pairwise(indices.made(state).items())
    return {
        number: commit.id
        for at, ((_, by), (number, commit)) in enumerate(states)
        if at < pocket.retention.publications or by.date >= old
    }


def _made_again(
    context: Context,
    pocket: Pocket,
    archive: Archive,
    lock_fd: int,
    tip: str,
    todo: Mapping[int, str],
) -> Iterator[str]:
    """Publications of earlier states, from the newest backwards, in a transaction."""
    publications, superproject = archive.publications, context.superproject
    here = tip
    for number, commit in todo.items():
        now, then = superproject.record_ids(here), superproject.record_ids(commit)
        names = {name for name, _ in now.items() ^ then.items()}
        records = {name: superproject.record_at(commit, name) for name in sorted(names)}
        try:
            database.exchanged(context, pocket, archive, records, lock_fd=lock_fd)
        except (Refused, PackageFault) as fault:
            yield f"{pocket.name}: publication {number} cannot be made again: {fault}"
            if isinstance(fault, PackageFault):
                # What was begun goes.
                archive.reprepro.restore()
                archive.reprepro.begin()
                here = tip
            continue
        here = commit
        archive.reprepro.export(lock_fd=lock_fd)
        time.sleep(min(publications.pause(context.clock()), transaction.MAX_PAUSE))
        publications.stage(
            number,
            date=publications.next_date(context.clock()),
            valid_for=pocket.valid_for,
            commit=commit,
            sign=context.signer(pocket).sign,
        )
        yield f"{pocket.name}: publication {number}, an earlier one"


def _broken(
    context: Context, pocket: Pocket, state: content.State, memory: Memory, number: int
) -> bool:
    """Whether clients could not use a publication."""
    found = indices.of_publication(context, pocket, state, memory, number)
    # Its copies by hash are part of it, and the key that clients have is written later.
    return any(finding.kind not in ("not-comparable", "signature-bad") for finding in found)


def _origs(context: Context, pocket: Pocket, state: content.State) -> Iterator[str]:
    for record in state.records.values():
        upload = uploads.kept_upload(context, pocket, record)
        missing = [p.name for p in upload.origs if not (context.site.origs / p.name).exists()]
        if missing:
            uploads.keep_origs(context.site.origs, upload)
            yield from missing


def _published_anew(
    context: Context,
    pocket: Pocket,
    state: content.State,
    archive: Archive,
    lock_fd: int,
    *,
    fill: bool,
) -> int:
    """A publication of the branch's newest commit, of a database that is filled again first."""
    reprepro, publications = archive.reprepro, archive.publications
    last = state.history[0] if state.history else None
    link = publications.root / "dists"
    if link.is_symlink() and not link.is_dir():
        # It names a publication that is gone, and is in the way of a new one.
        link.unlink()
    reprepro.begin()
    try:
        if fill:
            database.filled(context, pocket, archive, lock_fd=lock_fd)
        reprepro.export(lock_fd=lock_fd)
        recorded = int(last.trailers["Publication"]) if last else 1
        number = max([recorded, *(n + 1 for n in publications.numbers())])
        date = publications.next_date(context.clock(), lost=True)
        if last:
            date = max(date, last.date + timedelta(seconds=1))
        publications.stage(
            number,
            date=date,
            valid_for=pocket.valid_for,
            commit=last.id if last else "",
            sign=context.signer(pocket).sign,
        )
    except BaseException:
        reprepro.restore()
        raise
    publications.switch(number)
    reprepro.commit()
    return number
