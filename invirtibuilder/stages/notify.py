"""Notify: `published` is queued for the hooks, from written facts; delivery is at least once."""

from __future__ import annotations

from typing import Any

from invirtibuilder.jobs import Job
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.events import payload


def notify(context: Context, job: Job) -> dict[str, Any]:
    """Queue the event, and let go of what was kept for the job alone."""
    context.events.queue(job.id, "published", payload(context, job, state="published"))
    return {"queued": True}
