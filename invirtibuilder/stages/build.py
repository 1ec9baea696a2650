"""Build: from the source package to artifacts, made by a worker in sandboxes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from invirtibuilder.jobs import Job
from invirtibuilder.order import Manifest
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import again
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.orders import carry_out, texts

MAX_FIELDS = 20
MAX_DEPENDENCIES = 5000


def build(context: Context, job: Job) -> dict[str, Any]:
    """Have the binary packages built; those of a version that is kept are there already."""
    pocket = context.pocket(job)
    record = job.need("export").get("again")
    try:
        if record:
            return {**again.built(record), "reused": str(record.get("built", record["job"]))}
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
