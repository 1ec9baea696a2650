"""Following a job: progress line by line, and its verdict as an exit code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from invirtibuilder import states
from invirtibuilder.cli.subcommand import say
from invirtibuilder.errors import Denied, Exit, NotFound, Reason
from invirtibuilder.joblog import harmless, log_files
from invirtibuilder.jobs import Job, Jobs, Status
from invirtibuilder.settings import Site
from invirtibuilder.spool import Spool

POLL = 0.2
STAGE = b"== "
"""How a worker's log marks a stage."""
PATIENCE = 10.0


def follow(site: Site, job_id: str) -> int:
    """Print the journal as it grows, then the verdict. Returns the exit code."""
    jobs = Jobs(site.jobs)
    job = _taken_up(jobs, Spool(site.queue), job_id)
    if job.id != job_id and jobs.aliases.get(job_id):
        say(f"job {job.id} does the same already")
    progress = _Progress(job)
    while True:
        status = job.status
        for line in progress.new():
            say(line)
        alias = jobs.aliases.get(job_id)
        if alias and alias.withdrawn:
            say(f"{job_id} was withdrawn; job {job.id} goes on")
            return Exit.CANCELLED
        if status.final:
            break
        time.sleep(POLL)
    for line in verdict(job, status):
        say(line)
    return states.verdict(status.state, (r["code"] for r in status.reasons))


def _taken_up(jobs: Jobs, spool: Spool, job_id: str) -> Job:
    said = False
    started = time.monotonic()
    while True:
        if why := spool.why_set_aside(job_id):
            raise Denied(why)
        try:
            return jobs.get(job_id)
        except NotFound:
            if not said and time.monotonic() - started > PATIENCE:
                say("waiting for the daemon to take the request up")
                said = True
            time.sleep(POLL)


class _Progress:
    """The journal and the workers' stages, each line once, as they appear."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[str]:
        """What has come since the last call."""
        for path in map(Path, log_files(self._job.directory)):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read[path] = self._read.get(path, 0) + len(line)
                    if path.name == "journal":
                        yield line.decode().rstrip()
                    elif line.startswith(STAGE):
                        # A build can print such a line, too: it is shown, never believed.
                        yield harmless(line[len(STAGE) :].decode("utf-8", "replace").rstrip())


def verdict(job: Job, status: Status) -> list[str]:
    """The end of a job, with every reason and its hint."""
    words = f"{job.package or job.request.action} {status.version}".strip()
    lines = [f"{words}: {status.state}" + (f" ({status.blame})" if status.blame else "")]
    lines += [str(Reason(**reason)) for reason in status.reasons]
    return lines
