"""The daemon's unix socket: `check` answered at once, before anything is queued.

One JSON line in, one JSON line out, by the peer's credentials (unix(7), SO_PEERCRED), bounded
in size, number and time.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from invirtibuilder import model, quotas
from invirtibuilder.errors import Denied, Fault, Malformed, Refused
from invirtibuilder.spool import local_principal
from invirtibuilder.stages.admit import assess
from invirtibuilder.stages.context import Context

MAX_LINE = 16 << 10
DEADLINE = 30.0
AT_ONCE = 16


class Answers:
    """Serves the socket until told to stop."""

    def __init__(self, path: Path, context: Context, trusted: frozenset[int]) -> None:
        self._path = path
        self._context = context
        self._trusted = trusted | {os.geteuid()}
        self._room = threading.BoundedSemaphore(AT_ONCE)

    def serve(self, stop: threading.Event) -> None:
        """Answer each connection in a thread of its own, a few at a time."""
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(str(self._path))
            self._path.chmod(0o666)
            server.listen(64)
            server.settimeout(0.5)
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                while not self._room.acquire(timeout=0.5):
                    if stop.is_set():
                        connection.close()
                        return
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                answer = self._answer(connection)
                connection.settimeout(DEADLINE)
                connection.sendall(json.dumps(answer).encode() + b"\n")
        finally:
            self._room.release()

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            question = _read(connection)
            principal = self._principal(connection, question)
            pocket = model.pocket_name(question.get("pocket"))
            reasons = quotas.excess(self._context, principal, pocket)
            try:
                admission = assess(
                    self._context.site,
                    principal=principal,
                    pocket=pocket,
                    package=model.package_name(question.get("package")),
                    committish=model.committish(question.get("commit")),
                    now=self._context.clock(),
                )
            except Refused as refused:
                raise Refused([*refused.reasons, *reasons]) from refused
            if reasons:
                raise Refused(reasons)
        except Fault as fault:
            return {"ok": False, "reasons": [r.as_json() for r in fault.reasons]}
        except Exception as error:
            reason = {"code": "defect", "message": f"a defect of ours: {error!r}", "hint": ""}
            return {"ok": False, "defect": True, "reasons": [reason]}
        return {"ok": True, "commit": admission.commit, "version": admission.version}

    def _principal(self, connection: socket.socket, question: dict[str, Any]) -> str:
        size = struct.calcsize("3i")
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        uid = struct.unpack("3i", raw)[1]
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
    if not isinstance(value, dict) or value.get("verb") != "check":
        raise Malformed("the verb here is check")
    return value
