"""status: where jobs are, and why."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from invirtibuilder import model
from invirtibuilder.aliases import Alias
from invirtibuilder.cli import sitehealth
from invirtibuilder.cli.command import Command, load_site, show, table
from invirtibuilder.cli.follow import verdict
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import Denied, NotFound, UsageFault
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.settings import Site
from invirtibuilder.spool import Spool

RECENT = 20
UNTAKEN = "not taken up yet"


class Status(Command):
    name = "status"
    description = "show one job, or the latest ones"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", nargs="?", help="an id, or a part of one")
        parser.add_argument("--all", action="store_true", help="every job, not the latest 20")
        parser.add_argument(
            "--site", action="store_true", help="the health of the site; exit code 7 for a trouble"
        )

    def run(self, args: argparse.Namespace) -> int:
        if args.site:
            if args.job or args.all:
                raise UsageFault("--site is for the whole site")
            return sitehealth.status(args)
        site = load_site(args)
        jobs = Jobs(site.jobs)
        if args.job and Spool(site.queue).has(args.job):
            value = {"job": args.job, "state": UNTAKEN}
            show(args, value, f"job        {args.job}\nstate      {UNTAKEN}")
            return 0
        if args.job:
            job, alias = _job(site, jobs, args.job), jobs.alias(args.job)
            value = {**describe(site, job), "alias": alias.as_json() if alias else None}
            show(args, value, "\n".join([_whole(site, job), *_same(alias)]))
            return 0
        names = jobs.names() if args.all else jobs.names()[-RECENT:]
        found = [jobs.get(name) for name in names]
        show(args, [_brief(job) for job in found], listed(found))
        return 0


def _same(alias: Alias | None) -> list[str]:
    if alias is None:
        return []
    asked = alias.request
    gone = f", withdrawn at {alias.withdrawn}" if alias.withdrawn else ""
    return [f"the same   {asked.id} by {model.printable(asked.principal)} at {asked.time}{gone}"]


def _job(site: Site, jobs: Jobs, name: str) -> Job:
    """The job. Raises Denied, with the reason, for a request that was not taken up."""
    try:
        return jobs.get(name)
    except NotFound:
        if model.JOB.fullmatch(name) and (why := Spool(site.queue).why_set_aside(name)):
            raise Denied(why, code="set-aside") from None
        raise


def _brief(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "action": job.request.action,
        "args": list(job.request.args),
        "principal": job.request.principal,
        **asdict(job.status),
    }


def describe(site: Site, job: Job) -> dict[str, Any]:
    """All that is public of a job."""
    deliveries = make_context(site).events.deliveries(job.id)
    return {
        **_brief(job),
        "requested": job.request.time,
        "via": job.request.via,
        "published": job.fact("publish"),
        "hooks": [d.as_json() for d in deliveries],
    }


def _whole(site: Site, job: Job) -> str:
    status = job.status
    lines = [
        f"job        {job.id}",
        f"asked      {' '.join((job.request.action, *job.request.args))}",
        f"by         {model.printable(job.request.principal)}"
        f" via {job.request.via} at {job.request.time}",
        f"state      {status.state} since {status.since}"
        + (f", stage {status.stage}" if status.stage and not status.final else ""),
    ]
    if status.commit:
        lines.append(f"commit     {status.commit}")
    if status.wake:
        lines.append(f"next look  {status.wake}")
    if published := job.fact("publish"):
        lines.append(f"published  publication {published['publication']} at {published['date']}")
    lines += verdict(job, status)
    for delivery in make_context(site).events.deliveries(job.id):
        if delivery.accepted:
            state = "accepted"
        elif delivery.gave_up:
            state = f"given up after {delivery.attempts} attempts: {delivery.why}"
        else:
            state = f"pending, {delivery.attempts} attempts" + (
                f": {delivery.why}" if delivery.why else ""
            )
        lines.append(f"hook       {delivery.hook} {delivery.event}: {state}")
    return "\n".join(lines)


def listed(jobs: list[Job]) -> str:
    """A line a job."""
    rows = [("JOB", "STATE", "STAGE", "POCKET", "PACKAGE", "VERSION", "PRINCIPAL")]
    for job in jobs:
        status = job.status
        rows.append(
            (
                job.id,
                str(status.state),
                "" if status.final else status.stage,
                job.pocket,
                job.package or job.request.action,
                status.version,
                model.printable(job.request.principal),
            )
        )
    return table(rows) if jobs else "no jobs"
