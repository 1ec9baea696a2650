"""The daemon's unix socket: questions that are answered at once, before anything is queued.

One JSON line in, one JSON line out, by the peer's credentials (unix(7), SO_PEERCRED), bounded
in size, number and time.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invirtibuilder import acl, differences, entries, hosting, model, pauses, quotas
from invirtibuilder.errors import Denied, Fault, Malformed, NotFound, Refused
from invirtibuilder.sockets import listening, peer_uid, serve
from invirtibuilder.spool import local_principal
from invirtibuilder.stages.assess import assess
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.promote import assess_promotion
from invirtibuilder.stages.rollback import assess_rollback

MAX_LINE = 16 << 10
DEADLINE = 30.0
AT_ONCE = 16
MAX_LINES = 2000
"""Lines of an answer in text; each has a few hundred characters at most."""


class Answers:
    """Serves the socket until told to stop."""

    def __init__(self, path: Path, context: Context, trusted: frozenset[int]) -> None:
        self._path = path
        self._context = context
        self._trusted = trusted | {os.geteuid()}

    def serve(self, stop: threading.Event, alive: Callable[[], None]) -> None:
        """Answer each connection in a thread of its own, a few at a time."""
        with listening(self._path, mode=0o666) as server:
            serve(server, self._converse, stop, at_once=AT_ONCE, alive=alive)

    def _converse(self, connection: socket.socket) -> None:
        answer = self._answer(connection)
        connection.settimeout(DEADLINE)
        connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            question = _read(connection)
            principal = self._principal(connection, question)
            answer = QUESTIONS[question["verb"]](self._context, principal, question)
        except Fault as fault:
            reasons = [r.as_json() for r in fault.reasons]
            return {"ok": False, "exit": int(fault.exit), "reasons": reasons}
        except Exception as error:
            reason = {"code": "defect", "message": f"a defect of ours: {error!r}", "hint": ""}
            return {"ok": False, "defect": True, "reasons": [reason]}
        return {"ok": True, **answer}

    def _principal(self, connection: socket.socket, question: dict[str, Any]) -> str:
        uid = peer_uid(connection)
        own = local_principal(uid)
        asked = model.principal(question.get("principal") or own)
        if asked != own and uid not in self._trusted:
            raise Denied(f"{own} may not speak for {model.printable(asked)}")
        return asked


def _read(connection: socket.socket) -> dict[str, Any]:
    data = b""
    end = time.monotonic() + DEADLINE
    while not data.endswith(b"\n"):
        # For the whole line: a byte now and then is no way to stay.
        connection.settimeout(max(0.01, end - time.monotonic()))
        part = connection.recv(4096)
        if not part or len(data) > MAX_LINE:
            raise Malformed("expected one line of JSON")
        data += part
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed("expected one line of JSON") from error
    if not isinstance(value, dict) or str(value.get("verb")) not in QUESTIONS:
        raise Malformed(f"the verbs here are {', '.join(QUESTIONS)}")
    return value


def _check(context: Context, principal: str, question: dict[str, Any]) -> dict[str, Any]:
    """Whether a submission would be admitted. Raises Refused with all reasons."""
    if "action" in question:
        return _check_act(context, principal, question)
    pocket = model.pocket_name(question.get("pocket"))
    reasons = quotas.excess(context, principal, pocket)
    try:
        admission = assess(
            context.site,
            principal=principal,
            pocket=pocket,
            package=model.package_name(question.get("package")),
            committish=model.committish(question.get("commit")),
            now=context.clock(),
        )
    except Refused as refused:
        raise Refused([*refused.reasons, *reasons]) from refused
    package = str(question["package"])
    same = context.jobs.identical(pocket, package, admission.commit)
    if same:
        reasons = quotas.excess(context, principal, pocket, queued=False)
    if reasons:
        raise Refused(reasons)
    found = {"commit": admission.commit, "version": admission.version, **_paused(context, pocket)}
    return {**found, "job": same.id, "state": same.status.state} if same else found


def _paused(context: Context, pocket: str) -> dict[str, str]:
    """What to tell of a pause: what is accepted waits for its end."""
    pause = pauses.of(pauses.load(context.site), pocket)
    return {"paused": pause.text} if pause else {}


def _check_act(context: Context, principal: str, question: dict[str, Any]) -> dict[str, Any]:
    """What a promotion or a rollback would do. Raises Refused with all reasons."""
    entry = entries.new(
        str(question["action"]), list(question.get("args", ())), principal=principal, via="question"
    )
    (first, second, *packages), options = entries.split(entry["action"], entry["args"])
    paused = _paused(context, entries.pocket(entry["action"], entry["args"]))
    if entry["action"] == "promote":
        promotion = assess_promotion(
            context,
            principal=principal,
            origin=first,
            target=second,
            packages=packages,
            despite=entries.DESPITE in options,
        )
        return {**promotion, **paused}
    if entry["action"] == "rollback":
        rollback = assess_rollback(
            context, principal=principal, pocket=first, moment=second, packages=packages
        )
        return {**rollback, **paused}
    raise Malformed(f"nothing is to be checked of {entry['action']}")


def _sources(context: Context, principal: str, question: dict[str, Any]) -> dict[str, Any]:
    """The stanzas of a pocket, now or `at` a commit or a date; the archive is public."""
    name = model.pocket_name(question.get("pocket"))
    pocket = context.site.pockets.get(name)
    if pocket is None:
        raise NotFound(f"no such pocket: {name}", code="no-pocket")
    at = str(question.get("at") or "")
    client = hosting.client(context.site, pocket, at=at)
    return {
        "sources": client.sources if at else client.text,
        "preferences": client.preferences,
        "downgrade": client.downgrade,
    }


def _diff(context: Context, principal: str, question: dict[str, Any]) -> dict[str, Any]:
    """What differs between two states, for who may do anything in both pockets."""
    words = (str(question.get("a", "")), str(question.get("b", "")))
    may_see = functools.partial(_may_see, context, principal)
    sides = differences.sides(context.site, *words, may_see=may_see)
    for side in sides:
        if not may_see(side.pocket):
            message = f"{model.printable(principal)} may not look in {side.pocket}"
            raise Denied(message, code="not-permitted")
    lines = differences.text(differences.compare(context.site, *sides)).split("\n")
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES} more lines"]
    return {"text": "\n".join(lines), "pockets": [side.pocket for side in sides]}


def _may_see(context: Context, principal: str, name: str) -> bool:
    """Whether the principal may do anything in the pocket, or is the site itself."""
    if principal in {local_principal(uid) for uid in (0, os.geteuid())}:
        return True
    acls = context.site.pockets[name].acl.items()
    return any(acl.allowed(principal, who, pocket=name, action=a)[0] for a, who in acls)


Question = Callable[[Context, str, dict[str, Any]], dict[str, Any]]
QUESTIONS: dict[str, Question] = {"check": _check, "sources": _sources, "diff": _diff}
