"""What a subcommand is, and what all of them share: also `remote`, which may be here alone."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, ClassVar

PAUSE = 2.0
"""Seconds after which somebody wants to know what goes on."""


class Command:
    """A subcommand: its words, its arguments and what it does."""

    name: ClassVar[str]
    description: ClassVar[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare arguments and options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns an exit code. Raises Fault."""
        raise NotImplementedError


def say(text: str) -> None:
    """A line for a person, beside the data on standard output."""
    print(text, file=sys.stderr, flush=True)


def show(args: argparse.Namespace, value: Any, text: str) -> None:
    """Print data: JSON with --json, else the text."""
    print(json.dumps(value, indent=1, sort_keys=True) if args.json else text, flush=True)


def told(args: argparse.Namespace, text: str) -> None:
    """Print a line of what takes long as soon as it is known; with --json it comes at the end."""
    if not args.json:
        print(text, flush=True)


class Progress:
    """Called again and again, tells a person at a terminal each two seconds how far it is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._last = time.monotonic()

    def __call__(self) -> None:
        self._count += 1
        if sys.stderr.isatty() and time.monotonic() - self._last > PAUSE:
            say(f"{self._what}: {self._count} so far")
            self._last = time.monotonic()


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of text, as wide as needed."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
