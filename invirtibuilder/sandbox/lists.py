"""APT's lists of what the mirrors have, kept from one resolution to the next.

They are a cache: whatever is wrong with them, they are made anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder import files
from invirtibuilder.errors import Malformed
from invirtibuilder.run import run
from invirtibuilder.sandbox.ids import Ids, make_tree, remove_tree

KEPT = 3
"""Sets of sources whose lists are kept, of some 150 MB each; the least recently used go first."""

FRESH = 24 * 3600.0
"""Seconds for which APT's word counts that a Release file is signed and has not expired."""

WHOLE = "whole.json"
"""Beside a tree that was left as it should be; synced after it, so also after a power cut."""


@dataclass(kw_only=True)
class Lists:
    """APT's `lists` and `cache` in a tree of the sandbox's ids, for one worker alone.

    `releases` are the SHA-256 of the InRelease files that are in it, as APT has checked them.
    """

    place: Path
    ids: Ids
    releases: frozenset[str] = frozenset()
    made: float = 0.0

    @property
    def tree(self) -> Path:
        return self.place / "tree"

    def update(self, wanted: frozenset[str] | None, body: Callable[[], None]) -> None:
        """Have `body` bring the lists up to date, unless they are of the `wanted` releases.

        After a body that fails, or is killed, they are begun anew.
        """
        if wanted is not None and wanted == self.releases and fresh(self.made):
            return
        whole = (self.place / WHOLE).exists()
        (self.place / WHOLE).unlink(missing_ok=True)
        for anew in (not whole, True):
            if anew:
                remove_tree(self.ids, self.tree)
                make_tree(self.ids, self.tree)
            self.made = time.time()
            body()
            self.releases = frozenset(_sha256(p) for p in self.tree.glob("lists/*InRelease"))
            # APT asks by time of modification, in whole seconds: it misses a quick change.
            if anew or wanted is None or self.releases == wanted:
                break
        # The tree is not ours to open: the whole file system is synced (syncfs(2)).
        run(["sync", "--file-system", self.place])
        files.write_json(self.place / WHOLE, {"releases": sorted(self.releases), "made": self.made})


def fresh(made: float) -> bool:
    """Whether what APT checked then (seconds since the epoch) still counts as checked."""
    return 0 <= time.time() - made < FRESH


@contextmanager
def held(store: Path, name: str, ids: Ids) -> Iterator[Lists]:
    """The lists called `name` in `store`, which are nobody else's while the block runs."""
    place = store / name
    place.mkdir(parents=True, exist_ok=True, mode=0o711)
    with files.locked(place / "lock") as lock:
        os.utime(lock)
        found = Lists(place=place, ids=ids)
        try:
            value = files.read_json(place / WHOLE)
            found.releases = frozenset(map(str, value["releases"]))
            found.made = float(value["made"])
        except (FileNotFoundError, Malformed, KeyError, TypeError, ValueError):
            (place / WHOLE).unlink(missing_ok=True)
        yield found


def collect(store: Path, ids: Ids) -> None:
    """Remove the least recently used beyond KEPT, but those in use."""
    locks = sorted(store.glob("*/lock"), key=lambda p: p.stat().st_mtime, reverse=True)
    for lock in locks[KEPT:]:
        try:
            with files.locked(lock, wait=False):
                (lock.parent / WHOLE).unlink(missing_ok=True)
                remove_tree(ids, lock.parent / "tree")
                files.remove_tree(lock.parent)
        except files.Busy:
            continue


def _sha256(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
