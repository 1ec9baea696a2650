"""The entry point: one table of subcommands, one place where failures are shown."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from invirtibuilder import __version__
from invirtibuilder.cli.acl import Acl
from invirtibuilder.cli.base import Base
from invirtibuilder.cli.cancel import Cancel, Retry
from invirtibuilder.cli.check import Check
from invirtibuilder.cli.checkconfig import CheckConfig
from invirtibuilder.cli.command import Command
from invirtibuilder.cli.daemon import RunDaemon
from invirtibuilder.cli.init import Init
from invirtibuilder.cli.key import KeyCommand
from invirtibuilder.cli.log import Log
from invirtibuilder.cli.package import Package
from invirtibuilder.cli.pocket import PocketCommand
from invirtibuilder.cli.queue_ import Queue
from invirtibuilder.cli.remote import Remote
from invirtibuilder.cli.sources import Sources
from invirtibuilder.cli.status import Status
from invirtibuilder.cli.submit import Submit
from invirtibuilder.cli.worker import Worker
from invirtibuilder.errors import Exit, Fault, Refused

COMMANDS: tuple[type[Command], ...] = (
    Init,
    CheckConfig,
    RunDaemon,
    Worker,
    Check,
    Submit,
    Status,
    Log,
    Queue,
    Cancel,
    Retry,
    PocketCommand,
    Package,
    Sources,
    Acl,
    Base,
    KeyCommand,
    Remote,
)


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code for usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="invirtibuilder",
        description="From a commit in git to a trusted Debian package.",
        epilog="Each subcommand has --help; invirtibuilder(1) has the exit codes.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _common(parser, top=True)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for kind in COMMANDS:
        command = kind()
        sub = subparsers.add_parser(kind.name, help=kind.description, description=kind.description)
        command.add_arguments(sub)
        for each in (sub, *_verbs(sub)):
            _common(each, top=False)
        sub.set_defaults(run=command.run)
    return parser


def _verbs(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of a subcommand's own verbs, such as `package list`."""
    found: list[argparse.ArgumentParser] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += action.choices.values()
    return found


def _common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    """--config and --json are taken before and after the subcommand and its verb."""
    default = None if top else argparse.SUPPRESS
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=default,
        help="configuration (else $INVIRTIBUILDER_CONFIG, else"
        " /etc/invirtibuilder/invirtibuilder.yaml)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=False if top else argparse.SUPPRESS,
        help="print data as JSON",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit codes are those of `errors.Exit`."""
    args = make_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except Fault as fault:
        show_fault(fault, as_json=args.json)
        return fault.exit
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone; nothing more can be said there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return Exit.OK
        print(f"error: {error}", file=sys.stderr)
        return Exit.MACHINE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        # A defect of ours; Python's own exit code for it would be remctl's.
        traceback.print_exc()
        return Exit.SOFTWARE


def show_fault(fault: Fault, *, as_json: bool) -> None:
    """All reasons with their hints, on standard error; as JSON on standard output too."""
    if as_json:
        reasons = [reason.as_json() for reason in fault.reasons]
        print(json.dumps({"ok": False, "blame": fault.blame, "reasons": reasons}, indent=1))
    what = "refused" if isinstance(fault, Refused) else "error"
    for reason in fault.reasons:
        print(f"{what}: {reason}", file=sys.stderr)
