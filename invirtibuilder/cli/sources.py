"""sources: what a client puts below /etc/apt to use a pocket."""

from __future__ import annotations

import argparse

from invirtibuilder import hosting
from invirtibuilder.cli.command import Command, load_site, show, the_pocket
from invirtibuilder.errors import NotFound
from invirtibuilder.stages.context import archive


class Sources(Command):
    name = "sources"
    description = "print the APT sources stanza of a pocket, and the preferences that go with it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pocket", metavar="POCKET")
        parser.add_argument(
            "--preferences",
            action="store_true",
            help="print the preferences stanza that puts the pocket above the mirror, instead",
        )

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        pocket = the_pocket(site, args.pocket)
        if archive(site, pocket).publications.current() is None:
            raise NotFound(
                f"pocket {pocket.name} has no publication yet",
                hint=f"`invirtibuilder pocket create {pocket.name}`",
                code="no-publication",
            )
        client = hosting.client(site, pocket, hosting.public_key(site, pocket).read_bytes())
        text = client.preferences if args.preferences else client.text
        value = {"sources": client.sources, "preferences": client.preferences}
        show(args, value, text.rstrip("\n"))
        return 0
