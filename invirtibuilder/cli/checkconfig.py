"""check-config: is the configuration right?"""

from __future__ import annotations

import argparse

from invirtibuilder.cli.command import Command, config_file, own_site, say, show


class CheckConfig(Command):
    name = "check-config"
    description = "check the configuration; all findings at once, with file and line"

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args, writes=False)
        text = f"{config_file(args)}: {len(site.pockets)} pockets: {', '.join(site.pockets)}"
        for warning in site.warnings:
            say(f"warning: {warning}")
        value = {"ok": True, "pockets": list(site.pockets), "warnings": site.warnings}
        show(args, value, text)
        return 0
