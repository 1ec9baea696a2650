"""rebuild-state: make a site's state anew from git, the pool and kept artifacts."""

from __future__ import annotations

import argparse

from invirtibuilder import rebuild
from invirtibuilder.cli.command import (
    Command,
    Progress,
    in_place_of_the_daemon,
    own_site,
    show,
    told,
)
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import Exit, Fault
from invirtibuilder.fsck import check


class RebuildState(Command):
    name = "rebuild-state"
    description = "make job history, reprepro's databases and publications anew from git"

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args)
        with in_place_of_the_daemon(site):
            context = make_context(site)
            done: list[str] = []
            try:
                for line in rebuild.rebuild(context):
                    done.append(line)
                    told(args, line)
            except Fault:
                if args.json:
                    show(args, {"made": done, "drift": []}, "")
                raise
            report = check.check(
                context,
                list(site.pockets.values()),
                level="b",
                full=True,
                mend=True,
                go_on=Progress("files checked"),
            )
        mended = [f.message for f in report.findings if f.repaired]
        drift = [f"drift: {f.message} [{f.kind}]" for f in report.findings if f.drift]
        value = {
            "made": [*done, *mended],
            "drift": [f.as_json() for f in report.findings if f.drift],
        }
        lines = [*mended, *drift, *([] if done or mended or drift else ["nothing was missing"])]
        if args.json or lines:
            show(args, value, "\n".join(lines))
        return Exit.DRIFT if report.drift else Exit.OK
