"""Publish: artifacts become a new publication, a tag and a pin, in one transaction.

The commit point is one compare-and-swap of the superproject's branch. Everything before it can
be undone, everything after it can be done again: recovery asks only whether the branch has the
commit that the intent names.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, files, model
from invirtibuilder.errors import Fault, PackageFault, Reason, Refused
from invirtibuilder.gitrepo import Repository
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Archive, Context, Wait

INTENT = "intent.json"
FACT = "publish"
COMMITTED = "committed"
"""A fact of a job that stands in the superproject, but has not all that follows: no way back."""

RECORD = 1
AGAIN = timedelta(seconds=30)
MAX_PAUSE = 60.0
"""Seconds; after a jump of the clock the wait would be as long as the jump."""


def publish(context: Context, job: Job) -> dict[str, Any]:
    """Publish the job's source and binaries in its pocket, once, whatever happens in between."""
    pocket = context.pocket(job)
    archive = context.archive(pocket)
    with _recovered(context, pocket, archive) as lock_fd:
        # Whoever finished the publication, be it a recovery, has written its facts.
        if found := job.fact(FACT):
            return found
        _publish(context, job, pocket, archive, lock_fd)
        return job.need(FACT)


def recover(context: Context, pocket: Pocket) -> str:
    """Finish or undo what a killed daemon has left; nothing to do is the normal case.

    Returns why it cannot be finished yet, if so: then the pocket's jobs wait, and others go on.
    """
    try:
        with _recovered(context, pocket, context.archive(pocket)):
            return ""
    except Wait as wait:
        return str(wait)


@contextmanager
def _recovered(context: Context, pocket: Pocket, archive: Archive) -> Iterator[int]:
    """The pocket's lock, with no half-done publication; children inherit the descriptor."""
    archive.reprepro.create()
    with files.locked(archive.reprepro.lock, inheritable=True) as lock_fd:
        path = archive.reprepro.private / INTENT
        intent = files.read_json(path) if path.exists() else None
        if intent and context.superproject.contains(pocket.branch, intent["commit"]):
            _finished(context, pocket, archive, intent)
        else:
            _undo(archive, intent)
        yield lock_fd


def _publish(context: Context, job: Job, pocket: Pocket, archive: Archive, lock_fd: int) -> None:
    admitted = job.need("admit")
    _still_allowed(context, job, pocket, admitted)
    _same_origs(context.site.origs, job)
    # Dates rise by a second at least, and APT takes none from the future.
    time.sleep(min(archive.publications.pause(context.clock()), MAX_PAUSE))
    number = max([0, *archive.publications.numbers()]) + 1
    date = archive.publications.next_date(context.clock())
    record = _record(job, pocket, number, date)
    intent = _intent(context, job, pocket, record, date)
    _nothing_in_the_way(context.repository(job.package), intent["refs"])
    files.write_json(archive.reprepro.private / INTENT, intent)
    try:
        _transact(job, pocket, archive, lock_fd, date)
        archive.publications.stage(
            number, date=date, valid_for=None, sign=context.signer(pocket).sign
        )
        _keep_origs(context.site.origs, job)
        context.superproject.move(pocket.branch, intent["commit"], intent["parent"])
    except BaseException as error:
        if not context.superproject.contains(pocket.branch, intent["commit"]):
            _undo(archive, intent)
            raise
        if not isinstance(error, Exception):
            raise
    _finished(context, pocket, archive, intent)
    try:
        archive.publications.prune(context.clock())
    except (Fault, OSError) as error:
        job.remark(f"old publications stay for now: {error}")


def _still_allowed(context: Context, job: Job, pocket: Pocket, admitted: dict[str, Any]) -> None:
    """What admission saw of the pocket must still be so."""
    pinned = context.superproject.pin(pocket.branch, job.package)
    if pinned != admitted["pinned"]:
        raise Refused(
            [
                Reason(
                    code="overtaken",
                    message=f"{job.package} in {pocket.name} was published anew in the meantime",
                    hint="submit again",
                )
            ]
        )


def _nothing_in_the_way(repository: Repository, refs: Mapping[str, str]) -> None:
    """Each ref can be made once the publication stands. Raises Refused with every one that not.

    Pushes cannot make such refs; imports, other pockets and earlier configurations can.
    """
    reasons = []
    for name, target in refs.items():
        there = repository.refs(name)
        parts = name.split("/")
        above = ["/".join(parts[:n]) for n in range(3, len(parts))]
        wrong = [n for n, oid in there.items() if (n, oid) != (name, target)]
        wrong += [n for n in above if repository.ref(n)]
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


def _origs(job: Job) -> list[dict[str, Any]]:
    version = model.upstream_version(job.need("admit")["version"])
    prefix = f"{job.package}_{version}.orig"
    return [f for f in job.need("export")["files"] if str(f["name"]).startswith(prefix)]


def _keep_origs(store: Path, job: Job) -> None:
    """Upstream tarballs are write-once by name for the whole site: the first bytes win.

    The last thing before the commit point: what is not published takes no name.
    """
    for file in _origs(job):
        if not (store / file["name"]).exists():
            beside = store / f".{file['name']}.tmp"
            shutil.copyfile(job.directory / "source" / file["name"], beside)
            files.sync_file(beside)
            beside.rename(store / file["name"])
    files.sync_directory(store)


def _same_origs(store: Path, job: Job) -> None:
    """What the store has already is what this job has. Raises PackageFault."""
    store.mkdir(exist_ok=True)
    for file in _origs(job):
        name = str(file["name"])
        if (store / name).exists() and _sha256(store / name) != file["sha256"]:
            raise PackageFault(
                f"{name} was published before with other content",
                code="orig-differs",
                hint="use a new upstream version, such as one with +ds, or the first tarball",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(job: Job, pocket: Pocket, number: int, date: datetime) -> dict[str, Any]:
    """All from which this publication can be re-created."""
    admitted, exported = job.need("admit"), job.need("export")
    built, verified = job.need("build"), job.need("verify")
    return {
        "v": RECORD,
        "job": job.id,
        "principal": job.request.principal,
        "via": job.request.via,
        "requested": job.request.time,
        "pocket": pocket.name,
        "package": job.package,
        "commit": admitted["commit"],
        "tree": admitted["tree"],
        "version": admitted["version"],
        "changelog_version": admitted["changelog_version"],
        "changelog_entry": admitted["changelog_entry"],
        "stamp": admitted["stamp"],
        "pristine_tar": admitted["pristine_tar"],
        "upstream_tag": admitted["upstream_tag"],
        "orig_from": exported["orig_from"],
        "differences": exported["differences"],
        "dsc": exported["dsc"],
        "files": _sorted(exported["files"], built["files"]),
        "binaries": {
            built["debs"][name]["Package"]: built["debs"][name]["Version"]
            for name in verified["binaries"]
        },
        "buildinfo": verified["buildinfo"],
        "environment": {"export": exported["environment"], "build": built["environment"]},
        "reused": built["reused"],
        "backtracking": pocket.allow_backtracking,
        "publication": number,
        "published": model.iso(date),
    }


def _sorted(*lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((file for files_ in lists for file in files_), key=lambda f: str(f["name"]))


def _intent(
    context: Context, job: Job, pocket: Pocket, record: dict[str, Any], date: datetime
) -> dict[str, Any]:
    """Objects without any ref yet, and the words by which a redo makes the same."""
    version, commit = record["version"], record["commit"]
    repository = context.repository(job.package)
    site = context.site
    refs = {pocket.kept_ref(version): commit}
    if not pocket.allow_backtracking:
        name = f"refs/tags/{pocket.tag(version)}"
        if there := repository.ref(name):
            _tag_is_here(repository, name, commit)
            tag = there
        else:
            tag = repository.tag_object(
                pocket.tag(version),
                commit,
                f"{job.package} {version} in {pocket.name}\n\nJob: {job.id}\n",
                site.tagger_name,
                site.tagger_mail,
                date,
            )
        refs[name] = tag
    held = {"Pristine-Tar": record["pristine_tar"]}
    if record["upstream_tag"]:
        held["Upstream-Tag"] = record["upstream_tag"]["object"]
    for name, target in held.items():
        if target:
            refs[f"{pocket.kept_ref(version)}-{name.lower()}"] = target
    dsc = next(f for f in record["files"] if f["name"] == record["dsc"])
    parent = context.superproject.tip(pocket.branch)
    composed = context.superproject.compose(
        parent=parent,
        package=job.package,
        commit=commit,
        record=record,
        subject=f"{job.package} {version} for {pocket.name}",
        trailers={
            "Job": job.id,
            "Principal": record["principal"],
            "Version": version,
            "Commit": commit,
            "Dsc-Sha256": dsc["sha256"],
            **{name: target for name, target in held.items() if target},
            "Publication": str(record["publication"]),
        },
        author=(site.tagger_name, site.tagger_mail),
        date=date,
    )
    return {
        "job": job.id,
        "package": job.package,
        "publication": record["publication"],
        "commit": composed,
        "parent": parent,
        "refs": refs,
    }


def _tag_is_here(repository: Repository, ref: str, commit: str) -> None:
    """Another pocket may have tagged the version since admission. Raises Refused."""
    if repository.peeled(ref) != commit:
        tag = ref.removeprefix("refs/tags/")
        message = f"the tag {tag} does not point to {commit[:12]} (any more)"
        hint = "a version once tagged stays: use a higher one"
        raise Refused([Reason(code="tag-elsewhere", message=message, hint=hint)])


def _transact(job: Job, pocket: Pocket, archive: Archive, lock_fd: int, date: datetime) -> None:
    """reprepro's part: one include and one export on a saved database."""
    admitted, verified = job.need("admit"), job.need("verify")
    folder = job.directory / "upload"
    files.remove_tree(folder)
    folder.mkdir()
    for part in ("source", "artifacts"):
        for path in (job.directory / part).iterdir():
            (folder / path.name).hardlink_to(path)
    version = admitted["version"]
    upload = folder / f"{job.package}_{model.without_epoch(version)}.changes"
    upload.write_bytes(
        debchanges.changes(
            dsc=folder / job.need("export")["dsc"],
            binaries=[folder / name for name in verified["binaries"]],
            distribution=pocket.codename,
            urgency=admitted["urgency"],
            maintainer=admitted["maintainer"],
            changed_by=admitted["maintainer"],
            date=date,
            changes=admitted["changes"],
        )
    )
    archive.reprepro.begin()
    archive.reprepro.include(
        upload,
        job.package,
        version,
        lock_fd=lock_fd,
        # Everything of the source is replaced, so no binary stays that it no longer builds.
        downgrade=True,
        take_over=[d["Package"] for d in job.need("build")["debs"].values()]
        if pocket.allow_takeover
        else (),
    )
    archive.reprepro.export(lock_fd=lock_fd)
    files.remove_tree(folder)


def _finished(context: Context, pocket: Pocket, archive: Archive, intent: dict[str, Any]) -> None:
    """`_finish`, or Wait: it is published, so nothing may fail it any more."""
    try:
        _finish(context, pocket, archive, intent)
    except (Fault, OSError) as error:
        directory = context.site.jobs / intent["job"]
        if directory.is_dir():
            Job(directory, context.clock).write_fact(COMMITTED, {"commit": intent["commit"]})
        why = f"publication {intent['publication']} of {pocket.name} cannot be finished: {error}"
        raise Wait(why, context.clock() + AGAIN) from error


def _finish(context: Context, pocket: Pocket, archive: Archive, intent: dict[str, Any]) -> None:
    """After the commit point: every step can be repeated."""
    repository = context.repository(intent["package"])
    for name, target in intent["refs"].items():
        if name.startswith("refs/tags/"):
            repository.set_ref(name, target, None)
        else:
            repository.keep(name, target)
    if archive.publications.current() != intent["publication"]:
        archive.publications.switch(intent["publication"])
    archive.reprepro.commit()
    _write_facts(context, pocket, intent)
    for held in repository.refs(f"refs/invirtibuilder/jobs/{intent['job']}/"):
        repository.unkeep(held)
    (archive.reprepro.private / INTENT).unlink(missing_ok=True)
    files.sync_directory(archive.reprepro.private)


def _write_facts(context: Context, pocket: Pocket, intent: dict[str, Any]) -> None:
    """The job's facts, before the intent goes: later there may be another record in its place."""
    directory = context.site.jobs / intent["job"]
    if not directory.is_dir():
        return
    job = Job(directory, context.clock)
    record = context.superproject.record(pocket.branch, intent["package"])
    if record is None or record["job"] != job.id:
        raise RuntimeError(f"{pocket.branch} does not have the record of job {job.id}")
    value = {
        "publication": record["publication"],
        "date": record["published"],
        "superproject_commit": intent["commit"],
        "files": record["files"],
    }
    job.write_fact(FACT, value)


def _undo(archive: Archive, intent: dict[str, Any] | None) -> None:
    """Before the commit point: as if nothing had been."""
    archive.reprepro.restore()
    if intent:
        archive.publications.drop(intent["publication"])
        (archive.reprepro.private / INTENT).unlink(missing_ok=True)
        files.sync_directory(archive.reprepro.private)


def first_publication(context: Context, pocket: Pocket) -> None:
    """Publish an empty repository in a new pocket, so that its stanza works from the start."""
    archive = context.archive(pocket)
    if archive.publications.current() is not None:
        return
    with _recovered(context, pocket, archive) as lock_fd:
        archive.reprepro.begin()
        archive.reprepro.export(lock_fd=lock_fd)
        date = archive.publications.next_date(context.clock().astimezone(UTC))
        archive.publications.stage(1, date=date, valid_for=None, sign=context.signer(pocket).sign)
        archive.publications.switch(1)
        archive.reprepro.commit()
