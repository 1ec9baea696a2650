"""fsck: whether git, the archive and the records say the same."""

from __future__ import annotations

import argparse
from dataclasses import replace

from invirtibuilder.cli.command import Command, own_site, show, the_pocket
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import Exit
from invirtibuilder.fsck import check
from invirtibuilder.fsck.check import Report


class Fsck(Command):
    name = "fsck"
    description = "prove that git, the archive and the records say the same"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pocket", metavar="POCKET", nargs="*", help="default: all")
        parser.add_argument(
            "--level",
            metavar="LEVEL",
            choices=check.LEVELS,
            default="b",
            help="b, or c: sources are also made anew by the workers, and compared",
        )
        parser.add_argument(
            "--full", action="store_true", help="read every file, known and unchanged or not"
        )
        parser.add_argument("--repair", action="store_true", help="what is safe, and say it")

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args)
        names = args.pocket or list(site.pockets)
        pockets = [the_pocket(site, name) for name in dict.fromkeys(names)]
        context = make_context(site)
        before = check.recovered(context, pockets) if args.repair else []
        report = check.check(context, pockets, level=args.level, full=args.full, mend=args.repair)
        report = replace(report, findings=(*before, *report.findings))
        show(args, report.as_json(), _text(report))
        return Exit.DRIFT if report.drift else Exit.OK


def _text(report: Report) -> str:
    lines = []
    for finding in report.findings:
        where = f"{finding.pocket}: " if finding.pocket else ""
        mark = "drift" if finding.drift else "repaired" if finding.repaired else "note"
        done = f" ({finding.repaired})" if finding.repaired else ""
        lines.append(f"{mark}: {where}{finding.message} [{finding.kind}]{done}")
    what = "drift" if report.drift else "clean"
    pockets = ", ".join(report.pockets)
    lines.append(f"{what}: {report.packages} packages in {pockets}; {report.read} files read")
    return "\n".join(lines)
