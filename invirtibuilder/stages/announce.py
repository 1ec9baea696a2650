"""Announce: the `submitted` event has got through to every required hook, before any code runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from invirtibuilder.jobs import Job
from invirtibuilder.stages.context import Context, Wait
from invirtibuilder.stages.events import payload

LOOK_AGAIN = timedelta(seconds=5)


def announce(context: Context, job: Job) -> dict[str, Any]:
    """Queue `submitted`, wait for required hooks, then queue `started`."""
    context.events.queue(job.id, "submitted", payload(context, job, state="queued"))
    waiting = context.events.deliver_job(job.id)
    if waiting:
        now = context.clock()
        names = "; ".join(
            f"{d.hook}" + (f" ({d.attempts} attempts, {d.why})" if d.why else "") for d in waiting
        )
        wake = min((d.next or now + LOOK_AGAIN for d in waiting), default=now + LOOK_AGAIN)
        raise Wait(f"the required hook has not accepted `submitted` yet: {names}", wake)
    context.events.queue(job.id, "started", payload(context, job, state="running"))
    return {"accepted": True}
