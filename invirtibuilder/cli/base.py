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
        refresh.add_argument("pocket", metavar="POCKET")
        refresh.add_argument("--wait", action="store_true", help="until it is made")

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        pocket = the_pocket(site, args.pocket)
        request = Request.new("base-refresh", [pocket.name], principal=me(), via="local")
        Spool(site.queue).put(request)
        show(args, {"job": request.id}, request.id)
        return follow(site, request.id) if args.wait else 0
