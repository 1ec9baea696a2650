"""The door: ask the daemon what it thinks of a submission, then put it into the queue."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invirtibuilder.errors import Reason, Refused, Unavailable
from invirtibuilder.spool import Request, Spool

DEADLINE = 35.0
MAX_ANSWER = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A request in the queue, and the daemon's answer when it gave one."""

    request: Request
    answer: dict[str, Any] | None


def submit(queue: Path, daemon: Path, request: Request) -> Accepted:
    """Queue a submission unless the daemon refuses it. Raises Refused with all reasons.

    With the daemon down it is accepted all the same, unchecked.
    """
    try:
        answer = check(daemon, request.args, request.principal)
    except Unavailable:
        answer = None
    Spool(queue).put(request)
    return Accepted(request=request, answer=answer)


def check(daemon: Path, args: Sequence[str], principal: str) -> dict[str, Any]:
    """The daemon's answer to a submission. Raises Refused, and Unavailable when it is down."""
    pocket, package, commit = args
    question = {
        "verb": "check",
        "pocket": pocket,
        "package": package,
        "commit": commit,
        "principal": principal,
    }
    answer = _ask(daemon, question)
    if not answer.get("ok"):
        raise Refused([Reason(**reason) for reason in answer["reasons"]])
    return answer


def _ask(daemon: Path, question: dict[str, str]) -> dict[str, Any]:
    data = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(daemon))
            connection.sendall(json.dumps(question).encode() + b"\n")
            while not data.endswith(b"\n") and len(data) < MAX_ANSWER:
                part = connection.recv(65536)
                if not part:
                    break
                data += part
        answer = json.loads(data)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"the daemon does not answer: {error}",
            hint="start it with `invirtibuilder daemon`",
            code="no-daemon",
        ) from error
    return dict(answer)
