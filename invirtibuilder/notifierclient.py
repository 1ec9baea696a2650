"""The notifier's client: the administrator's programs are run by another account's process.

Each call is one connection with one message there and one back; the notifier runs what its own
configuration names, and nothing that it is told besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invirtibuilder import sockets
from invirtibuilder.errors import Denied, MachineFault, Malformed, Unavailable
from invirtibuilder.hookcall import Hook

PATIENCE = 30.0
"""Seconds for the notifier's own part, besides the time that the program has."""


def deliver(path: Path, hook: Hook, event: bytes) -> tuple[int, str]:
    """Have a hook told of an event; its exit code and the end of its output.

    Raises TimeoutError when it has not ended after its time-out, Unavailable when there is no
    notifier (nobody was told, or nobody knows), and another Fault when it was not started.
    """
    told, _ = _ask(path, {"hook": hook.name}, event, seconds=hook.timeout + PATIENCE)
    if isinstance(told.get("late"), str):
        raise TimeoutError(told["late"])
    if not isinstance(told.get("code"), int):
        raise _nonsense(path)
    return told["code"], str(told.get("said", ""))


def principals(path: Path, program: Path, pocket: str, action: str, *, limit: int) -> bytes:
    """What a program of an ACL prints, of at most `limit` bytes. Raises a Fault."""
    question = {"acl": str(program), "pocket": pocket, "action": action}
    told, content = _ask(path, question, b"", seconds=2 * PATIENCE, limit=limit)
    if told.get("code") != 0:
        raise _nonsense(path)
    return content


def _ask(
    path: Path, question: Mapping[str, Any], content: bytes, *, seconds: float, limit: int = 0
) -> tuple[dict[str, Any], bytes]:
    try:
        told, answer = sockets.ask(path, question, content, limit=limit, seconds=seconds)
    except PermissionError as error:
        raise Denied(
            f"only the site's own account and root may ask the notifier at {path}",
            hint="run it as one of them: what an ACL's program says, the notifier finds out",
            code="not-the-site",
        ) from error
    except (OSError, Malformed) as error:
        raise Unavailable(
            f"the notifier at {path} does not answer: {error}",
            hint="start `invirtibuilder notifier --listen` as the notifier's account",
            code="no-notifier",
        ) from error
    if isinstance(told.get("busy"), str):
        raise Unavailable(f"the notifier at {path} is busy: {told['busy']}", code="no-notifier")
    if isinstance(told.get("failed"), str):
        raise MachineFault(told["failed"], code="not-run")
    return told, answer


def _nonsense(path: Path) -> MachineFault:
    return MachineFault(f"the notifier at {path} does not make sense", code="no-notifier")
