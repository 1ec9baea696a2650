"""Downloads: the packages that a trust domain has fetched, kept by their SHA-256.

Nothing here is believed: a file is hashed each time it is used. So a torn or spoilt one does no
harm, and nothing has to be synced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.errors import RoomFault


@dataclass(frozen=True, kw_only=True)
class Downloads:
    """Files below `directory`, each called as its SHA-256; `size` bounds them, in bytes."""

    directory: Path
    size: int

    def take(self, sha256: str, target: Path) -> bool:
        """Make `target` this file, to be read only; false when it is not here.

        It stays whole whatever is removed here afterwards.
        """
        kept = self.directory / sha256
        try:
            os.utime(kept)
            _link_or_copy(kept, target)
        except FileNotFoundError:
            return False
        with target.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return True
        target.unlink()
        kept.unlink(missing_ok=True)
        return False

    def add(self, sha256: str, size: int, read: Callable[[int], bytes]) -> None:
        """Keep what is read, if it is what its hash and size say. Raises RoomFault, OSError.

        The file has no name before that: whoever is killed leaves nothing behind.
        """
        self.directory.mkdir(mode=0o755, exist_ok=True)
        fd = os.open(self.directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file:
            digest, got = hashlib.sha256(), 0
            while got <= size and (data := read(1 << 17)):
                digest.update(data)
                got += len(data)
                file.write(data)
            if (got, digest.hexdigest()) != (size, sha256):
                why = f"{got} bytes with SHA-256 {digest.hexdigest()}, not {size} with {sha256}"
                raise RoomFault(why, code="bad-download")
            file.flush()
            os.fchmod(fd, 0o644)
            self._name(fd, sha256)

    def _name(self, fd: int, sha256: str) -> None:
        """Give a file a name that has none (open(2), O_TMPFILE); another may have been faster."""
        proc = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(FileExistsError):
                os.link(str(fd), self.directory / sha256, src_dir_fd=proc, follow_symlinks=True)
        finally:
            os.close(proc)

    def collect(self) -> None:
        """Remove the least recently used beyond `size`."""
        found = []
        for path in self.directory.iterdir() if self.directory.is_dir() else ():
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > self.size:
                path.unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        # Another file system, or more links than one allows.
        shutil.copyfile(source, target)
        target.chmod(0o644)
