"""The health of a site, for `status --site` and `metrics`."""

from __future__ import annotations

import argparse

from invirtibuilder import model
from invirtibuilder.cli.command import own_site, show
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import Exit
from invirtibuilder.health import Health, lines, look


def looked(args: argparse.Namespace) -> Health:
    """The health of the site, as its own account sees it if we may be that, else as we do."""
    site = own_site(args, writes=False)
    return look(site, lambda: make_context(site).events.undelivered(), model.utcnow())


def status(args: argparse.Namespace) -> int:
    """`status --site`: one screen, and whether all is well as the exit code."""
    health = looked(args)
    show(args, health.as_json(), "\n".join(lines(health)))
    return Exit.UNHEALTHY if health.troubles else Exit.OK
