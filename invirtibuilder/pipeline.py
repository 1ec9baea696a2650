"""The line: one tuple of stages and one loop. A job goes on after the last written fact."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from invirtibuilder.errors import Blame, Cancelled, Fault, Reason, Refused
from invirtibuilder.gitrepo import JOBS
from invirtibuilder.jobs import Job
from invirtibuilder.stages.admit import admit
from invirtibuilder.stages.announce import announce
from invirtibuilder.stages.build import build
from invirtibuilder.stages.context import Context, Stopping, Wait
from invirtibuilder.stages.events import log_tail, payload
from invirtibuilder.stages.export import export
from invirtibuilder.stages.finish import COMMITTED
from invirtibuilder.stages.notify import notify
from invirtibuilder.stages.orders import stop_running
from invirtibuilder.stages.promote import admit_promotion, give_up, promote, rebuild
from invirtibuilder.stages.publish import publish
from invirtibuilder.stages.rollback import admit_rollback, roll_back
from invirtibuilder.stages.verify import verify
from invirtibuilder.states import State

Stage = Callable[[Context, Job], dict[str, Any]]

STAGES: tuple[tuple[str, Stage], ...] = (
    ("admit", admit),
    ("announce", announce),
    ("export", export),
    ("build", build),
    ("verify", verify),
    ("publish", publish),
    ("notify", notify),
)

PROMOTION: tuple[tuple[str, Stage], ...] = (
    ("admit", admit_promotion),
    ("announce", announce),
    ("rebuild", rebuild),
    ("publish", promote),
    ("notify", notify),
)

ROLLBACK: tuple[tuple[str, Stage], ...] = (
    ("admit", admit_rollback),
    ("announce", announce),
    ("publish", roll_back),
    ("notify", notify),
)

LINES = {"submit": STAGES, "promote": PROMOTION, "rollback": ROLLBACK}
"""By the action that was asked for."""

VERDICT = "verdict"
RETRY = timedelta(seconds=30)
FULL = {errno.ENOSPC, errno.EDQUOT}
PASSING = frozenset({"key-missing", "key-locked", "no-signer", "signer-refused"})
"""What the administrator puts right: a job waits for it, and what it has built is not lost."""
AGAIN = frozenset({"killed", "signing-failed"})
"""What says nothing of the job, as a tool or its agent was killed: the stage is done again."""
TRIES = 5
LATER = timedelta(hours=1)
"""What has met that so often in one stage is not looked at again for so long."""
TRIED = "tried"
FULL_WORDS = tuple(os.strerror(number) for number in FULL)
SCARCE = 8 << 20
"""Bytes: less is free only on a disk that is full, or was so a moment ago."""


def advance(context: Context, job: Job) -> None:
    """Take a job as far as it goes now: to a final state, or until it has to wait.

    Raises Stopping when the daemon is to end; the job then goes on with the next daemon.
    """
    if job.status.state in (State.QUEUED, State.WAITING):
        job.move(State.RUNNING)
    try:
        for name, stage in LINES[job.request.action]:
            if job.fact(VERDICT) is not None:
                break
            if job.fact(name) is not None:
                continue
            if context.stopping():
                raise Stopping
            # What is published stays published: a cancel comes too late then.
            if job.cancel_asked and not (job.fact("publish") or job.fact(COMMITTED)):
                # An attempt may run on from before a restart.
                stop_running(job)
                raise Cancelled(f"cancelled by {job.cancel_asked}")
            job.note(stage=name)
            job.remark(name)
            job.write_fact(name, stage(context, job))
    except Wait as wait:
        job.move(State.WAITING, str(wait), reasons=_waiting(str(wait)), wake=wait.wake)
        return
    except Stopping:
        raise
    except Cancelled as fault:
        _decide(job, State.CANCELLED, fault.reasons, Blame.REQUEST)
    except Refused as fault:
        _decide(job, State.REFUSED, fault.reasons, Blame.REQUEST)
    except Fault as fault:
        if put_off(context, job, fault):
            return
        _decide(job, State.FAILED, fault.reasons, fault.blame)
    except OSError as error:
        if put_off(context, job, error):
            return
        _our_fault(job, error)
    except Exception as error:  # the one broad catch: a defect must not stop the line
        _our_fault(job, error)
    try:
        _conclude(context, job)
    except Fault as fault:
        if not put_off(context, job, fault):
            raise


def put_off(context: Context, job: Job, error: Fault | OSError) -> bool:
    """Have a job wait for what is passing on this machine; False when there is no such hope."""
    if isinstance(error, OSError):
        if error.errno not in FULL:
            return False
        why, pause = f"the disk is full: {error}", RETRY
        reasons: Sequence[Reason] = _waiting(why)
    else:
        why, pause, reasons = str(error), RETRY, error.reasons
        if error.blame != Blame.MACHINE:
            return False
        if error.code in AGAIN:
            pause = _pause(job)
        elif error.code not in PASSING and not any(word in why for word in FULL_WORDS):
            if not _scarce(context):
                return False
            why = f"the disk is nearly full: {why}"
    job.move(State.WAITING, why, reasons=reasons, wake=context.clock() + pause)
    return True


def _scarce(context: Context) -> bool:
    """Whether what a tool has failed of may well be a full disk, which each says in other words."""
    site = context.site
    for path in (site.directory, site.jobs, site.archive, site.packages):
        found = os.statvfs(path)
        if found.f_bavail * found.f_frsize < SCARCE or (found.f_files and not found.f_favail):
            return True
    return False


def _pause(job: Job) -> timedelta:
    """Short, as long as this stage was not tried TRIES times."""
    stage = job.status.stage
    before = job.fact(TRIED) or {}
    times = int(before["times"]) + 1 if before.get("stage") == stage else 1
    job.write_fact(TRIED, {"stage": stage, "times": times})
    job.remark(f"{stage}: cut off from outside, {times} times")
    return RETRY if times < TRIES else LATER


def _waiting(why: str) -> list[Reason]:
    return [Reason(code="waiting", message=why)]


def _our_fault(job: Job, error: Exception) -> None:
    (job.directory / "traceback").write_text("".join(traceback.format_exception(error)))
    reason = Reason(
        code="defect",
        message=f"a defect of ours: {error!r}",
        hint=f"please report it with {job.directory}/traceback; `retry` may help",
    )
    _decide(job, State.FAILED, [reason], Blame.MACHINE)


def _decide(job: Job, state: State, reasons: Sequence[Reason], blame: Blame) -> None:
    """Write the verdict down before anybody is told of it, so that it stands."""
    job.write_fact(
        VERDICT,
        {"state": state, "reasons": [r.as_json() for r in reasons], "blame": blame},
    )


def _conclude(context: Context, job: Job) -> None:
    """From the verdict to the final state, by way of the hooks' queue."""
    verdict = job.fact(VERDICT)
    if verdict is None:
        publication = job.need("publish")["publication"]
        job.move(State.PUBLISHED, f"publication {publication}")
        return
    state = State(verdict["state"])
    reasons = [Reason(**r) for r in verdict["reasons"]]
    tail = log_tail(job) if state == State.FAILED else ""
    told = payload(
        context, job, state=state, reasons=reasons, blame=verdict["blame"], log_tail=tail
    )
    context.events.queue(job.id, "failed", told)
    _let_go(context, job)
    give_up(context, job)
    why = "; ".join(r.message.split("\n", 1)[0] for r in reasons)
    job.move(state, why, reasons=reasons, blame=verdict["blame"])
    if job.part_of:
        whole = context.jobs.get(job.part_of)
        whole.nudge()
        context.tell(whole)


def _let_go(context: Context, job: Job) -> None:
    """Drop the refs that held the objects of a job that is over."""
    if not job.package or not context.site.package_repository(job.package).is_dir():
        return
    context.repository(job.package).hold(f"{JOBS}{job.id}", {})
