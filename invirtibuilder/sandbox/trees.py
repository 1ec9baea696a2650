"""Trees that belong to subordinate ids, as tar(1) sees them: their digest, and copies of them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from invirtibuilder.errors import RoomFault
from invirtibuilder.sandbox import helper
from invirtibuilder.sandbox.ids import Entered, Ids, finish

SECONDS = 1800.0
"""How long reading or copying one may take."""


def digest_of(root: Path, ids: Ids, log: int) -> str:
    """SHA-256 of a tree's content, times of modification left out. Raises RoomFault."""
    argv = [
        "/usr/bin/tar",
        *(
            "--create",
            f"--directory={helper.PLACE}/root",
            "--sort=name",
            "--mtime=@0",
            "--numeric-owner",
        ),
        *("--format=posix", "--pax-option=delete=atime,delete=ctime", "--one-file-system"),
        *("--xattrs", "--xattrs-include=security.capability", "--file=-", "."),
    ]
    with _started(ids, argv, {"root": root}, log) as (entered, stream):
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if finish(entered, seconds=SECONDS) != 0:
        raise RoomFault("a base cannot be read", code="base")
    return digest


def copy_tree(source: Path, of: Ids, target: Path, ids: Ids, log: int) -> None:
    """A tree with all that tar knows of it: owners as the ids map them, modes, times, xattrs.

    `of` owns the source, `ids` the target. Raises RoomFault.
    """
    kept = ("--numeric-owner", "--xattrs", "--xattrs-include=*", f"--directory={helper.PLACE}/it")
    pack = ("/usr/bin/tar", "--create", "--format=posix", "--one-file-system", *kept, "--file=-")
    unpack = ("/usr/bin/tar", "--extract", "--same-owner", "--same-permissions", *kept, "--file=-")
    with _started(of, [*pack, "."], {"it": source}, log) as (packing, stream):
        try:
            unpacking = helper.start(
                ids,
                unpack,
                directories={"it": target},
                files={},
                output=log,
                errors=log,
                env={},
                stdin=stream.fileno(),
            )
            code = finish(unpacking, seconds=SECONDS)
        except BaseException:
            packing.kill()
            raise
    if code:
        packing.kill()
    if code or finish(packing, seconds=SECONDS):
        raise RoomFault(f"{source} cannot be copied; tar's output is in the log", code="base")


@contextmanager
def _started(
    ids: Ids, argv: Sequence[str], directories: Mapping[str, Path], log: int
) -> Iterator[tuple[Entered, io.BufferedReader]]:
    """A program that owns these directories as `ids` map them, and what it writes."""
    reader, writer = os.pipe()
    with open(reader, "rb") as stream:  # noqa: PTH123
        try:
            process = helper.start(
                ids, argv, directories=directories, files={}, output=writer, errors=log, env={}
            )
        finally:
            # Before another one starts: it would wait for the end of its own descriptor.
            os.close(writer)
        yield process, stream
