"""check-config: is the configuration right?"""

from __future__ import annotations

import argparse

from invirtibuilder.cli.command import Command, config_file, load_site, show


class CheckConfig(Command):
    name = "check-config"
    description = "check the configuration; all findings at once, with file and line"

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        text = f"{config_file(args)}: {len(site.pockets)} pockets: {', '.join(site.pockets)}"
        show(args, {"ok": True, "pockets": list(site.pockets)}, text)
        return 0
