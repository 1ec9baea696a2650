"""diff: what differs between two pockets, or a pocket now and then."""

from __future__ import annotations

import argparse

from invirtibuilder import differences
from invirtibuilder.cli.command import Command, own_site, show


class Diff(Command):
    name = "diff"
    description = "show what differs between two pockets, commits of the superproject, or dates"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        words = "POCKET, POCKET@COMMIT, POCKET@DATE, a superproject COMMIT, or a DATE"
        parser.add_argument("a", metavar="A", help=words)
        parser.add_argument("b", metavar="B", help="the same; what is new there is added")

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args, writes=False)
        found = differences.compare(site, *differences.sides(site, args.a, args.b))
        show(args, found.as_json(), differences.text(found))
        return 0
