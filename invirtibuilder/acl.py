"""Who may do what in a pocket: exact principals, files of them, programs that print them.

A principal is granted only what a source says of exactly this name: case, instance and realm
count, nothing is completed, and there are no patterns. So an anonymous principal
(WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS, RFC 8062), or one of another realm, may what it is named
for, and nothing else. What cannot be read, or holds one line that cannot be understood, grants
nothing at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from invirtibuilder import files, model, notifierclient
from invirtibuilder.errors import Fault, Malformed, Reason
from invirtibuilder.run import ProcessFault, run
from invirtibuilder.settings import AclEntry

MAX_BYTES = 1 << 20
TIMEOUT = 20.0
UNREADABLE = "acl-unreadable"
# What means more than a name to remctl: to skip a `deny:` would be to grant.
DIRECTIVE = re.compile(
    r"include\s|ANYUSER$|(anyuser|deny|file|gput|localgroup|pcre|regex|unixgroup):"
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one source says: principals, each with where it stands; or why it says nothing."""

    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    troubles: tuple[Reason, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the source could not be read, so that nobody knows what it would say."""
        return any(trouble.code == UNREADABLE for trouble in self.troubles)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Whether a principal may, by which lines, where was looked, and what went wrong there."""

    allowed: bool
    by: tuple[str, ...]
    looked: tuple[str, ...]
    troubles: tuple[Reason, ...]


def allowed(
    principal: str, entries: Sequence[AclEntry], *, pocket: str, action: str
) -> tuple[bool, list[Reason]]:
    """Whether the principal may, and what went wrong in finding out; stops at the first yes."""
    troubles: list[Reason] = []
    for entry in entries:
        answer = ask(entry, pocket=pocket, action=action)
        troubles += answer.troubles
        if principal in answer.names and never(principal) is None:
            return True, troubles
    return False, troubles


def explain(
    principal: str, entries: Sequence[AclEntry], *, pocket: str, action: str
) -> Explanation:
    """As `allowed`, of every source, with the places."""
    answers = [ask(entry, pocket=pocket, action=action) for entry in entries]
    return explained(principal, answers)


def explained(principal: str, answers: Sequence[Answer]) -> Explanation:
    """What answers that were got before say of a principal."""
    refusal = never(principal)
    by = () if refusal else tuple(a.names[principal] for a in answers if principal in a.names)
    troubles = tuple(trouble for answer in answers for trouble in answer.troubles)
    return Explanation(
        allowed=bool(by),
        by=by,
        looked=tuple(answer.source for answer in answers),
        troubles=(refusal, *troubles) if refusal else troubles,
    )


def never(principal: str) -> Reason | None:
    """Why nobody can be granted anything under this name, if that is so."""
    try:
        model.principal(principal)
    except Malformed as fault:
        return fault.reasons[0]
    return None


def ask(entry: AclEntry, *, pocket: str, action: str) -> Answer:
    """What one entry of an ACL says now. Raises nothing: a source that fails grants nothing."""
    if entry.principal:
        source = entry.where or "the list"
    elif entry.file:
        source = str(entry.file)
    else:
        source = f"`{entry.command} {pocket} {action}`"
    try:
        if entry.principal:
            names = {entry.principal: source}
        elif entry.file:
            names = _lines(files.read_capped(entry.file, limit=MAX_BYTES), source)
        else:
            names = _lines(_asked(entry, pocket, action), source)
    except (Fault, OSError, UnicodeDecodeError) as error:
        message = f"{source}: {model.printable(str(error))[:300]}"
        return Answer(source=source, troubles=(Reason(code=UNREADABLE, message=message),))
    refused = {name: reason for name in names if (reason := never(name))}
    return Answer(
        source=source,
        names={name: place for name, place in names.items() if name not in refused},
        troubles=tuple(
            Reason(code=reason.code, message=f"{names[name]}: {reason.message}")
            for name, reason in refused.items()
        ),
    )


def _asked(entry: AclEntry, pocket: str, action: str) -> bytes:
    """What an entry's program prints, whoever runs it."""
    program = entry.command or Path()
    if entry.notifier is None:
        return output(program, pocket, action)
    return notifierclient.principals(entry.notifier, program, pocket, action, limit=MAX_BYTES)


def output(program: Path, pocket: str, action: str) -> bytes:
    """What a program prints, when it ends in time with exit code 0. Raises Malformed.

    Into files of which the kernel bounds the size: a program that writes without end costs no
    memory, and one that leaves a child behind which keeps its output open is not waited for.
    """
    out, err = os.memfd_create("acl-output"), os.memfd_create("acl-errors")
    try:
        run(
            [program, pocket, action],
            timeout=TIMEOUT,
            stdout=out,
            stderr=err,
            file_limit=MAX_BYTES + 1,
        )
        data = os.pread(out, MAX_BYTES + 1, 0)
    except ProcessFault as fault:
        said = os.pread(err, 200, 0).decode("utf-8", "replace").strip()
        raise Malformed(f"{fault} {_excess(out, err)}{said}".rstrip()) from fault
    finally:
        os.close(out)
        os.close(err)
    if len(data) > MAX_BYTES:
        raise Malformed(f"more than {MAX_BYTES} bytes of output")
    return data


def _excess(*descriptors: int) -> str:
    large = any(os.fstat(fd).st_size > MAX_BYTES for fd in descriptors)
    return f"(more than {MAX_BYTES} bytes of output) " if large else ""


def _lines(data: bytes, source: str) -> dict[str, str]:
    """One principal a line, as in remctl's `file:`; a line that starts with # is a comment.

    The prefix `princ:` is taken off. Anything else that is more than a name is Malformed.
    """
    names: dict[str, str] = {}
    for number, raw in enumerate(data.decode("utf-8", "strict").split("\n"), 1):
        line = raw.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        if DIRECTIVE.match(line):
            raise Malformed(f"line {number}: not a principal, and no other rule is understood here")
        try:
            name = model.principal(line.removeprefix("princ:"))
        except Malformed as fault:
            raise Malformed(f"line {number}: {fault}") from fault
        names.setdefault(name, f"{source}:{number}")
    return names
