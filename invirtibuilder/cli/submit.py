"""submit: ask for a commit to be built and published."""

from __future__ import annotations

import argparse

from invirtibuilder.cli.check import add_submission, checked
from invirtibuilder.cli.command import Command, load_site, me, say, show
from invirtibuilder.cli.follow import follow
from invirtibuilder.door import submit as door
from invirtibuilder.spool import Request


class Submit(Command):
    name = "submit"
    description = "queue a commit for a pocket; prints the job's id"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_submission(parser)
        parser.add_argument(
            "--wait", action="store_true", help="show progress and end with the job's verdict"
        )

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        request = Request.new("submit", checked(args), principal=me(), via="local")
        answer = door.submit(site.queue, site.socket, request.as_json())
        say(door.said(answer, args.package))
        there = (answer or {}).get("job")
        job = str(there or request.id)
        show(args, {"job": job, "checked": answer is not None, "queued": not there}, job)
        return follow(site, job) if args.wait else 0
