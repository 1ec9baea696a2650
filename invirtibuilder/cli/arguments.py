"""Arguments that a command takes here and through `remote`."""

from __future__ import annotations

import argparse


def add_promotion(parser: argparse.ArgumentParser) -> None:
    """FROM TO PACKAGE..."""
    parser.add_argument("origin", metavar="FROM")
    parser.add_argument("target", metavar="TO")
    parser.add_argument("packages", metavar="PACKAGE", nargs="+")
    parser.add_argument(
        "--despite-dependencies",
        action="store_true",
        help="also when a dependency would no longer be met; it is recorded",
    )


def promotion_words(args: argparse.Namespace) -> list[str]:
    """What `add_promotion` took, as a request has it."""
    despite = ["--despite-dependencies"] if args.despite_dependencies else []
    return [args.origin, args.target, *args.packages, *despite]


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


def add_fsck(parser: argparse.ArgumentParser) -> None:
    """[POCKET...] and how."""
    parser.add_argument("pocket", metavar="POCKET", nargs="*", help="default: all")
    parser.add_argument(
        "--level",
        metavar="LEVEL",
        choices=("b", "c"),
        default="b",
        help="b, or c: sources are also made anew by the workers, and compared",
    )
    parser.add_argument(
        "--full", action="store_true", help="read every file, known and unchanged or not"
    )
    parser.add_argument("--repair", action="store_true", help="what is safe, and say it")


def fsck_options(args: argparse.Namespace) -> list[str]:
    """What `add_fsck` took, as a request has it."""
    found = {"--level=c": args.level == "c", "--full": args.full, "--repair": args.repair}
    return [option for option, given in found.items() if given]


def add_gc(parser: argparse.ArgumentParser) -> None:
    """[--dry-run]."""
    parser.add_argument("--dry-run", action="store_true", help="only say it")
