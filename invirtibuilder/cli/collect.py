"""gc: remove what is no longer kept."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from invirtibuilder import hosting, retention
from invirtibuilder.cli.arguments import add_gc
from invirtibuilder.cli.command import Command, own_site, show, told
from invirtibuilder.daemon import make_context


class Collect(Command):
    name = "gc"
    description = "remove what the pockets' retention no longer keeps, and say what and why"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_gc(parser)

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args)
        hosting.ensure_site(site)
        found = []
        for waste in retention.collect(make_context(site), dry_run=args.dry_run):
            found.append(waste)
            told(args, waste.text)
        size = sum(waste.size for waste in found)
        verb = "would go" if args.dry_run else "gone"
        value = {"dry_run": args.dry_run, "size": size, "gone": [asdict(w) for w in found]}
        show(args, value, f"{len(found)} {verb}, {size} bytes")
        return 0
