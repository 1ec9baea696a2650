"""signer: sign Releases of configured pockets for the daemon."""

from __future__ import annotations

import argparse
from pathlib import Path

from invirtibuilder.accounts import become_owner
from invirtibuilder.cli.command import Command, config_file, load_site
from invirtibuilder.cli.daemon import log
from invirtibuilder.signerservice import SignerService


class RunSigner(Command):
    name = "signer"
    description = "sign what is published for the daemon, as the account that has the keys"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--listen",
            metavar="SOCKET",
            type=Path,
            required=True,
            help="where the daemon asks: `site: signer` of the configuration",
        )

    def run(self, args: argparse.Namespace) -> int:
        # Root's own files beside the keys would be in the signer's way.
        become_owner(load_site(args).signing.home)
        SignerService(config_file(args), log).run(args.listen)
        return 0
