"""sources: what a client puts below /etc/apt to use a pocket."""

from __future__ import annotations

import argparse

from invirtibuilder import hosting
from invirtibuilder.cli.command import Command, own_site, show, the_pocket


class Sources(Command):
    name = "sources"
    description = "print the APT sources stanza of a pocket, and the preferences that go with it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pocket", metavar="POCKET")
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--preferences",
            action="store_true",
            help="print the preferences stanza that puts the pocket above the mirror, instead",
        )
        which.add_argument(
            "--downgrade",
            action="store_true",
            help="print the preferences stanza that makes APT go back to lower versions, instead",
        )
        which.add_argument(
            "--at",
            metavar="WHEN",
            help="the pocket as it was then, by a commit of the superproject or a date (UTC)",
        )
        parser.add_argument(
            "--keyring",
            action="store_true",
            help="name the file of the package POCKET-archive-keyring, instead of the keys",
        )

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args, writes=False)
        pocket = the_pocket(site, args.pocket)
        client = hosting.client(site, pocket, at=args.at or "", keyring=args.keyring)
        text = client.sources if args.at else client.text
        if args.preferences:
            text = client.preferences
        elif args.downgrade:
            text = client.downgrade
        value = {
            "sources": client.sources,
            "preferences": client.preferences,
            "downgrade": client.downgrade,
        }
        show(args, value, text.rstrip("\n"))
        return 0
