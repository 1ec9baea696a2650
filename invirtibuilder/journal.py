"""Log lines: with fields to systemd's journal where that takes them, else as plain text.

What is hostile in a line cannot make another one, nor another field: text is printable, and the
journal is told the length of each value (systemd.io, Native Journal Protocol).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from invirtibuilder import model

ERROR, WARNING, INFO = 3, 4, 6
"""Priorities, as in syslog(3)."""
IDENTIFIER = "invirtibuilder"
SOCKET = Path("/run/systemd/journal/socket")
MAX_TEXT = 32 << 10
MAX_VALUE = 1 << 10
"""Characters of a line, and of a field's value; the kernel takes datagrams of 200 KiB."""
PATIENCE = 1.0
"""Seconds in which the journal takes a line."""
About = Mapping[str, str]
NOTHING: About = MappingProxyType({})
FIELDS = ("job", "pocket", "package", "principal", "code")
"""What a line may be about; in the journal in capitals."""


class Log(Protocol):
    """Takes a line, and what it is `about`, of FIELDS."""

    def __call__(self, text: str, about: About = NOTHING, *, priority: int = INFO) -> None: ...


def silent(text: str, about: About = NOTHING, *, priority: int = INFO) -> None:
    """A log that nobody reads."""


def logger(fd: int = 2, *, environment: Mapping[str, str] = os.environ, path: Path = SOCKET) -> Log:
    """The log of a service whose standard error is `fd`.

    To the journal at `path` when systemd says, by JOURNAL_STREAM, that `fd` leads there anyway.
    A line that the journal does not take goes to `fd`; one that its disk has no room for is lost.
    """
    journal = path if environment.get("JOURNAL_STREAM") == _stream(fd) else None

    def log(text: str, about: About = NOTHING, *, priority: int = INFO) -> None:
        line = model.printable(text[:MAX_TEXT])
        with suppress(OSError):
            if journal and _sent(journal, line, about, priority):
                return
            os.write(fd, f"{model.iso(model.utcnow())} {line}\n".encode("utf-8", "replace"))

    return log


def _stream(fd: int) -> str:
    """What JOURNAL_STREAM is (systemd.exec(5)) when this descriptor leads to the journal."""
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


def _sent(journal: Path, line: str, about: About, priority: int) -> bool:
    told = {name: value for name, value in about.items() if value}
    if bad := [name for name in told if name not in FIELDS]:
        raise ValueError(f"no names of fields: {bad}")
    data = b"".join(
        field(name.upper(), value)
        for name, value in {
            "message": line,
            "priority": str(priority),
            "syslog_identifier": IDENTIFIER,
            **{name: value[:MAX_VALUE] for name, value in told.items()},
        }.items()
    )
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(PATIENCE)
            connection.sendto(data, str(journal))
    except OSError:
        return False
    return True


def field(name: str, value: str) -> bytes:
    """A field with its value's length before the value, which so may be anything.

    >>> field("JOB", "a\\nPRIORITY=0")
    b'JOB\\n\\x0c\\x00\\x00\\x00\\x00\\x00\\x00\\x00a\\nPRIORITY=0\\n'
    """
    data = value.encode("utf-8", "backslashreplace")
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
