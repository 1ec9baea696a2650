"""remote: the site's commands from another machine, through its remctld."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from invirtibuilder import model
from invirtibuilder.cli.arguments import (
    add_fsck,
    add_gc,
    add_promotion,
    add_rollback,
    fsck_options,
    promotion_words,
)
from invirtibuilder.cli.subcommand import Command, say
from invirtibuilder.errors import Exit, MachineFault, Malformed, Reason, Refused, Unavailable
from invirtibuilder.run import Done, run
from invirtibuilder.states import FINAL, State, verdict

if TYPE_CHECKING:
    from invirtibuilder.remctl import Connection

COMMAND = b"build"
"""The command in remctld's configuration; our verbs are its subcommands."""
VERBS = {
    "submit": ("POCKET PACKAGE COMMIT", "queue a commit for a pocket; prints the job's id"),
    "promote": ("FROM TO PACKAGE...", "bring packages from one pocket to another"),
    "rollback": ("POCKET COMMIT|DATE [PACKAGE...]", "put a pocket back to what it was"),
    "check": ("POCKET PACKAGE COMMIT", "say whether it would be admitted, with all reasons if not"),
    "status": ("[JOB]", "show one job, or the latest ones"),
    "log": ("JOB", "print a job's log"),
    "queue": ("", "show what is not finished, in order"),
    "cancel": ("JOB", "stop a job"),
    "retry": ("JOB", "submit once more what a job was asked for; prints the new job's id"),
    "pause": (
        "[POCKET] [REASON]",
        "let no job of a pocket, or none at all, start anything new; what runs ends",
    ),
    "resume": ("[POCKET]", "end a pause of a pocket, or that of the whole queue"),
    "pockets": ("", "list your pockets"),
    "packages": ("", "list the packages"),
    "acl": ("[POCKET]", "say what you may do, or who may do what in a pocket"),
    "sources": ("POCKET", "print the APT sources stanza of a pocket"),
    "diff": ("A B", "show what differs between two pockets, or a pocket then and now"),
    "fsck": ("[POCKET...]", "prove that git, the archive and the records say the same"),
    "gc": ("", "remove what is no longer kept; its log says what and why"),
    "rebuild-state": ("", "make job history, databases and publications anew"),
    "help": ("[VERB]", "the server's own help"),
}
"""What the server takes after each verb, and what the verb is for."""
WHOLE = "*"
"""In place of a pocket: the whole queue."""
PAUSES = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds before each new try to follow a job after the connection was lost."""
LOST = ("connection-lost", "no-connection", "time-out")
"""What may be over soon: other failures of a connection are there to stay."""
NOT_YET = "not taken up yet"
"""In place of a state, of a submission that waits in the queue."""
PATIENCE = 10.0
"""Seconds in which the daemon takes a request up, as a rule."""

POLL = 0.2
"""Seconds before the first new look at a job; each look starts a program at the server."""
LONGEST_POLL = 30.0
NOOP = 5.0
"""Seconds of waiting after which a word that starts nothing shows whether the server is there."""

Take = Callable[[int, bytes], None]


class Remote(Command):
    name = "remote"
    description = "run a command of a site on another machine, with a Kerberos ticket"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_server(parser)
        parser.add_argument("host", metavar="HOST")
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        for verb, (arguments, description) in VERBS.items():
            each = verbs.add_parser(verb, help=description, description=description)
            _add_verb(verb, arguments, each)
            _add_server(each, hidden=True)

    def run(self, args: argparse.Namespace) -> int:
        words = [] if args.argument is None else [args.argument]
        if args.verb == "diff":
            words = [args.a, args.b]
        if args.verb in ("submit", "check"):
            words = [args.pocket, args.package, resolved(args.commit, check=not args.no_check)]
        elif args.verb == "promote":
            words = promotion_words(args)
        elif args.verb == "rollback":
            words = [args.pocket, args.when, *args.package]
        elif args.verb == "pause" and args.reason:
            words = [*(words or [WHOLE]), args.reason]
        elif args.verb == "fsck":
            words = [*args.pocket, *fsck_options(args)]
        elif args.verb == "gc" and args.dry_run:
            words = ["--dry-run"]
        if args.follow:
            words.append("follow")
        if args.which:
            words.append(args.which)
        if args.at:
            words += ["at", args.at]

        def connect() -> Connection:
            return connection_class()(args.host, args.port, args.service)

        if args.wait:
            return _submitted(connect, args.verb, words)
        # A log that is followed is silent as long as the build is.
        silence = None if args.follow else 120.0
        with connect() as connection:
            return connection.command(_line(args.verb, *words), _pass_on, silence=silence)


def _add_server(parser: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Options that are taken before HOST and after the verb; shown once."""
    texts = {
        "--port": "of remctld (4373)",
        "--service": "the server's principal is SERVICE/HOST (host); with a slash, it is SERVICE",
    }
    for option, default, kind in (("--port", 4373, int), ("--service", "host", str)):
        parser.add_argument(
            option,
            metavar=option.strip("-").upper(),
            type=kind,
            default=argparse.SUPPRESS if hidden else default,
            help=argparse.SUPPRESS if hidden else texts[option],
        )


def _add_verb(verb: str, arguments: str, parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(argument=None, wait=False, follow=False, which="", at="")
    if verb in ("submit", "check"):
        parser.add_argument("pocket", metavar="POCKET")
        parser.add_argument("package", metavar="PACKAGE")
        parser.add_argument(
            "commit", metavar="COMMIT", help="as the git repository here names it, such as HEAD"
        )
        parser.add_argument(
            "--no-check",
            action="store_true",
            help="whether or not it was pushed; what is not known here is sent as it is",
        )
    elif verb == "promote":
        add_promotion(parser)
    elif verb == "rollback":
        add_rollback(parser)
    elif verb == "diff":
        for name in ("a", "b"):
            parser.add_argument(
                name, metavar=name.upper(), help="POCKET[@COMMIT|DATE], COMMIT, DATE"
            )
    elif verb == "pause":
        parser.add_argument(
            "argument", metavar="POCKET", nargs="?", help="default: the whole queue"
        )
        parser.add_argument("--reason", metavar="TEXT", help="what submitters are told")
    elif verb == "fsck":
        add_fsck(parser)
    elif verb == "gc":
        add_gc(parser)
    elif arguments:
        nargs = "?" if arguments.startswith("[") else None
        parser.add_argument("argument", metavar=arguments.strip("[]"), nargs=nargs)
    if verb in ("submit", "retry", "promote", "rollback", "fsck", "gc", "rebuild-state"):
        parser.add_argument(
            "--wait", action="store_true", help="follow the job and end with its verdict"
        )
    if verb == "sources":
        which = parser.add_mutually_exclusive_group()
        for name, text in (("preferences", "above the mirror"), ("downgrade", "go back, too")):
            which.add_argument(
                f"--{name}", dest="which", action="store_const", const=name, help=text, default=""
            )
        which.add_argument("--at", metavar="WHEN", help="as it was then", default="")
    if verb == "log":
        parser.add_argument("--follow", "-f", action="store_true", help="until the job has ended")


def connection_class() -> type[Connection]:
    """remctl.Connection, imported now: only this subcommand needs python3-gssapi and waits for it.

    Raises MachineFault where it is not installed.
    """
    try:
        module = importlib.import_module("invirtibuilder.remctl")
    except ModuleNotFoundError as error:
        raise MachineFault(
            f"no Python module {error.name}",
            hint="apt-get install python3-gssapi, or pip install 'invirtibuilder[kerberos]'",
            code="no-gssapi",
        ) from error
    found: type[Connection] = module.Connection
    return found


def resolved(commit: str, *, check: bool) -> str:
    """The full id of a commit in the git repository here, which a remote branch contains.

    Without `check`, pushed or not; and what is not known here as it is. Raises Refused.
    """
    found = _git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")
    if found.code != 0 or not model.COMMIT.fullmatch(found.text):
        if not check:
            return commit
        why = model.printable(found.err.decode("utf-8", "replace").strip())
        raise Refused(
            [
                Reason(
                    code="unknown-commit",
                    message=f"git knows no commit {model.printable(commit)} here: {why}",
                    hint="run this in the package's repository; or --no-check, if only the site"
                    " has it",
                )
            ]
        )
    contained = _git("for-each-ref", "--count=1", f"--contains={found.text}", "refs/remotes")
    if check and not contained.text:
        raise Refused(
            [
                Reason(
                    code="not-pushed",
                    message=f"{model.printable(commit)} ({found.text[:12]}) was not pushed: no"
                    " remote-tracking branch contains it",
                    hint="git push; git fetch, if somebody else pushed it; --no-check, to submit it"
                    " all the same",
                )
            ]
        )
    return found.text


def _git(*args: str) -> Done:
    # The home is for safe.directory, of a repository that is somebody else's.
    home = os.environ.get("HOME", "/nonexistent")
    return run(["git", *args], cwd=Path.cwd(), env={"HOME": home}, check=False, timeout=60)


def _line(verb: str, *words: str) -> list[bytes]:
    return [COMMAND, verb.encode(), *(os.fsencode(word) for word in words)]


def _write(file: TextIO, data: bytes) -> None:
    file.buffer.write(data)
    file.buffer.flush()


def _pass_on(stream: int, data: bytes) -> None:
    _write(sys.stdout if stream == 1 else sys.stderr, data)


def _progress(_stream: int, data: bytes) -> None:
    """Standard output is for the job's id."""
    _write(sys.stderr, data)


class _Copy:
    """Passes output on and keeps the beginning of it."""

    LIMIT = 64 << 10

    def __init__(self, take: Take) -> None:
        self._take = take
        self.out = b""
        self.err = b""

    def __call__(self, stream: int, data: bytes) -> None:
        self._take(stream, data)
        if stream == 1:
            self.out = (self.out + data)[: self.LIMIT]
        else:
            self.err = (self.err + data)[: self.LIMIT]

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")


def _nowhere(_stream: int, _data: bytes) -> None:
    pass


def _submitted(connect: Callable[[], Connection], verb: str, words: list[str]) -> int:
    """Submit, follow the job, and return its verdict."""
    printed = _Copy(_pass_on)
    with connect() as connection:
        code = connection.command(_line(verb, *words), printed)
        if code != 0:
            return code
    last = printed.text.strip().rpartition("\n")[2]
    job = model.job_id(last.rpartition(" ")[2])
    for pause in (*PAUSES, None):
        try:
            with connect() as connection:
                return _followed(connection, job)
        except Unavailable as fault:
            if pause is None or fault.code not in LOST:
                raise
            say(f"{fault}; trying again, the job goes on")
            time.sleep(pause)
    raise AssertionError


def _followed(connection: Connection, job: str) -> int:
    """The log as it grows, then the job's status and its verdict as exit code."""
    started = time.monotonic()
    said = False
    pause = POLL
    while True:
        told = _Copy(_nowhere)
        code = connection.command(_line("status", job), told)
        state = _state(told.text) if code == Exit.OK else None
        if state in FINAL:
            _write(sys.stderr, told.out)
            return verdict(state, re.findall(r"\[([a-z-]+)\]$", told.text, re.MULTILINE))
        if state:
            connection.command(_line("log", job, "follow"), _progress, silence=None)
            pause = POLL
        elif code not in (Exit.OK, Exit.NO_INPUT):
            _write(sys.stderr, told.err)
            return code
        elif not said and time.monotonic() - started > PATIENCE:
            say("waiting for the daemon to take the request up")
            said = True
        _wait(connection, pause)
        pause = min(2 * pause, LONGEST_POLL)


def _wait(connection: Connection, seconds: float) -> None:
    """Pause, and notice a server that has gone meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, NOOP))
        if left > NOOP:
            connection.noop()


def _state(status: str) -> State | None:
    """The state in what `status JOB` prints; None before the daemon has it. Raises Malformed."""
    found = re.search(r"^state +(.*)$", status, re.MULTILINE)
    if found and found[1] == NOT_YET:
        return None
    word = found[1].split(" ")[0] if found else ""
    if word not in list(State):
        raise Malformed("the server's `status` shows no state of a job", code="bad-status")
    return State(word)
