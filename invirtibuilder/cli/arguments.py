"""Arguments that a command takes here and through `remote`."""

from __future__ import annotations

import argparse


def add_promotion(parser: argparse.ArgumentParser) -> None:
    """FROM TO PACKAGE..."""
    parser.add_argument("origin", metavar="FROM")
    parser.add_argument("target", metavar="TO")
    parser.add_argument("packages", metavar="PACKAGE", nargs="+")


def add_rollback(parser: argparse.ArgumentParser) -> None:
    """POCKET WHEN [--package PACKAGE]..."""
    parser.add_argument("pocket", metavar="POCKET")
    parser.add_argument(
        "when", metavar="WHEN", help="a commit of the superproject, or a date (UTC)"
    )
    parser.add_argument(
        "--package",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="only this one; may be given several times",
    )
