"""backup and restore: copies of a running site, and a site made of one."""

from __future__ import annotations

import argparse
from pathlib import Path

from invirtibuilder import backup
from invirtibuilder.cli.command import Command, in_place_of_the_daemon, own_site, say, show, told
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import Unavailable
from invirtibuilder.stages.context import Wait


class Backup(Command):
    name = "backup"
    description = "copy the running site, whole and consistent, into a new folder of a directory"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "directory", metavar="DIR", type=Path, help="which has the earlier ones, too"
        )

    def run(self, args: argparse.Namespace) -> int:
        target = args.directory.absolute()
        site = own_site(args)
        try:
            saved = backup.save(make_context(site), target)
        except Wait as wait:
            raise Unavailable(str(wait), hint="try again later", code="unsettled") from wait
        for what in saved.lacking:
            say(f"not in it: {what}")
        value = {
            "backup": str(saved.path),
            "copied": saved.copied,
            "linked": saved.linked,
            "publications_waited": round(saved.seconds, 3),
            "lacking": saved.lacking,
        }
        show(args, value, str(saved.path))
        return 0


class Restore(Command):
    name = "restore"
    description = "make the configuration's site of a backup; its directory must be empty"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("backup", metavar="BACKUP", type=Path, help="a folder of a backup")

    def run(self, args: argparse.Namespace) -> int:
        folder = args.backup.absolute()
        site = own_site(args)
        try:
            with in_place_of_the_daemon(site):
                done = []
                for line in backup.restore(make_context(site), folder):
                    done.append(line)
                    told(args, line)
        except Wait as wait:
            raise Unavailable(str(wait), hint="try again later", code="unsettled") from wait
        if args.json:
            show(args, {"done": done}, "")
        say("`invirtibuilder fsck --full` proves it; then start the daemon")
        return 0
