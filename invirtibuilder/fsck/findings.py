"""What fsck may find, and the memory of what it has verified before."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from invirtibuilder import files
from invirtibuilder.errors import Malformed

KINDS = {
    # Git.
    "pin-differs": "the superproject pins another commit than its record names",
    "pin-without-record": "a package is pinned, and nothing is recorded of it",
    "record-without-pin": "a package is recorded, and not pinned",
    "record-differs": "a record is not what its superproject commit's trailers say",
    "repository-missing": "a published package has no repository",
    "commit-missing": "a published commit is not in the package's repository",
    "tree-differs": "the source was exported from another tree than the commit's",
    "kept-ref-missing": "no ref holds a published commit",
    "kept-ref-differs": "the ref of a published version holds something else",
    "tag-missing": "a published version has no tag",
    "tag-differs": "the tag of a published version is at another commit",
    "tag-without-publication": "we tagged a version that was never published",
    "ref-without-publication": "a kept ref is of a version that was never published",
    # Files.
    "file-missing": "a file that is recorded, or that a kept publication names, is not in the pool",
    "file-differs": "a file in the pool has another SHA-256 than is recorded or named",
    "source-differs": "a .dsc names other files than are recorded",
    "buildinfo-differs": "a .buildinfo is not the recorded one, or does not name a binary",
    "orig-missing": "the store of upstream tarballs lacks a published one",
    "orig-differs": "the store of upstream tarballs has another of that name",
    "dsc-differs": "the same commit in the same environment gives another .dsc, or none",
    # What clients see.
    "current-missing": "clients see no publication",
    "current-differs": "clients see another publication than the superproject's newest",
    "publication-without-commit": "a publication belongs to no superproject commit",
    "publication-missing": "a publication that is to be kept is not there",
    "signature-bad": "a publication is not signed by the site's key",
    "release-differs": "Release and InRelease of a publication differ",
    "index-missing": "an index that a Release names is not there",
    "index-differs": "an index is not what its Release names",
    "by-hash-missing": "an index cannot be had by its hash",
    "by-hash-differs": "what is stored under a hash has another",
    "not-listed": "a recorded package is not in the index",
    "listed-without-record": "the index has what no record has",
    "database-differs": "reprepro's database is damaged, or has not what is recorded",
    "unfinished": "a publication was begun, and neither finished nor undone",
    # No drift.
    "not-comparable": "it cannot be compared any more; that is no drift",
    "pool-unreferenced": "a file in the pool that no kept publication needs",
    "leftover": "something that a process which was killed has left",
}
"""Each kind of finding and what it means; invirtibuilder(1) lists them."""

NO_DRIFT = frozenset({"not-comparable", "pool-unreferenced", "leftover"})

LIMIT = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be; `what` is a package, a ref or a path."""

    kind: str
    pocket: str
    what: str
    message: str
    package: str = ""
    repaired: str = ""

    @property
    def drift(self) -> bool:
        """Whether git and the archive differ; else it is only untidy, or cannot be known."""
        return self.kind not in NO_DRIFT and not self.repaired

    @property
    def text(self) -> str:
        """A line for a person."""
        where = f"{self.pocket}: " if self.pocket else ""
        mark = "drift" if self.drift else "repaired" if self.repaired else "note"
        done = f" ({self.repaired})" if self.repaired else ""
        return f"{mark}: {where}{self.message} [{self.kind}]{done}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "drift": self.drift}


class Memory:
    """SHA-256 of files by what a file system says of them, so that they are not read again."""

    def __init__(self, path: Path, *, full: bool, go_on: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._go_on = go_on
        self._known: dict[str, list[Any]] = {}
        self._seen: dict[str, list[Any]] = {}
        self.listed: dict[str, list[tuple[tuple[str, str], str]]] = {}
        """What each index lists, by its name and SHA-256; for as long as this is checked."""
        self.read = 0
        if not full:
            try:
                value = files.read_json(path, limit=LIMIT)
                self._known = dict(value["seen"]) if value.get("v") == 1 else {}
            except (OSError, Malformed, LookupError, TypeError, ValueError, AttributeError):
                # Then everything is read.
                self._known = {}

    def sha256(self, path: Path) -> str:
        """The hash of a regular file; "" when there is none."""
        return self.proven(path, lambda: _sha256(path))

    def proven(self, path: Path, prove: Callable[[], str], *more: Path) -> str:
        """What `prove` said of this file and `more`, unless they have changed since."""
        key = "\n".join(str(p) for p in (path, *more))
        if key in self._seen:
            return str(self._seen[key][-1])
        facts: list[Any] = []
        for one in (path, *more):
            try:
                status = os.lstat(one)
            except (FileNotFoundError, NotADirectoryError):
                return ""
            if not stat.S_ISREG(status.st_mode):
                return ""
            facts += [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._known.get(key)
        if known is None or known[:-1] != facts:
            self.read += 1
            self._go_on()
            known = [*facts, prove()]
        self._seen[key] = known
        return str(known[-1])

    def save(self) -> None:
        """Keep what was seen for the next time, as far as its files are still there."""
        seen = {
            key: facts
            for key, facts in {**self._known, **self._seen}.items()
            if all(map(os.path.lexists, key.split("\n")))
        }
        files.write_json(self._path, {"v": 1, "seen": seen}, mode=0o600)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
