"""Following a job: progress line by line, and its verdict as an exit code."""

from __future__ import annotations

import time

from invirtibuilder.cli.command import say
from invirtibuilder.config import Site
from invirtibuilder.errors import Exit, NotFound, Reason
from invirtibuilder.jobs import Job, Jobs, Status
from invirtibuilder.states import State

POLL = 0.2
PATIENCE = 10.0

EXITS = {
    State.PUBLISHED: Exit.OK,
    State.DONE: Exit.OK,
    State.REFUSED: Exit.REFUSED,
    State.FAILED: Exit.FAILED,
    State.CANCELLED: Exit.CANCELLED,
}


def follow(site: Site, job_id: str) -> int:
    """Print the journal as it grows, then the verdict. Returns the exit code."""
    jobs = Jobs(site.jobs)
    job = _taken_up(jobs, job_id)
    shown = 0
    while True:
        status = job.status
        lines = journal(job)
        for line in lines[shown:]:
            say(line)
        shown = len(lines)
        if status.final:
            break
        time.sleep(POLL)
    for line in verdict(job, status):
        say(line)
    return EXITS[status.state]


def _taken_up(jobs: Jobs, job_id: str) -> Job:
    said = False
    started = time.monotonic()
    while True:
        try:
            return jobs.get(job_id)
        except NotFound:
            if not said and time.monotonic() - started > PATIENCE:
                say("waiting for the daemon to take the request up")
                said = True
            time.sleep(POLL)


def journal(job: Job) -> list[str]:
    """The short log."""
    path = job.directory / "journal"
    return path.read_text().splitlines() if path.exists() else []


def verdict(job: Job, status: Status) -> list[str]:
    """The end of a job, with every reason and its hint."""
    words = f"{job.package or job.request.action} {status.version}".strip()
    lines = [f"{words}: {status.state}" + (f" ({status.blame})" if status.blame else "")]
    lines += [str(Reason(**reason)) for reason in status.reasons]
    return lines
