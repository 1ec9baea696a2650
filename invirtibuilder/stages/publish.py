"""Publish: artifacts become a new publication, a tag and a pin, in one transaction."""

from __future__ import annotations

from typing import Any

from invirtibuilder.errors import Reason, Refused
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import transaction, uploads
from invirtibuilder.stages.changes import Change
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.uploads import Upload

RECORD = 1


def publish(context: Context, job: Job) -> dict[str, Any]:
    """Publish the job's source and binaries in its pocket, once, whatever happens in between."""
    pocket = context.pocket(job)
    return transaction.publish(context, job, lambda: [_change(context, job, pocket)])


def _change(context: Context, job: Job, pocket: Pocket) -> Change:
    """What the job changes. Raises Refused when the package is not as admission saw it."""
    admitted = job.need("admit")
    if context.superproject.pin(pocket.branch, job.package) != admitted["pinned"]:
        message = f"{job.package} in {pocket.name} was published anew in the meantime"
        raise Refused([Reason(code="overtaken", message=message, hint="submit again")])
    record = made_record(job, pocket)
    return Change(
        package=job.package,
        job=job.id,
        commit=record["commit"],
        record=record,
        upload=made_upload(job),
        subject=f"{job.package} {record['version']} for {pocket.name}",
        trailers=uploads.trailers(record),
    )


def made_upload(job: Job) -> Upload:
    """The source package and the binaries that a job has made."""
    admitted, built, verified = job.need("admit"), job.need("build"), job.need("verify")
    made = [*job.need("export")["files"], *built["files"]]
    folders = (job.directory / "source", job.directory / "artifacts")
    return Upload(
        package=job.package,
        version=admitted["version"],
        files=tuple(path for folder in folders for path in sorted(folder.iterdir())),
        sha256={file["name"]: file["sha256"] for file in made},
        dsc=job.need("export")["dsc"],
        binaries=tuple(verified["binaries"]),
        packages=tuple(control["Package"] for control in built["debs"].values()),
        urgency=admitted["urgency"],
        maintainer=admitted["maintainer"],
        changes=tuple(admitted["changes"]),
    )


def made_record(job: Job, pocket: Pocket) -> dict[str, Any]:
    """All from which this publication can be re-created; `built` has the files."""
    admitted, exported = job.need("admit"), job.need("export")
    built, verified = job.need("build"), job.need("verify")
    return {
        "v": RECORD,
        "job": job.id,
        "built": job.id,
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
    }


def _sorted(*lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((file for files_ in lists for file in files_), key=lambda f: str(f["name"]))
