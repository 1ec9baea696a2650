"""cancel and retry: acts on a job, by way of the queue."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from invirtibuilder.cli.command import Command, load_site, me, say, show
from invirtibuilder.errors import Denied, Malformed
from invirtibuilder.jobs import Jobs
from invirtibuilder.settings import Site
from invirtibuilder.spool import Request, Spool

PATIENCE = 5.0


class Cancel(Command):
    name = "cancel"
    description = "stop a job; a build is killed whole"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", help="an id, or a part of one")

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        name = args.job
        if Spool(site.queue).has(name):
            say(f"job {name} is not taken up yet")
        else:
            job = Jobs(site.jobs).get(name)
            if job.status.final:
                say(f"job {job.id} is {job.status.state} already")
                return 0
            name = _asked_as(site, job.id, name)
        request = put(site, "cancel", [name])
        show(args, {"request": request.id, "job": name}, f"asked to cancel job {name}")
        return 0


class Retry(Command):
    name = "retry"
    description = "submit once more what a finished job was asked for; prints the new job's id"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", help="an id, or a part of one")

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        job = Jobs(site.jobs).get(args.job)
        if not job.status.final:
            raise Malformed(f"job {job.id} is not over: nothing to retry", code="not-over")
        request = put(site, "retry", [_asked_as(site, job.id, args.job)])
        show(args, {"job": request.id, "retry_of": job.id}, request.id)
        return 0


def _asked_as(site: Site, job: str, name: str) -> str:
    """The id of the submission that is meant: the job's own, or an alias of it."""
    alias = Jobs(site.jobs).alias(name)
    return alias.request.id if alias else job


def put(site: Site, action: str, words: Sequence[str]) -> Request:
    """Queue the request, and wait a little for the daemon's word. Raises Denied."""
    request = Request.new(action, words, principal=me(), via="local")
    spool = Spool(site.queue)
    spool.put(request)
    until = time.monotonic() + PATIENCE
    while (spool.new / f"{request.id}.json").exists():
        if time.monotonic() > until:
            say("queued: the daemon has not taken it up yet")
            return request
        time.sleep(0.05)
    if why := spool.why_set_aside(request.id):
        raise Denied(why)
    return request
