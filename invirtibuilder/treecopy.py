"""Copies of trees that others change meanwhile, with hard links to an earlier copy."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from invirtibuilder import files

TRIES = 10
SURE = 2.0
"""Seconds: what was changed so shortly before a copy may have changed again within a tick."""

Mark = tuple[int, int, int, int]


@dataclass(kw_only=True)
class Copier:
    """Makes `target` what `source` is. It may be called again, and then does what has changed.

    A file that is in `before`, a copy that was begun at the time `since`, and has not changed since
    then is linked from there. `order` says in which order a directory's entries are copied: whoever
    reads refs before objects has the objects of each ref. Temporary files, sockets and the like are
    left out. What may not be read is in `unread`.
    """

    before: Path | None = None
    since: float = 0.0
    order: Callable[[str], int] = lambda name: 0
    remember: bool = True
    """Whether what is copied now will be copied again."""
    unread: list[str] = field(default_factory=list)
    copied: int = 0
    linked: int = 0
    _seen: dict[str, Mark] = field(default_factory=dict)

    def copy(self, source: Path, target: Path, *, inside: str = "") -> None:
        """Copy a directory; `inside` is where it is below `before`. Raises OSError."""
        if target.is_symlink() or not target.is_dir():
            files.remove_tree(target)
            target.mkdir(mode=0o700, parents=True)
        try:
            names = self._names(source)
            for _ in range(TRIES):
                if not self._entries(source, target, inside, names):
                    break
                # Something has gone meanwhile: what replaces it has a name that was not seen.
                names = self._names(source)
            for name in set(os.listdir(target)) - set(names):
                files.remove_tree(target / name)
            _like(source, target)
        except PermissionError:
            self.unread.append(str(source))

    def _names(self, source: Path) -> list[str]:
        names = [n for n in os.listdir(source) if not (n[0] == "." and n.endswith(".tmp"))]
        return sorted(names, key=lambda name: (self.order(name), name))

    def _entries(self, source: Path, target: Path, inside: str, names: Sequence[str]) -> bool:
        """Copy these; whether one of them was gone."""
        gone = False
        for name in names:
            try:
                self._entry(source / name, target / name, f"{inside}/{name}")
            except FileNotFoundError:
                gone = True
            except PermissionError:
                self.unread.append(str(source / name))
        return gone

    def _entry(self, source: Path, target: Path, inside: str) -> None:
        status = source.lstat()
        if stat.S_ISDIR(status.st_mode):
            self.copy(source, target, inside=inside)
        elif stat.S_ISLNK(status.st_mode):
            files.remove_tree(target)
            target.symlink_to(source.readlink())
        elif stat.S_ISREG(status.st_mode):
            mark = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if self._seen.get(inside) != mark:
                self._file(source, target, inside, status)
                if self.remember:
                    self._seen[inside] = mark

    def _file(self, source: Path, target: Path, inside: str, status: os.stat_result) -> None:
        files.remove_tree(target)
        if self.before and self._same(self.before / inside.lstrip("/"), status):
            target.hardlink_to(self.before / inside.lstrip("/"))
            self.linked += 1
        else:
            shutil.copyfile(source, target, follow_symlinks=False)
            _like(source, target)
            self.copied += 1

    def _same(self, before: Path, status: os.stat_result) -> bool:
        try:
            old = before.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        facts = ("st_mode", "st_size", "st_mtime_ns")
        same = all(getattr(old, fact) == getattr(status, fact) for fact in facts)
        # Not st_mtime alone, which is whatever somebody has set it to.
        return same and max(status.st_mtime, status.st_ctime) < self.since - SURE


def _like(source: Path, target: Path) -> None:
    """Time, mode and, if we may, the group of the source."""
    with suppress(PermissionError):
        os.chown(target, -1, source.stat().st_gid)
    shutil.copystat(source, target)
