"""base refresh: make a pocket's base anew."""

from __future__ import annotations

import argparse

from invirtibuilder.cli.command import Command, load_site, me, show, the_pocket
from invirtibuilder.cli.follow import follow
from invirtibuilder.spool import Request, Spool


class Base(Command):
    name = "base"
    description = "make the base of a pocket anew from the mirror"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        refresh = verbs.add_parser("refresh", help="as a job of the pocket's worker")
        refresh.add_argument("pockets", metavar="POCKET", nargs="*", help="default: all")
        refresh.add_argument("--wait", action="store_true", help="until it is made")

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        names = [the_pocket(site, name).name for name in args.pockets]
        jobs = []
        for name in names or site.pockets:
            request = Request.new("base-refresh", [name], principal=me(), via="local")
            Spool(site.queue).put(request)
            jobs.append(request.id)
        show(args, {"job": jobs[0]} if len(names) == 1 else {"jobs": jobs}, "\n".join(jobs))
        return max(follow(site, job) for job in jobs) if args.wait else 0
