"""fsck: whether git, the archive and the records say the same."""

from __future__ import annotations

import argparse

from invirtibuilder.cli.arguments import add_fsck
from invirtibuilder.cli.command import Command, Progress, own_site, show, the_pocket
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import Exit
from invirtibuilder.fsck import check


class Fsck(Command):
    name = "fsck"
    description = "prove that git, the archive and the records say the same"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_fsck(parser)

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args)
        names = args.pocket or list(site.pockets)
        pockets = [the_pocket(site, name) for name in dict.fromkeys(names)]
        context = make_context(site)
        report = check.check(
            context,
            pockets,
            level=args.level,
            full=args.full,
            mend=args.repair,
            go_on=Progress("files read"),
        )
        show(args, report.as_json(), "\n".join(report.lines))
        return Exit.DRIFT if report.drift else Exit.OK
