"""The door: ask the daemon what it thinks of a submission, then put it into the queue."""

from __future__ import annotations

import _socket  # socket itself, with selectors and enums of constants, takes a tenth of a call
import json
import os
from collections.abc import Sequence

from invirtibuilder import entries
from invirtibuilder.errors import Reason, Refused, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing, too, takes its time to import
    from typing import Any

    Path = str | os.PathLike[str]

DEADLINE = 35.0
MAX_ANSWER = 1 << 20


def submit(queue: Path, daemon: Path, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Queue a request for a job unless the daemon refuses it. Raises Refused with all reasons.

    Returns the daemon's answer; None when it is down: then it is accepted all the same,
    unchecked. An answer with a `job` names one that does the same already: nothing is queued.
    """
    answer: dict[str, Any] | None
    try:
        if entry["action"] == "submit":
            answer = check(daemon, entry["args"], entry["principal"])
        else:
            words = ("action", "args", "principal")
            answer = asked(daemon, {"verb": "check", **{word: entry[word] for word in words}})
    except Unavailable:
        answer = None
    if not (answer and answer.get("job")):
        entries.put(queue, entry)
    return answer


def said(answer: dict[str, Any] | None, package: str) -> str:
    """What to tell a submitter of the daemon's answer."""
    if answer is None:
        return "accepted, but not checked yet: the daemon does not answer"
    what = f"{package} {answer['version']} from {answer['commit']}"
    if job := answer.get("job"):
        return f"nothing new is queued: job {job} of {what} is {answer['state']} already"
    return f"accepted: {what}{held(answer)}"


def held(answer: dict[str, Any]) -> str:
    """What to add where a pause keeps what was accepted from being done."""
    return f"; it waits, as {answer['paused']}" if answer.get("paused") else ""


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
    return asked(daemon, question)


def asked(daemon: Path, question: dict[str, Any]) -> dict[str, Any]:
    """The daemon's answer. Raises Refused with its reasons, and Unavailable when it is down."""
    answer = _ask(daemon, question)
    if not answer.get("ok"):
        raise Refused([Reason(**reason) for reason in answer["reasons"]])
    return answer


def _ask(daemon: Path, question: dict[str, Any]) -> dict[str, Any]:
    data = b""
    try:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            connection.settimeout(DEADLINE)
            connection.connect(str(daemon))
            connection.sendall(json.dumps(question).encode() + b"\n")
            while not data.endswith(b"\n") and len(data) < MAX_ANSWER:
                part = connection.recv(65536)
                if not part:
                    break
                data += part
        finally:
            connection.close()
        answer = json.loads(data)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"the daemon does not answer: {error}",
            hint="start it with `invirtibuilder daemon`",
            code="no-daemon",
        ) from error
    return dict(answer)
