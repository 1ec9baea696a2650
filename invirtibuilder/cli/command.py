"""What a subcommand is, and what they share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from invirtibuilder import config
from invirtibuilder.errors import NotFound
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.spool import local_principal

DEFAULT_CONFIG = Path("/etc/invirtibuilder/invirtibuilder.yaml")


class Command:
    """A subcommand: its words, its arguments and what it does."""

    name: ClassVar[str]
    description: ClassVar[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare arguments and options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns an exit code. Raises Fault."""
        raise NotImplementedError


def load_site(args: argparse.Namespace) -> Site:
    """The configuration: --config, else $INVIRTIBUILDER_CONFIG, else the one in /etc."""
    return config.load(config_file(args))


def config_file(args: argparse.Namespace) -> Path:
    """Which file is the configuration."""
    named = args.config or os.environ.get("INVIRTIBUILDER_CONFIG")
    return Path(named) if named else DEFAULT_CONFIG


def the_pocket(site: Site, name: str) -> Pocket:
    """The pocket of that name. Raises NotFound."""
    pocket = site.pockets.get(name)
    if pocket is None:
        raise NotFound(
            f"no such pocket: {name}", hint=f"one of {', '.join(site.pockets)}", code="no-pocket"
        )
    return pocket


def me() -> str:
    """Who runs this command, as a principal."""
    return local_principal(os.getuid())


def say(text: str) -> None:
    """A line for a person, beside the data on standard output."""
    print(text, file=sys.stderr, flush=True)


def show(args: argparse.Namespace, value: Any, text: str) -> None:
    """Print data: JSON with --json, else the text."""
    print(json.dumps(value, indent=1, sort_keys=True) if args.json else text, flush=True)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of text, as wide as needed."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
