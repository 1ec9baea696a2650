"""Tars from the other side: plain regular files with plain names, within limits, or nothing.

The reader is our own: tarfile acts on links, pax headers and sparse maps before its caller can
refuse them, and which of its methods can be overridden changes with Debian's updates of Python.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

from invirtibuilder.errors import Malformed

BLOCK = 512
MAX_NAME_HEADER = 4096
REGULAR = (b"0", b"\0")
LONG_NAME = b"L"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a tar may hold at most (bytes; members)."""

    members: int = 4000
    member_size: int = 8 << 30
    total: int = 16 << 30


@dataclass(frozen=True)
class _Header:
    name: bytes
    size: int
    kind: bytes


def members(stream: IO[bytes], limits: Limits) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (name, size, content) of each member; the content must be read before the next.

    Names are relative and plain (no empty, `.` or `..` part), and unique. Only regular files and
    GNU's long names are taken: no link, device, FIFO, directory, sparse file or pax header.
    Raises Malformed for anything else, and when a limit is exceeded or the tar is cut off.
    What follows the end of the tar is not looked at.
    """
    seen: set[str] = set()
    total = 0
    long_name: bytes | None = None
    while header := _header(stream):
        if header.kind == LONG_NAME:
            if long_name is not None or header.size > MAX_NAME_HEADER:
                raise Malformed("tar: a long name that is none")
            content = _Content(stream, header.size)
            long_name = content.read().partition(b"\0")[0]
            content.skip()
            continue
        name = (header.name if long_name is None else long_name).decode("utf-8", "surrogateescape")
        long_name = None
        if header.kind not in REGULAR:
            raise Malformed(f"tar: {name!r} is not a regular file")
        check_name(name)
        total += header.size
        if len(seen) >= limits.members:
            raise Malformed(f"tar: more than {limits.members} members")
        if header.size > limits.member_size or total > limits.total:
            raise Malformed(f"tar: {name!r}: larger than allowed", code="too-large")
        if name in seen:
            raise Malformed(f"tar: {name!r} twice")
        seen.add(name)
        content = _Content(stream, header.size)
        yield name, header.size, cast("IO[bytes]", content)
        content.skip()
    if long_name is not None:
        raise Malformed("tar: a long name without a member")


def _exactly(stream: IO[bytes], size: int) -> bytes:
    """Read this many bytes, or as many as there are."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _header(stream: IO[bytes]) -> _Header | None:
    """The next header (tar(5), ustar and GNU); None at the block of zeros that ends a tar."""
    block = _exactly(stream, BLOCK)
    if len(block) < BLOCK:
        raise Malformed("tar: cut off")
    if not any(block):
        return None
    # The checksum is the sum of all bytes, its own field taken as spaces.
    if _number(block[148:156]) != sum(block[:148]) + 8 * 0x20 + sum(block[156:]):
        raise Malformed("tar: damaged, or no tar")
    name = block[:100].partition(b"\0")[0]
    # POSIX's prefix; in GNU's own format other things stand there.
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return _Header(name=name, size=_number(block[124:136]), kind=block[156:157])


def _number(field: bytes) -> int:
    """An octal number, or GNU's base-256 for large ones. Raises Malformed."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if any(digit not in b"01234567" for digit in digits):
        raise Malformed("tar: not a number in a header")
    return int(digits or b"0", 8)


class _Content:
    """A member's content, padded to whole blocks in the stream."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size
        self._padding = -size % BLOCK

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, all that are left for -1. Raises Malformed at a cut."""
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(wanted) if wanted else b""
        if len(data) < wanted and size < 0:
            data += _exactly(self._stream, wanted - len(data))
            if len(data) < wanted:
                raise Malformed("tar: cut off")
        if wanted and not data:
            raise Malformed("tar: cut off")
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """Go to the end of the last block."""
        while self._left:
            self.read(1 << 20)
        if len(_exactly(self._stream, self._padding)) < self._padding:
            raise Malformed("tar: cut off")
        self._padding = 0


def check_name(name: str) -> None:
    """Raise Malformed unless the name is relative and stays below where it is unpacked."""
    parts = name.split("/")
    if (
        not name.isprintable()
        or len(name.encode("utf-8", "surrogateescape")) > 1024
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise Malformed(f"tar: hostile name {name!r}")


class Writer:
    """Writes a tar that `members` accepts: regular files, root's, mode 0644, time 0.

    The stream must be seekable, as a file is.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._tar = tarfile.open(  # noqa: SIM115
            # Not a stream of tarfile's, which would still write its buffer after a restart.
            fileobj=stream,
            mode="w:",
            format=tarfile.GNU_FORMAT,
        )

    def add(self, name: str, size: int, content: IO[bytes]) -> None:
        """Append one file of exactly `size` bytes."""
        check_name(name)
        info = tarfile.TarInfo(name)
        info.size = size
        info.mode = 0o644
        self._tar.addfile(info, content)
        # tarfile keeps each header for ever otherwise.
        self._tar.members = []  # type: ignore[attr-defined]

    def add_bytes(self, name: str, content: bytes) -> None:
        """Append one file."""
        self.add(name, len(content), io.BytesIO(content))

    def close(self) -> None:
        """Write the end of the tar; without it the tar does not count as complete."""
        self._tar.close()
