"""The entry point: one table of subcommands, one place where failures are shown."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from invirtibuilder import __version__
from invirtibuilder.accounts import denied
from invirtibuilder.cli.subcommand import Command
from invirtibuilder.errors import Exit, Fault, MachineFault, Refused

COMMANDS = {
    "init": "init.Init",
    "check-config": "checkconfig.CheckConfig",
    "self-check": "selfcheck.SelfCheck",
    "daemon": "daemon.RunDaemon",
    "worker": "worker.Worker",
    "notifier": "notifier.RunNotifier",
    "signer": "signer.RunSigner",
    "check": "check.Check",
    "submit": "submit.Submit",
    "promote": "move.Promote",
    "rollback": "move.Rollback",
    "status": "status.Status",
    "metrics": "metrics.Metrics",
    "log": "log.Log",
    "queue": "queue_.Queue",
    "cancel": "cancel.Cancel",
    "retry": "cancel.Retry",
    "pause": "pause.Pause",
    "resume": "pause.Resume",
    "pocket": "pocket.PocketCommand",
    "package": "package.Package",
    "sources": "sources.Sources",
    "acl": "acl.Acl",
    "base": "base.Base",
    "key": "key.KeyCommand",
    "diff": "diff.Diff",
    "gc": "collect.Collect",
    "fsck": "fsck.Fsck",
    "backup": "backup.Backup",
    "restore": "backup.Restore",
    "rebuild-state": "rebuild.RebuildState",
    "remote": "remote.Remote",
}
"""Each subcommand's class. Only the one that is called is imported: `remote` on a laptop shall not
wait for what the daemon needs, nor need it."""


def installed(name: str) -> bool:
    """Whether a subcommand is here: the client's package has `remote` only."""
    module = COMMANDS[name].partition(".")[0]
    return importlib.util.find_spec(f"invirtibuilder.cli.{module}") is not None


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code for usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")


def command(name: str) -> type[Command]:
    """The class of a subcommand. Raises MachineFault where only the client is installed."""
    module, _, kind = COMMANDS[name].partition(".")
    if not installed(name):
        raise MachineFault(
            f"`{name}` is not installed here",
            hint="apt-get install invirtibuilder; invirtibuilder-client has `remote` only",
            code="not-installed",
        )
    found: type[Command] = getattr(importlib.import_module(f"invirtibuilder.cli.{module}"), kind)
    return found


def make_parser(*names: str) -> argparse.ArgumentParser:
    """The whole command line, or that of these subcommands."""
    parser = _Parser(
        prog="invirtibuilder",
        description="From a commit in git to a trusted Debian package.",
        epilog="Each subcommand has --help; invirtibuilder(1) has the exit codes.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _common(parser, top=True)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in names or filter(installed, COMMANDS):
        made = command(name)()
        sub = subparsers.add_parser(name, help=made.description, description=made.description)
        made.add_arguments(sub)
        for each in (sub, *_verbs(sub)):
            _common(each, top=False)
        sub.set_defaults(run=made.run)
    return parser


def _called(argv: Sequence[str] | None) -> tuple[str, ...]:
    """The subcommand that is called; none if that is not one, or has to be looked for in all."""
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    _common(first, top=True)
    first.add_argument("words", nargs=argparse.REMAINDER)
    try:
        found, others = first.parse_known_args(argv)
    except argparse.ArgumentError:
        return ()
    names = tuple(name for name in found.words[:1] if name in COMMANDS)
    return () if others else names


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
    args = argparse.Namespace(json=False)
    try:
        args = make_parser(*_called(argv)).parse_args(argv)
        return int(args.run(args))
    except Fault as fault:
        show_fault(fault, as_json=args.json)
        return fault.exit
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone; nothing more can be said there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return Exit.OK
        if isinstance(error, PermissionError) and error.filename:
            show_fault(denied(Path(os.fsdecode(error.filename))), as_json=args.json)
            return Exit.DENIED
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
