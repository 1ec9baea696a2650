"""A hook, and how it is run on an event; hooks.d/README.rst is the contract."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invirtibuilder import model, run
from invirtibuilder.errors import Malformed

EVENTS = ("submitted", "started", "failed", "published")
"""All events; `failed` is also that of a refused and of a cancelled job, see the field `state`."""

TEMPORARY = 75
"""The exit code (EX_TEMPFAIL of sysexits.h) with which a hook says: try again later."""

MAX_OUTPUT = 4096
"""Bytes kept from the end of a hook's output."""

MAX_EVENT = 4 << 20
"""Bytes of an event."""

VARIABLES = (
    *("event", "id", "job", "pocket", "package"),
    *("version", "commit", "principal", "state"),
)
"""Fields of the payload that are in the environment as well."""

_HOOK = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A program to be told of events; `timeout` in seconds. Raises Malformed."""

    name: str
    program: Path
    events: frozenset[str]
    required: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60

    def __post_init__(self) -> None:
        model.matching(_HOOK, self.name, "hook", "a-z, 0-9, - and _")
        if not self.program.is_absolute() or "\0" in str(self.program):
            raise Malformed(f"hook {self.name}: not an absolute path: {str(self.program)!r}")
        if unknown := sorted(self.events - set(EVENTS)):
            raise Malformed(
                f"hook {self.name}: no such event: {model.printable(', '.join(unknown))}",
                hint=f"events are {', '.join(EVENTS)}",
            )
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or "\0" in value:
                raise Malformed(f"hook {self.name}: not an environment variable: {name!r}")


def call(hook: Hook, event: bytes, *, asker: socket.socket | None = None) -> tuple[int, str]:
    """Run the hook on an event; its exit code and the end of its output.

    Raises TimeoutError when it has not ended after its time-out, ProcessFault when it cannot be
    started, Malformed when the event cannot be read, and ConnectionError when the `asker` who
    waits for this has gone; the hook has ended then, too.
    """
    told = variables(hook, payload(event))
    with contextlib.ExitStack() as stack:
        # A file, not a pipe: a hook may close its standard input unread.
        stdin = stack.enter_context(os.fdopen(os.memfd_create("event"), "w+b"))
        stdin.write(event)
        stdin.seek(0)
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        try:
            process = stack.enter_context(
                run.started_group(
                    [str(hook.program)], env=told, stdin=stdin, stdout=writer, stderr=writer
                )
            )
        finally:
            os.close(writer)
        output = _listen(process.pid, reader, hook.timeout, asker)
        code = process.wait()
    return code, _text(output)


def payload(event: bytes) -> dict[str, Any]:
    """An event's content. Raises Malformed."""
    try:
        value = json.loads(event)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the event is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Malformed("the event is not JSON: not an object")
    return value


def variables(hook: Hook, told: Mapping[str, Any]) -> dict[str, str]:
    """What a hook gets in its environment besides `run.CLEAN`; a field that is missing is empty.

    Values are one line of printable characters, whatever the payload has.
    """
    set_ = {
        f"INVIRTIBUILDER_{'EVENT_ID' if name == 'id' else name.upper()}": shown(told.get(name))
        for name in VARIABLES
    }
    return {**hook.environment, **set_}


def ended(code: int) -> str:
    """What an exit code says."""
    if code < 0:
        return f"killed by signal {-code}"
    return "try again later" if code == TEMPORARY else f"exit code {code}"


def shown(value: object) -> str:
    """One line of printable characters, of at most 1000; nothing for None."""
    return "" if value is None else model.printable(str(value))[:1000]


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()


def _listen(pid: int, reader: int, timeout: float, asker: socket.socket | None) -> bytes:
    """Read until the process ends, keeping the last MAX_OUTPUT bytes.

    Raises TimeoutError, and ConnectionError when the asker has gone (it has nothing more to say).
    """
    tail = b""
    deadline = time.monotonic() + timeout
    os.set_blocking(reader, False)
    # The end of the process counts, not that of its output: a descendant may keep that open.
    ended = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            if asker:
                selector.register(asker, selectors.EVENT_READ)
            while True:
                ready = {
                    key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))
                }
                with contextlib.suppress(BlockingIOError):
                    chunk = os.read(reader, 64 << 10)
                    tail = (tail + chunk)[-MAX_OUTPUT:]
                    if not chunk and reader in ready:
                        selector.unregister(reader)
                if ended in ready:
                    return tail
                if asker and asker.fileno() in ready:
                    raise ConnectionError("whoever asked for it has gone")
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"no end after {timeout:g} s: {_text(tail)}")
    finally:
        os.close(ended)
