"""daemon: take requests up and run the line."""

from __future__ import annotations

import argparse

from invirtibuilder import model
from invirtibuilder.cli.command import Command, load_site, say
from invirtibuilder.daemon import Daemon


class RunDaemon(Command):
    name = "daemon"
    description = "watch the queue, build and publish; ends with SIGTERM, builds go on"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--drain", action="store_true", help="stop when the queue is empty and all is done"
        )

    def run(self, args: argparse.Namespace) -> int:
        def log(text: str) -> None:
            say(f"{model.iso(model.utcnow())} {text}")

        Daemon(load_site(args), log, drain=args.drain).run()
        return 0
