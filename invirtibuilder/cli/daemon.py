"""daemon: take requests up and run the line."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress

from invirtibuilder import model
from invirtibuilder.cli.command import Command, load_site
from invirtibuilder.daemon import Daemon


def log(text: str) -> None:
    """A line with the time on standard error; one that its disk has no room for is left out."""
    with suppress(OSError):
        os.write(2, f"{model.iso(model.utcnow())} {text}\n".encode("utf-8", "backslashreplace"))


class RunDaemon(Command):
    name = "daemon"
    description = "watch the queue, build and publish; ends with SIGTERM, builds go on"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--drain", action="store_true", help="stop when the queue is empty and all is done"
        )

    def run(self, args: argparse.Namespace) -> int:
        Daemon(load_site(args), log, drain=args.drain).run()
        return 0
