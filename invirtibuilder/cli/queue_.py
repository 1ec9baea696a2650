"""queue: what is not finished, in the order in which it will be taken."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from invirtibuilder.cli.command import Command, load_site, show
from invirtibuilder.cli.status import listed
from invirtibuilder.jobs import Jobs
from invirtibuilder.spool import Spool


class Queue(Command):
    name = "queue"
    description = "show what is not finished, in order, and what it waits for"

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        jobs = Jobs(site.jobs).unfinished()
        untaken = [e.path.stem for e in Spool(site.queue).entries(frozenset())]
        value = {
            "jobs": [{"job": job.id, **asdict(job.status)} for job in jobs],
            "not_taken_up": untaken,
        }
        lines = [listed(jobs)] if jobs else ["no job is queued or running"]
        for job in jobs:
            lines += [f"{job.id}: {r['message']}" for r in job.status.reasons]
        if untaken:
            lines.append(f"not taken up yet (is the daemon running?): {', '.join(untaken)}")
        show(args, value, "\n".join(lines))
        return 0
