"""worker: the filter from an order to a result, or a listener for orders."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from invirtibuilder import journal, worker
from invirtibuilder.accounts import become_owner
from invirtibuilder.cli.command import Command
from invirtibuilder.errors import Exit, MachineFault
from invirtibuilder.sandbox import slots


class Worker(Command):
    name = "worker"
    description = "do one order: invirtibuilder worker < order.tar > result.tar 2> log"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--directory",
            metavar="DIR",
            type=Path,
            default=Path.home() / ".cache" / "invirtibuilder",
            help="where bases, layers and scratch space are (default: %(default)s)",
        )
        parser.add_argument(
            "--slots",
            metavar="SLOTS",
            type=slots.parse,
            default=range(0),
            help="FIRST-LAST: which blocks of the account's subordinate ids to use, one for each"
            " order at once (default: all)",
        )
        parser.add_argument(
            "--listen", metavar="SOCKET", type=Path, help="take orders as descriptors over a socket"
        )
        parser.add_argument(
            "--check", action="store_true", help="only say whether this machine can do orders"
        )
        parser.add_argument("--lock-fd", type=int, help=argparse.SUPPRESS)

    def run(self, args: argparse.Namespace) -> int:
        become_owner(args.directory)
        args.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        if args.check:
            for weaker in worker.check(args.directory, args.slots):
                sys.stderr.write(f"{weaker}\n")
            return 0
        if args.listen:
            # Of its own: in the process of an order, standard error is that order's log.
            log = journal.logger(os.dup(2))
            worker.listen(args.listen, args.directory, args.slots, log=log)
            return 0
        if sys.stdout.isatty():
            raise MachineFault("standard output is a terminal", hint="worker < ORDER > RESULT")
        os.umask(0o022)
        done = worker.work(
            args.directory,
            sys.stdin.buffer,
            sys.stdout.buffer,
            slots=args.slots,
            lock_fd=args.lock_fd,
        )
        return Exit.OK if done else Exit.FAILED
