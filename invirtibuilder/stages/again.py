"""A version that was published before, of the same commit, is published again from what is kept.

It is made anew neither here nor by a worker: another base's tools may well make other bytes of the
same source, and one name has one content (facts of a job are those that the record has).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, files
from invirtibuilder.errors import Refused
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import uploads
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.uploads import Upload

Record = Mapping[str, Any]
ARTIFACTS = (".deb", ".udeb", ".buildinfo")


def taken(context: Context, job: Job) -> dict[str, Any] | None:
    """What the stage `export` has for a version that is kept: its very source, binaries beside it.

    None when no pocket like the job's has published this version of this commit, or when a file
    of it is no longer kept.
    """
    pocket = context.pocket(job)
    for other in context.site.pockets.values():
        if other.environment == pocket.environment:
            for record in _records(context, job, other):
                # gc may take it in the moment before it is ours.
                with suppress(Refused, FileNotFoundError):
                    _take(context, job, record, uploads.kept_upload(context, other, record))
                    return {**exported(record), "again": dict(record)}
    return None


def _take(context: Context, job: Job, record: Record, upload: Upload) -> None:
    built = str(record.get("built", record["job"]))
    info = files.contained(context.site.jobs / built / "artifacts", str(record["buildinfo"]))
    sources = [path for path in upload.files if not path.name.endswith(ARTIFACTS)]
    binaries = [path for path in upload.files if path.name.endswith(ARTIFACTS)]
    wanted = next(f["sha256"] for f in record["files"] if f["name"] == record["buildinfo"])
    if info.is_file() and uploads.sha256(info) == wanted:
        binaries.append(info)
    _together(job.directory / "source", sources)
    _together(job.directory / "artifacts", binaries)
    job.remark(f"export: {upload.version} was published before from this commit, by job {built}")


def _records(context: Context, job: Job, pocket: Pocket) -> Iterator[dict[str, Any]]:
    """The pocket's records of this version of this commit, now and, after a rollback, before."""
    admitted = job.need("admit")
    kept = context.repository(job.package).ref(pocket.kept_ref(admitted["version"]))
    if kept == admitted["commit"]:
        wanted = (admitted["version"], admitted["commit"])
        for record in context.superproject.records_of(pocket.branch, job.package):
            # One that has lost binary packages to another source is not the whole of it.
            if (record["version"], record["commit"]) == wanted and not record.get("taken"):
                yield record


def _together(folder: Path, found: list[Path]) -> None:
    beside = folder.with_name(f".{folder.name}")
    files.remove_tree(beside)
    beside.mkdir()
    for path in found:
        uploads.link_or_copy(path, beside / path.name)
    files.sync_tree(beside)
    files.remove_tree(folder)
    beside.rename(folder)
    files.sync_directory(folder.parent)


# What a record says of the stages.


def exported(record: Record) -> dict[str, Any]:
    """What `export` has written."""
    return {
        **{key: record[key] for key in ("dsc", "tree", "orig_from", "differences")},
        "files": [f for f in record["files"] if not str(f["name"]).endswith(ARTIFACTS)],
        "environment": record["environment"]["export"],
        "attempt": "",
    }


def built(record: Record) -> dict[str, Any]:
    """What `build` has written."""
    made = [f for f in record["files"] if str(f["name"]).endswith(ARTIFACTS)]
    names = [str(f["name"]) for f in made]
    return {
        "files": made,
        "environment": record["environment"]["build"],
        "attempt": "",
        "debs": {name: _control(name, record) for name in names if name.endswith("deb")},
        "dependencies": {},
        "reused": record["reused"],
    }


def _control(name: str, record: Record) -> dict[str, str]:
    package, version, architecture = debchanges.binary_name(name)
    return {
        "Package": package,
        "Source": str(record["package"]),
        "Version": str(record["binaries"].get(package, version)),
        "Architecture": architecture,
        "Section": "",
        "Priority": "",
    }
