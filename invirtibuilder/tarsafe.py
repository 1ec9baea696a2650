"""Tars from the other side: plain regular files with plain names, within limits, or nothing."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Self, cast

from invirtibuilder.errors import Malformed

MAX_NAME_HEADER = 4096


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a tar may hold at most (bytes; members)."""

    members: int = 4000
    member_size: int = 8 << 30
    total: int = 16 << 30


class _PlainInfo(tarfile.TarInfo):
    """A header that is refused before tarfile acts on it.

    Links, devices, FIFOs, directories, sparse files and pax headers (whose size tarfile would
    read into memory) have no place here; GNU long names have, up to a sane length.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) == tarfile.BLOCKSIZE and not any(buf):
            return super().frombuf(buf, encoding, errors)  # the end
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # tarfile takes these for the end as well, except in the first header.
            raise Malformed(f"tar: cut off or damaged: {error}") from error
        if info.type == tarfile.GNUTYPE_LONGNAME:
            if info.size > MAX_NAME_HEADER:
                raise Malformed("tar: a name of more than 4096 bytes")
        elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.name.endswith("/"):
            raise Malformed(f"tar: {info.name!r} is not a regular file")
        if info.size < 0:
            raise Malformed("tar: negative size")
        return info


def members(stream: IO[bytes], limits: Limits) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (name, size, content) of each member; the content must be read before the next.

    Names are relative and plain (no empty, `.` or `..` part), and unique.
    Raises Malformed for anything else, and when a limit is exceeded or the tar is cut off.
    """
    seen: set[str] = set()
    total = 0
    try:
        with tarfile.open(
            fileobj=stream, mode="r|", tarinfo=_PlainInfo, errorlevel=2, bufsize=1 << 16
        ) as tar:
            for info in tar:
                total += info.size
                if len(seen) >= limits.members:
                    raise Malformed(f"tar: more than {limits.members} members")
                if info.size > limits.member_size or total > limits.total:
                    raise Malformed(f"tar: {info.name!r}: larger than allowed", code="too-large")
                check_name(info.name)
                if info.name in seen:
                    raise Malformed(f"tar: {info.name!r} twice")
                seen.add(info.name)
                content = _Content(cast("IO[bytes]", tar.extractfile(info)))
                yield info.name, info.size, cast("IO[bytes]", content)
                # tarfile keeps each header of a stream for ever otherwise.
                tar.members = []  # type: ignore[attr-defined]
    except _DAMAGED as error:
        raise Malformed(f"tar: {error}") from error


# A chain of long names is a recursion of tarfile's.
_DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)


class _Content:
    """A member's content: the end of a tar within it is Malformed as well."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except _DAMAGED as error:
            raise Malformed(f"tar: {error}") from error


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

    def add_bytes(self, name: str, content: bytes) -> None:
        """Append one file."""
        self.add(name, len(content), io.BytesIO(content))

    def close(self) -> None:
        """Write the end of the tar; without it the tar does not count as complete."""
        self._tar.close()
