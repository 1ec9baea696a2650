"""promote and rollback: what a pocket has comes from another one, or from before."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from invirtibuilder import entries
from invirtibuilder.cli.arguments import add_promotion, add_rollback, promotion_words
from invirtibuilder.cli.command import Command, load_site, me, say, show
from invirtibuilder.cli.follow import follow
from invirtibuilder.door import submit as door
from invirtibuilder.spool import Request

WAIT = "show progress and end with the job's verdict"


class Promote(Command):
    name = "promote"
    description = "bring packages of a pocket to another, all or none; prints the job's id"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_promotion(parser)
        parser.add_argument("--wait", action="store_true", help=WAIT)

    def run(self, args: argparse.Namespace) -> int:
        return _queue(args, "promote", promotion_words(args))


class Rollback(Command):
    name = "rollback"
    description = "put a pocket, or packages of it, back to what they were; prints the job's id"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_rollback(parser)
        parser.add_argument("--wait", action="store_true", help=WAIT)

    def run(self, args: argparse.Namespace) -> int:
        note = entries.downgrade(args.pocket)
        return _queue(args, "rollback", [args.pocket, args.when, *args.package], note)


def _queue(args: argparse.Namespace, action: str, words: Sequence[str], note: str = "") -> int:
    site = load_site(args)
    request = Request.new(action, words, principal=me(), via="local")
    answer = door.submit(site.queue, site.socket, request.as_json())
    if answer is None:
        say("accepted, but not checked yet: the daemon does not answer")
    else:
        for each in answer["packages"]:
            say(f"accepted: {each['package']}: {each['how']}{door.held(answer)}")
    if note:
        say(note)
    value = {"job": request.id, "checked": answer is not None}
    show(args, {**value, "packages": answer["packages"] if answer else None}, request.id)
    return follow(site, request.id) if args.wait else 0
