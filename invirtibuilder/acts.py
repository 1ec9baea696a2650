"""Acts that publish nothing, as jobs: a new base; fsck, gc and rebuild-state of the whole site.

Each is safe to run again from its beginning, which is what the next daemon does with one that was
cut off. What was found or done is in the job's log, and whole in its facts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from invirtibuilder import entries, rebuild, retention
from invirtibuilder.errors import Blame, Cancelled, Exit, Fault, Reason
from invirtibuilder.fsck import check
from invirtibuilder.fsck.check import Report
from invirtibuilder.jobs import Job
from invirtibuilder.pipeline import put_off
from invirtibuilder.spool import Request
from invirtibuilder.stages.base import refresh_base
from invirtibuilder.stages.context import Context, Places, Stopping, Wait
from invirtibuilder.states import DRIFT, State

MAX_LINES = 1000
"""Of findings in a log; the facts have all."""
LOOK = 0.2


class Drift(Fault):
    """Git, the archive and the records do not say the same."""

    exit = Exit.DRIFT
    blame = Blame.MACHINE
    code = DRIFT

    def __init__(self, report: Report) -> None:
        found = sum(finding.drift for finding in report.findings)
        super().__init__(
            f"git, the archive and the records differ in {found} places, which the log names",
            hint="`fsck --repair` mends what is safe",
        )


def act(context: Context, job: Job) -> None:
    """Take such a job to its final state, or until it has to wait. Raises Stopping."""
    if job.status.state in (State.QUEUED, State.WAITING):
        job.move(State.RUNNING)
    job.note(stage=job.request.action)
    try:
        _goes_on(context, job)
        why = ACTS[job.request.action](context, job)
    except Wait as wait:
        job.move(State.WAITING, str(wait), wake=wait.wake)
        return
    except Fault as fault:
        if put_off(context, job, fault):
            return
        reasons: list[Reason] = list(fault.reasons)
        state = State.CANCELLED if isinstance(fault, Cancelled) else State.FAILED
        job.move(state, str(fault), reasons=reasons, blame=fault.blame)
        return
    except OSError as error:
        if put_off(context, job, error):
            return
        reason = Reason(code="machine", message=str(error), hint="`retry` may help")
        job.move(State.FAILED, str(error), reasons=[reason], blame=Blame.MACHINE)
        return
    job.move(State.DONE, why)


def pockets(request: Request) -> Sequence[str]:
    """The pockets that an act is of; none: all."""
    return entries.split(request.action, request.args)[0]


def _goes_on(context: Context, job: Job) -> None:
    """Raises Stopping and Cancelled."""
    if context.stopping():
        raise Stopping
    if job.cancel_asked:
        raise Cancelled(f"cancelled by {job.cancel_asked}")


@dataclass(frozen=True, kw_only=True)
class _Borrowed:
    """The job's own place with a builder, for what it has made anew, which are no jobs."""

    context: Context
    job: Job

    def enter(self, job: Job, domain: str) -> None:
        """As Places says, but waits itself. Raises Stopping and Cancelled."""
        while True:
            _goes_on(self.context, self.job)
            try:
                self.context.places.enter(self.job, domain)
                return
            except Wait:
                time.sleep(LOOK)

    def leave(self, job: Job) -> None:
        """As Places says."""
        self.context.places.leave(self.job)


def _fsck(context: Context, job: Job) -> str:
    _, options = entries.split(job.request.action, job.request.args)
    names = pockets(job.request) or list(context.site.pockets)
    places: Places = _Borrowed(context=context, job=job)
    report = check.check(
        replace(context, places=places),
        [context.site.pockets[name] for name in dict.fromkeys(names)],
        level="c" if "--level=c" in options else "b",
        full="--full" in options,
        mend="--repair" in options,
        go_on=lambda: _goes_on(context, job),
    )
    return _reported(job, report)


def _reported(job: Job, report: Report) -> str:
    """Write a report down; the end of it. Raises Drift."""
    job.write_fact("fsck", report.as_json())
    *lines, end = report.lines
    _tell(job, lines)
    job.remark(end)
    if report.drift:
        raise Drift(report)
    return end


def _tell(job: Job, lines: Sequence[str]) -> None:
    for line in lines[:MAX_LINES]:
        job.remark(line)
    if len(lines) > MAX_LINES:
        job.remark(f"and {len(lines) - MAX_LINES} more")


def _gc(context: Context, job: Job) -> str:
    dry_run = "--dry-run" in job.request.args
    found: list[retention.Waste] = []
    try:
        with closing(retention.collect(context, dry_run=dry_run)) as wastes:
            for waste in wastes:
                found.append(waste)
                _goes_on(context, job)
    finally:
        # Whatever ends it: what has gone is told.
        _tell(job, [waste.text for waste in found])
    gone: list[dict[str, Any]] = [asdict(waste) for waste in found]
    job.write_fact("gc", {"dry_run": dry_run, "gone": gone})
    size = sum(waste.size for waste in found)
    return f"{len(found)} {'would go' if dry_run else 'gone'}, {size} bytes"


def _rebuild(context: Context, job: Job) -> str:
    made = 0
    with closing(rebuild.rebuild(context)) as steps:
        for line in steps:
            made += 1
            job.remark(line)
            _goes_on(context, job)
    everything = list(context.site.pockets.values())
    report = check.check(
        context,
        everything,
        level="b",
        full=True,
        mend=True,
        go_on=lambda: _goes_on(context, job),
    )
    end = _reported(job, report)
    return f"{made} made anew; {end}" if made else f"nothing was missing; {end}"


ACTS: dict[str, Callable[[Context, Job], str]] = {
    "base-refresh": refresh_base,
    "fsck": _fsck,
    "gc": _gc,
    "rebuild-state": _rebuild,
}
"""Each does one thing to its end, and says in words what came out."""
