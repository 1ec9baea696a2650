"""Build: from the source package to artifacts, made by a worker in sandboxes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from invirtibuilder import files
from invirtibuilder.jobs import Job
from invirtibuilder.order import Manifest
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.orders import carry_out, texts
from invirtibuilder.states import State

MAX_FIELDS = 20
MAX_DEPENDENCIES = 5000


def build(context: Context, job: Job) -> dict[str, Any]:
    """Have the binary packages built; a version that another pocket has is not built again."""
    pocket = context.pocket(job)
    try:
        if earlier := _published_before(context, job, pocket):
            return _reused(job, earlier)
        return _built(context, job, pocket)
    finally:
        # Whatever comes now needs no builder.
        context.places.leave(job)


def _built(context: Context, job: Job, pocket: Pocket) -> dict[str, Any]:
    exported = job.need("export")
    source = job.directory / "source"
    manifest = carry_out(
        context,
        job,
        pocket,
        kind="build",
        room=context.room(pocket, own_packages=True, package=job.package),
        content={
            "dsc": exported["dsc"],
            "package": job.package,
            "version": job.need("admit")["version"],
        },
        inputs={path.name: path for path in sorted(source.iterdir())},
        into=job.directory / "artifacts",
    )
    return {
        "files": [asdict(f) for f in manifest.files],
        "debs": _control(manifest),
        "dependencies": texts(manifest.report.get("dependencies"), MAX_DEPENDENCIES),
        "environment": texts(manifest.environment, MAX_FIELDS),
        "attempt": manifest.attempt,
        "reused": None,
    }


def _control(manifest: Manifest) -> dict[str, dict[str, str]]:
    """The control fields of each binary package in the result, whatever the report is."""
    debs = manifest.report.get("debs")
    names = [f.name for f in manifest.files if f.name.endswith("deb")]
    return {name: texts(debs.get(name), MAX_FIELDS) for name in names if isinstance(debs, dict)}


def _published_before(context: Context, job: Job, pocket: Pocket) -> Job | None:
    """The job that built this very version of this commit for a pocket like this one."""
    for other in context.site.pockets.values():
        if other.environment != pocket.environment:
            continue
        for record in _records(context, job, other):
            directory = context.site.jobs / str(record.get("built", record["job"]))
            if (directory / "artifacts").is_dir():
                earlier = Job(directory, context.clock)
                same = earlier.need("export")["files"] == job.need("export")["files"]
                if same and earlier.status.state == State.PUBLISHED:
                    return earlier
    return None


def _records(context: Context, job: Job, pocket: Pocket) -> Iterator[dict[str, Any]]:
    """The pocket's records of this version of this commit, now and, after a rollback, before."""
    admitted = job.need("admit")
    kept = context.repository(job.package).ref(pocket.kept_ref(admitted["version"]))
    if kept == admitted["commit"]:
        wanted = (admitted["version"], admitted["commit"])
        for record in context.superproject.records_of(pocket.branch, job.package):
            if (record["version"], record["commit"]) == wanted:
                yield record


def _reused(job: Job, earlier: Job) -> dict[str, Any]:
    """The kept artifacts of the earlier job, byte for byte; verify hashes them again."""
    built = earlier.need("build")
    target = job.directory / "artifacts"
    beside = job.directory / ".artifacts"
    files.remove_tree(beside)
    beside.mkdir()
    for file in built["files"]:
        kept: Path = files.contained(earlier.directory / "artifacts", file["name"])
        os.link(kept, beside / kept.name)
    files.remove_tree(target)
    files.sync_directory(beside)
    beside.rename(target)
    job.remark(f"build: the artifacts of job {earlier.id} are published again, not rebuilt")
    return {**built, "reused": earlier.id}
