"""sources: what a client puts below /etc/apt to use a pocket."""

from __future__ import annotations

import argparse

from invirtibuilder.apt import stanza
from invirtibuilder.cli.command import Command, load_site, show, the_pocket
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import NotFound
from invirtibuilder.stages.context import LABEL


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
        context = make_context(site)
        if context.archive(pocket).publications.current() is None:
            raise NotFound(
                f"pocket {pocket.name} has no publication yet",
                hint=f"`invirtibuilder pocket create {pocket.name}`",
                code="no-publication",
            )
        sources = stanza.sources(
            f"{site.url.rstrip('/')}/{pocket.name}",
            pocket.codename,
            pocket.components[:1],
            context.signer.public_key(),
        )
        preferences = stanza.preferences(site.name, label=LABEL, codename=pocket.codename)
        note = "# To put it above the mirror, in /etc/apt/preferences.d:\n" + "".join(
            f"#   {line}\n" for line in preferences.splitlines()
        )
        text = preferences if args.preferences else note + sources
        show(args, {"sources": sources, "preferences": preferences}, text.rstrip("\n"))
        return 0
