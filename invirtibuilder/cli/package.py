"""package list|create."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from invirtibuilder import acltable, files, hosting, model
from invirtibuilder.cli.command import Command, own_site, show, table
from invirtibuilder.settings import Site


class Package(Command):
    name = "package"
    description = "list packages, or make the git repository of one"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        verbs.add_parser("list", help="a line a package: name, path, url")
        created = verbs.add_parser("create", help="make a bare repository with the site's rules")
        created.add_argument("package", metavar="NAME")
        created.add_argument(
            "--from",
            dest="source",
            metavar="REPOSITORY",
            type=Path,
            help="take over all branches and tags of a local repository",
        )

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args, writes=args.verb == "create")
        if args.verb == "create":
            name = model.package_name(args.package)
            hosting.create_package(site, name, args.source)
            _tell_the_doors(site)
            names = [name]
        else:
            names = hosting.package_names(site)
        values = [
            {
                "name": name,
                "path": str(site.package_repository(name)),
                "url": f"{site.git_url}/packages/{name}.git",
            }
            for name in names
        ]
        rows = [(v["name"], v["path"], v["url"]) for v in values]
        show(args, values if args.verb == "list" else values[0], table(rows) or "no packages yet")
        return 0


def _tell_the_doors(site: Site) -> None:
    """Unless the daemon is about to do it; files of another account would be in its way."""
    if os.geteuid() == acltable.owner(site):
        with suppress(files.Busy):
            acltable.write(site, model.utcnow(), ask=False, wait=False)
