"""notifier: run hooks and the programs of ACLs for the daemon."""

from __future__ import annotations

import argparse
from pathlib import Path

from invirtibuilder.cli.command import Command, config_file
from invirtibuilder.cli.daemon import log
from invirtibuilder.notifier import Notifier


class RunNotifier(Command):
    name = "notifier"
    description = "run hooks and the programs of ACLs for the daemon, as an account of their own"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--listen",
            metavar="SOCKET",
            type=Path,
            required=True,
            help="where the daemon asks: `site: notifier` of the configuration",
        )

    def run(self, args: argparse.Namespace) -> int:
        Notifier(config_file(args), log).run(args.listen)
        return 0
