"""Publish: artifacts become a new publication, a tag and a pin, in one transaction.

The commit point is one compare-and-swap of the superproject's branch. Everything before it can
be undone, everything after it can be done again: recovery asks only whether the branch has the
commit that the intent names.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, files, model
from invirtibuilder.config import Pocket
from invirtibuilder.errors import PackageFault, Reason, Refused
from invirtibuilder.jobs import Job
from invirtibuilder.stages.context import Archive, Context

INTENT = "intent.json"
RECORD = 1
MAX_PAUSE = 60.0
"""Seconds; after a jump of the clock the wait would be as long as the jump."""


def publish(context: Context, job: Job) -> dict[str, Any]:
    """Publish the job's source and binaries in its pocket, once, whatever happens in between."""
    pocket = context.pocket(job)
    archive = context.archive(pocket)
    with _recovered(context, pocket, archive) as lock_fd:
        record = context.superproject.record(pocket.branch, job.package)
        if record is None or record["job"] != job.id:
            record = _publish(context, job, pocket, archive, lock_fd)
        return {
            "publication": record["publication"],
            "date": record["published"],
            "superproject_commit": context.superproject.tip(pocket.branch),
            "files": record["files"],
        }


def recover(context: Context, pocket: Pocket) -> None:
    """Finish or undo what a killed daemon has left; nothing to do is the normal case."""
    with _recovered(context, pocket, context.archive(pocket)):
        pass


@contextmanager
def _recovered(context: Context, pocket: Pocket, archive: Archive) -> Iterator[int]:
    """The pocket's lock, with no half-done publication; children inherit the descriptor."""
    archive.reprepro.create()
    with files.locked(archive.reprepro.lock, inheritable=True) as lock_fd:
        path = archive.reprepro.private / INTENT
        intent = files.read_json(path) if path.exists() else None
        if intent and context.superproject.contains(pocket.branch, intent["commit"]):
            _finish(context, pocket, archive, intent)
        else:
            _undo(archive, intent)
        yield lock_fd


def _publish(
    context: Context, job: Job, pocket: Pocket, archive: Archive, lock_fd: int
) -> dict[str, Any]:
    admitted = job.need("admit")
    _still_allowed(context, job, pocket, admitted)
    _keep_origs(context.site.origs, job)
    # Dates rise by a second at least, and APT takes none from the future.
    time.sleep(min(archive.publications.pause(context.clock()), MAX_PAUSE))
    number = max([0, *archive.publications.numbers()]) + 1
    date = archive.publications.next_date(context.clock())
    record = _record(job, pocket, number, date)
    intent = _intent(context, job, pocket, record, date)
    files.write_json(archive.reprepro.private / INTENT, intent)
    try:
        _transact(job, pocket, archive, lock_fd, date)
        archive.publications.stage(number, date=date, valid_for=None, sign=context.signer.sign)
        context.superproject.move(pocket.branch, intent["commit"], intent["parent"])
    except BaseException:
        if not context.superproject.contains(pocket.branch, intent["commit"]):
            _undo(archive, intent)
        raise
    _finish(context, pocket, archive, intent)
    archive.publications.prune(context.clock())
    return record


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


def _keep_origs(store: Path, job: Job) -> None:
    """Upstream tarballs are write-once by name for the whole site: the first bytes win."""
    store.mkdir(exist_ok=True)
    version = model.upstream_version(job.need("admit")["version"])
    for file in job.need("export")["files"]:
        name = str(file["name"])
        if not name.startswith(f"{job.package}_{version}.orig"):
            continue
        kept = store / name
        if not kept.exists():
            files.write_atomic(kept, (job.directory / "source" / name).read_bytes())
        elif _sha256(kept) != file["sha256"]:
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
    tag = ""
    if not pocket.allow_backtracking:
        name = f"refs/tags/{pocket.tag(version)}"
        tag = repository.ref(name) or ""
        if not tag:
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
    for held in repository.refs(f"refs/invirtibuilder/jobs/{intent['job']}/"):
        repository.unkeep(held)
    (archive.reprepro.private / INTENT).unlink(missing_ok=True)
    files.sync_directory(archive.reprepro.private)


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
    with _recovered(context, pocket, archive) as lock_fd:
        if archive.publications.numbers():
            return
        archive.reprepro.begin()
        archive.reprepro.export(lock_fd=lock_fd)
        date = archive.publications.next_date(context.clock().astimezone(UTC))
        archive.publications.stage(1, date=date, valid_for=None, sign=context.signer.sign)
        archive.publications.switch(1)
        archive.reprepro.commit()
