"""The notifier: runs hooks and the programs of ACLs in the daemon's stead, as another account.

It reads the same configuration as the daemon, again whenever that has changed, and runs only what
is named there: a message names a hook or an ACL's program, and brings an event, never a command.
What comes of it is the daemon's to write down: here is no state.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from invirtibuilder import acl, config, hookcall, model, sockets
from invirtibuilder.errors import Denied, Fault, Malformed, NotFound, Unavailable
from invirtibuilder.hookcall import Hook
from invirtibuilder.journal import WARNING, Log
from invirtibuilder.settings import Site

SECONDS = 10.0
"""For a whole message to arrive."""
ROOM = 5.0
"""Seconds to wait for room among what runs."""
HOOKS_AT_ONCE = 32
ACLS_AT_ONCE = 16
"""Room of their own: a hook that hangs holds no ACL up."""
AT_ONCE = 4 * (HOOKS_AT_ONCE + ACLS_AT_ONCE)
LEAVE = 5.0
"""Seconds that a hook may go on when the notifier ends."""


def hooks_of(site: Site) -> list[Hook]:
    """The hooks of a site's configuration."""
    return [
        Hook(
            name=each.name,
            program=each.program,
            events=frozenset(each.events),
            required=each.required,
            environment=each.environment,
            timeout=each.timeout,
        )
        for each in site.hooks
    ]


class Notifier:
    """Serves a socket until told to stop; raises ConfigFault when it cannot begin."""

    def __init__(self, file: Path, log: Log) -> None:
        self._log = log
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._site = config.Current(file, log)
        self._hooks = threading.BoundedSemaphore(HOOKS_AT_ONCE)
        self._acls = threading.BoundedSemaphore(ACLS_AT_ONCE)
        self._telling: set[socket.socket] = set()
        self._told = threading.Condition(self._lock)

    def run(self, path: Path) -> None:
        """Listen at `path` until SIGTERM or SIGINT; hooks that run then get LEAVE."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        if os.geteuid() == 0:
            text = "running as root: so do the hooks and the programs of ACLs"
            self._log(text, priority=WARNING)
        with sockets.listening(path) as server:
            self._log(f"ready: {path}")
            sockets.serve(server, self._converse, self._stop, at_once=AT_ONCE)
        with self._lock:
            self._told.wait_for(lambda: not self._telling, LEAVE)
            for connection in self._telling:
                # As if the daemon had gone: the hook is ended. It is told again.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._told.wait_for(lambda: not self._telling, 2 * LEAVE)

    def _converse(self, connection: socket.socket) -> None:
        try:
            told, content = self._answer(connection)
            connection.settimeout(SECONDS)
            sockets.send(connection, told, content)
        finally:
            with self._lock:
                self._telling.discard(connection)
                self._told.notify_all()

    def _answer(self, connection: socket.socket) -> tuple[dict[str, Any], bytes]:
        about: dict[str, str] = {}
        try:
            site = self._site()
            uid = sockets.peer_uid(connection)
            if uid not in (0, site.directory.stat().st_uid):
                raise Denied(f"uid {uid} is neither the site's own account nor root")
            question, content = sockets.receive(
                connection, limit=hookcall.MAX_EVENT, seconds=SECONDS
            )
            about["pocket"] = model.printable(str(question.get("pocket", "")))
            if "hook" in question:
                return self._tell(site, str(question["hook"]), content, connection), b""
            return {"code": 0}, self._ask(site, question)
        except Unavailable as error:
            return {"busy": str(error)}, b""
        except (Fault, OSError) as error:
            why = model.printable(str(error))[: hookcall.MAX_OUTPUT]
            code = error.code if isinstance(error, Fault) else ""
            self._log(why, {**about, "code": code}, priority=WARNING)
            return {"failed": why}, b""

    def _tell(
        self, site: Site, name: str, event: bytes, connection: socket.socket
    ) -> dict[str, Any]:
        hook = next((each for each in hooks_of(site) if each.name == name), None)
        if hook is None:
            raise NotFound(f"the notifier's configuration has no hook {model.printable(name)!r}")
        if hookcall.payload(event).get("event") not in hook.events:
            raise Malformed(f"hook {name} is not told of such an event")
        with self._lock:
            self._telling.add(connection)
        with _room(self._hooks, "hooks"):
            try:
                code, said = hookcall.call(hook, event, asker=connection)
            except TimeoutError as error:
                return {"late": str(error)}
        return {"code": code, "said": said}

    def _ask(self, site: Site, question: dict[str, Any]) -> bytes:
        program, pocket, action = (str(question.get(k)) for k in ("acl", "pocket", "action"))
        rules = site.pockets.get(pocket)
        for entry in rules.acl.get(action, ()) if rules else ():
            if entry.command and str(entry.command) == program:
                with _room(self._acls, "programs of ACLs"):
                    return acl.output(entry.command, pocket, action)
        what = model.printable(f"{program} {pocket} {action}")
        raise NotFound(f"the notifier's configuration has no such program of an ACL: {what[:300]}")


@contextmanager
def _room(room: threading.BoundedSemaphore, what: str) -> Iterator[None]:
    if not room.acquire(timeout=ROOM):
        raise Unavailable(f"too many {what} run at once")
    try:
        yield
    finally:
        room.release()
