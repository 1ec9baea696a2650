"""metrics: a site's health for Prometheus."""

from __future__ import annotations

import argparse
from pathlib import Path

from invirtibuilder import files, metrics
from invirtibuilder.cli.command import Command, show
from invirtibuilder.cli.sitehealth import looked


class Metrics(Command):
    name = "metrics"
    description = "print a site's health and counts for Prometheus's node exporter"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--output",
            metavar="FILE",
            type=Path,
            help="replace this file, which ends in .prom, at once and whole",
        )

    def run(self, args: argparse.Namespace) -> int:
        health = looked(args)
        text = metrics.text(health)
        if args.output:
            files.write_atomic(args.output, text)
        else:
            show(args, health.as_json(), text.rstrip("\n"))
        return 0
