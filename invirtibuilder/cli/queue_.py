"""queue: what runs, and what waits in the order in which it will be taken."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from invirtibuilder import pauses
from invirtibuilder.cli.command import Command, load_site, show
from invirtibuilder.cli.status import listed
from invirtibuilder.door import view
from invirtibuilder.jobs import Jobs
from invirtibuilder.model import printable
from invirtibuilder.spool import Spool


class Queue(Command):
    name = "queue"
    description = "show what is not finished, in the order in which it is taken, and why"

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        order = view.Order(site.queue_view, site.socket)
        jobs = sorted(Jobs(site.jobs).unfinished(), key=lambda job: order.place(job.id))
        paused = pauses.load(site)
        untaken = [e.path.stem for e in Spool(site.queue).entries(frozenset())]
        value = {
            "as_of": order.as_of or None,
            "jobs": [
                {
                    "job": job.id,
                    "pocket": job.pocket,
                    "package": job.package,
                    "principal": job.request.principal,
                    "why": order.why.get(job.id, ""),
                    **asdict(job.status),
                }
                for job in jobs
            ],
            "not_taken_up": untaken,
            "paused": [asdict(pause) for pause in paused.values()],
        }
        lines = [pause.text for pause in paused.values()]
        lines += [order.warning] if jobs and order.warning else []
        lines += [listed(jobs)] if jobs else ["no job is queued or running"]
        lines += [
            f"{job.id}: {printable(order.why[job.id])}" for job in jobs if job.id in order.why
        ]
        if untaken:
            lines.append(f"not taken up yet (is the daemon running?): {', '.join(untaken)}")
        show(args, value, "\n".join(lines))
        return 0
