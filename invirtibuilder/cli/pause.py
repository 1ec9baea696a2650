"""pause and resume: of the whole queue, or of one pocket, by way of the queue."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from invirtibuilder import pauses
from invirtibuilder.cli.cancel import put
from invirtibuilder.cli.command import Command, load_site, show, the_pocket
from invirtibuilder.entries import WHOLE


class Pause(Command):
    name = "pause"
    description = "let no job of a pocket, or none at all, start anything new; what runs ends"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_scope(parser)
        parser.add_argument(
            "--reason", metavar="TEXT", default="", help="what submitters and `queue` are told"
        )

    def run(self, args: argparse.Namespace) -> int:
        return _act(args, "pause", args.reason)


class Resume(Command):
    name = "resume"
    description = "end a pause of a pocket, or that of the whole queue"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_scope(parser)

    def run(self, args: argparse.Namespace) -> int:
        return _act(args, "resume")


def _add_scope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pocket", metavar="POCKET", nargs="?", help="default: the whole queue")


def _act(args: argparse.Namespace, action: str, *more: str) -> int:
    site = load_site(args)
    scope = the_pocket(site, args.pocket).name if args.pocket else WHOLE
    request = put(site, action, [scope, *more])
    left = pauses.load(site)
    value = {"request": request.id, "paused": [asdict(pause) for pause in left.values()]}
    show(args, value, "\n".join(pause.text for pause in left.values()) or "nothing is paused")
    return 0
