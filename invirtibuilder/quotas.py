"""How much one principal may ask of a pocket: one subverted account cannot keep its builders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from invirtibuilder import files, model
from invirtibuilder.errors import Malformed, Reason
from invirtibuilder.spool import parse
from invirtibuilder.stages.context import Context

HOUR = timedelta(hours=1)


def excess(
    context: Context, principal: str, pocket: str, *, but: str = "", queued: bool = True
) -> list[Reason]:
    """Why a submission would be one too many, with when to come back; nothing if it is not.

    A job `but` is not counted: it is the one in question. What is not `queued`, being the same as
    a job that is, counts for the hour only.
    """
    rules = context.site.pockets.get(pocket)
    reasons: list[Reason] = []
    who = model.printable(principal)
    if rules and rules.max_queued and queued:
        waiting = _unfinished(context, principal, pocket, but)
        if len(waiting) >= rules.max_queued:
            message = f"{who} has {len(waiting)} jobs in {pocket} that are not over, of at most"
            message += f" {rules.max_queued}; come back when {waiting[0]} has ended"
            hint = "`status` shows it, `cancel` ends it"
            reasons.append(Reason(code="too-many-queued", message=message, hint=hint))
    if rules and rules.max_hourly:
        times = _last_hour(context, principal, pocket, but)
        if len(times) >= rules.max_hourly:
            # Then as many as are too many now have left the hour.
            free = times[-rules.max_hourly] + HOUR
            message = f"{who} has submitted {len(times)} times to {pocket} in an hour, of at most"
            message += f" {rules.max_hourly}; come back at {model.iso(free)}"
            reasons.append(Reason(code="too-many-submissions", message=message))
    return reasons


def _unfinished(context: Context, principal: str, pocket: str, but: str) -> list[str]:
    """The principal's jobs in the pocket that are not over, oldest first."""
    return [
        job.id
        for job in context.jobs.unfinished()
        if job.id != but
        and (job.request.action, job.request.principal, job.pocket) == ("submit", principal, pocket)
    ]


def _last_hour(context: Context, principal: str, pocket: str, but: str) -> list[datetime]:
    """When the principal's submissions of the last hour were taken up, in order.

    By the files' times: an id is the submitter's word.
    """
    since = context.clock() - HOUR
    times = []
    for name in context.jobs.names():
        file = context.jobs.directory / name / "request.json"
        try:
            time = datetime.fromtimestamp(file.stat().st_mtime, UTC)
            if time <= since or name == but:
                continue
            request = parse(files.read_json(file))
        except (OSError, Malformed):
            continue  # a job that is gone or damaged must not stop others
        if (request.action, request.principal, *request.args[:1]) == ("submit", principal, pocket):
            times.append(time)
    times += [
        datetime.fromisoformat(alias.taken_up)
        for alias in context.jobs.aliases.since(since)
        if (alias.request.principal, alias.request.args[0]) == (principal, pocket)
    ]
    return sorted(times)
