"""check: would this be admitted?"""

from __future__ import annotations

import argparse
import os

from invirtibuilder import model
from invirtibuilder.cli.command import Command, load_site, me, say, show
from invirtibuilder.door import submit as door
from invirtibuilder.errors import Malformed, Reason, Refused, Unavailable
from invirtibuilder.stages.assess import assess


class Check(Command):
    name = "check"
    description = "say whether a submission would be admitted, with all reasons if not"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_submission(parser)

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        words = checked(args)
        try:
            answer = door.check(site.socket, words, me())
        except Unavailable:
            if os.geteuid() == 0 != site.directory.stat().st_uid:
                raise  # root does not look into what others push
            say("the daemon is down: checked by this process")
            found = assess(
                site,
                principal=me(),
                pocket=words[0],
                package=words[1],
                committish=words[2],
                now=model.utcnow(),
            )
            answer = {"ok": True, "commit": found.commit, "version": found.version}
        text = f"{words[1]} {answer['version']} ({answer['commit'][:12]}) may go to {words[0]}"
        text += door.held(answer)
        show(args, answer, text)
        return 0


def add_submission(parser: argparse.ArgumentParser) -> None:
    """POCKET PACKAGE COMMIT."""
    parser.add_argument("pocket", metavar="POCKET")
    parser.add_argument("package", metavar="PACKAGE")
    parser.add_argument(
        "commit", metavar="COMMIT", help="a commit id (short is fine), a tag or a branch"
    )


def checked(args: argparse.Namespace) -> tuple[str, str, str]:
    """The three words of a submission. Raises Refused with what is wrong with each."""
    reasons: list[Reason] = []
    for check, word in (
        (model.pocket_name, args.pocket),
        (model.package_name, args.package),
        (model.committish, args.commit),
    ):
        try:
            check(word)
        except Malformed as fault:
            reasons += fault.reasons
    if reasons:
        raise Refused(reasons)
    return args.pocket, args.package, args.commit
