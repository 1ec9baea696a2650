"""Who may do what in a pocket: exact principals, files of them, programs that print them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from invirtibuilder import files, model
from invirtibuilder.config import AclEntry
from invirtibuilder.errors import Fault, Reason
from invirtibuilder.run import run

MAX_BYTES = 1 << 20
TIMEOUT = 20.0


def allowed(
    principal: str, entries: Sequence[AclEntry], *, pocket: str, action: str
) -> tuple[bool, list[Reason]]:
    """Whether the principal may, and what went wrong in finding out.

    Exact and case-sensitive. A source that cannot be read grants nothing, and is named.
    """
    troubles: list[Reason] = []
    for entry in entries:
        source = entry.file or entry.command
        try:
            if entry.principal:
                names = frozenset({entry.principal})
            elif entry.file:
                names = _lines(files.read_capped(entry.file, limit=MAX_BYTES))
            else:
                names = _ask(entry.command, pocket, action)
        except (Fault, OSError, UnicodeDecodeError) as error:
            message = f"{source}: {model.printable(str(error))[:300]}"
            troubles.append(Reason(code="acl-unreadable", message=message))
            continue
        if principal in names:
            return True, troubles
    return False, troubles


def _ask(program: Path | None, pocket: str, action: str) -> frozenset[str]:
    done = run([program or "", pocket, action], timeout=TIMEOUT, output_limit=MAX_BYTES)
    return _lines(done.out)


def _lines(data: bytes) -> frozenset[str]:
    """One principal a line, as in remctl's `file:`; a line that starts with # is a comment."""
    lines = (line.strip() for line in data.decode("utf-8", "strict").split("\n"))
    return frozenset(line for line in lines if line and not line.startswith("#"))
