"""Publish: artifacts become a new publication, a tag and a pin, in one transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from invirtibuilder.errors import Cancelled, Reason, Refused
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import finish, transaction, uploads
from invirtibuilder.stages.changes import Change
from invirtibuilder.stages.context import Context, Wait

LOOK_AGAIN = timedelta(minutes=2)


def publish(context: Context, job: Job) -> dict[str, Any]:
    """Publish the job's source and binaries in its pocket, once, whatever happens in between."""
    pocket = context.pocket(job)
    if job.part_of:
        return _with_the_whole(context, job)
    return transaction.publish(context, job, lambda: [_change(context, job, pocket)])


def _with_the_whole(context: Context, job: Job) -> dict[str, Any]:
    """A part of another job is published by that one: say that it is ready, and wait."""
    if found := job.fact(finish.FACT):
        return found
    whole = context.jobs.get(job.part_of)
    if whole.status.final or whole.fact("verdict") is not None:
        raise Cancelled(f"job {whole.id}, which it is a part of, has published nothing")
    whole.nudge()
    context.tell(whole)
    raise Wait(f"is published with job {whole.id}", context.clock() + LOOK_AGAIN)


def _change(context: Context, job: Job, pocket: Pocket) -> Change:
    """What the job changes. Raises Refused when the package is not as admission saw it."""
    admitted = job.need("admit")
    if context.superproject.pin(pocket.branch, job.package) != admitted["pinned"]:
        message = f"{job.package} in {pocket.name} was published anew in the meantime"
        raise Refused([Reason(code="overtaken", message=message, hint="submit again")])
    record = uploads.made_record(job, pocket)
    return Change(
        package=job.package,
        job=job.id,
        commit=record["commit"],
        record=record,
        upload=uploads.made_upload(job),
        subject=f"{job.package} {record['version']} for {pocket.name}",
        trailers=uploads.trailers(record),
    )
