"""log: the stages with UTC times, then what the commands said."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from invirtibuilder import model
from invirtibuilder.cli.command import Command, load_site
from invirtibuilder.errors import Denied
from invirtibuilder.joblog import Tail, harmless
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.spool import Spool

POLL = 0.2


class Log(Command):
    name = "log"
    description = "print a job's log: its stages, then the commands' output"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", help="an id, or a part of one")
        parser.add_argument(
            "--follow", "-f", action="store_true", help="go on until the job has ended"
        )

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        spool = Spool(site.queue)
        while spool.has(args.job):
            if not args.follow:
                print(f"{args.job} is queued, not taken up yet")
                return 0
            time.sleep(POLL)
        if model.JOB.fullmatch(args.job) and (why := spool.why_set_aside(args.job)):
            raise Denied(why, code="set-aside")
        job = Jobs(site.jobs).get(args.job)
        for text in pieces(job, follow=args.follow):
            sys.stdout.write(harmless(text))
            sys.stdout.flush()
        return 0


def pieces(job: Job, *, follow: bool) -> Iterator[str]:
    """The journal and each attempt's log, once; with `follow` as they grow, until the end."""
    tail = Tail(job.directory)
    while True:
        final = job.status.final
        yield from tail.more()
        if final or not follow:
            return
        time.sleep(POLL)
