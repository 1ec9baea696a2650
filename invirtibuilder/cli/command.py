"""What the subcommands of a site share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from invirtibuilder import config, files
from invirtibuilder.accounts import become_owner
from invirtibuilder.cli.subcommand import Command, Progress, say, show, table, told
from invirtibuilder.errors import MachineFault, NotFound
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.spool import local_principal

__all__ = [
    "Command",
    "Progress",
    "config_file",
    "load_site",
    "me",
    "own_site",
    "say",
    "show",
    "table",
    "the_pocket",
    "told",
]

DEFAULT_CONFIG = Path("/etc/invirtibuilder/invirtibuilder.yaml")


def load_site(args: argparse.Namespace) -> Site:
    """The configuration: --config, else $INVIRTIBUILDER_CONFIG, else the one in /etc.

    For commands that only look, or that ask as whoever runs them.
    """
    return config.load(config_file(args))


def own_site(args: argparse.Namespace, *, writes: bool = True) -> Site:
    """The same, as the site's own account: root becomes it, and others may not write.

    With `writes` false it is for what reads by git or runs a site's programs, which root should
    not do, and others may.
    """
    site = load_site(args)
    become_owner(site.directory, who_writes=writes)
    return site


@contextmanager
def in_place_of_the_daemon(site: Site) -> Iterator[None]:
    """Keep every daemon of the site away for as long as this lasts. Raises MachineFault."""
    site.socket.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.locked(site.socket.parent / "daemon.lock", wait=False):
            yield
    except files.Busy as error:
        raise MachineFault(
            "a daemon runs on this site", hint="stop it first", code="daemon-runs"
        ) from error


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
