"""daemon: take requests up and run the line."""

from __future__ import annotations

import argparse

from invirtibuilder.cli.command import Command, own_site
from invirtibuilder.daemon import Daemon
from invirtibuilder.journal import logger

log = logger()
"""Of a service that runs in the foreground."""


class RunDaemon(Command):
    name = "daemon"
    description = "watch the queue, build and publish; ends with SIGTERM, builds go on"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--drain", action="store_true", help="stop when the queue is empty and all is done"
        )

    def run(self, args: argparse.Namespace) -> int:
        Daemon(own_site(args), log, drain=args.drain).run()
        return 0
