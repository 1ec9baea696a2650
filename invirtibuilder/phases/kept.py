"""Kept resolutions: which packages a build needs, known by all that the answer depends on.

The pocket's own repository changes with each publication, so of it only those packages count
that APT can have looked at: all that are reached from the base and the build dependencies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from invirtibuilder import files
from invirtibuilder.errors import Malformed
from invirtibuilder.order import PocketSource, Room

KEPT = 1000
"""Resolutions that are kept, of some 10 KiB each; the least recently used go first."""

FORMAT = 1
LEFT_OVER = 3600.0

NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
FIELD = re.compile(r"^(Package|Provides):(.*(?:\n[ \t].*)*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package to install: what APT calls its file, what it must be, where it comes from."""

    name: str
    sha256: str
    size: int
    uri: str


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What has to be installed over the base.

    `names` are those of all packages that the answer could depend on, `own` is what the pocket
    had of them (see `own_packages`), and `made` when APT checked the mirrors' signatures.
    """

    packages: tuple[Package, ...]
    names: frozenset[str]
    own: str
    made: float


def key(base: str, request: str, room: Room, releases: Iterable[str]) -> str:
    """The name of a resolution: SHA-256 over all but what the pocket has.

    `request` is the very text that APT answers, `releases` the SHA-256 of what signs each mirror.
    """
    pocket = room.pocket and (room.pocket.directory, room.pocket.codename, room.pocket.components)
    parts = (FORMAT, base, request, room.profiles, room.options, room.sources)
    text = json.dumps([*parts, room.extra_sources, pocket, sorted(releases)])
    return hashlib.sha256(text.encode()).hexdigest()


def own_packages(pocket: PocketSource | None, names: frozenset[str]) -> str:
    """SHA-256 over what the pocket's indices say of packages that have or provide such a name."""
    digest = hashlib.sha256()
    for stanza in _stanzas(pocket) if pocket else ():
        said = "".join(match[2] for match in FIELD.finditer(stanza))
        if not names.isdisjoint(NAME.findall(said)):
            digest.update(f"{stanza}\n\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stanzas(pocket: PocketSource) -> Iterator[str]:
    dists = Path(pocket.directory, pocket.publication, "dists", pocket.codename)
    for index in sorted(dists.glob("*/binary-*/Packages")):
        yield from index.read_text("utf-8", "surrogateescape").split("\n\n")


def find(store: Path, name: str) -> Resolution | None:
    """The resolution of this name, if there is one that is whole."""
    path = store / f"{name}.json"
    try:
        value = files.read_json(path)
        os.utime(path)
        return Resolution(
            packages=tuple(Package(**p) for p in value["packages"]),
            names=frozenset(value["names"]),
            own=value["own"],
            made=float(value["made"]),
        )
    except (FileNotFoundError, Malformed, KeyError, TypeError, ValueError):
        return None


def keep(store: Path, name: str, resolution: Resolution) -> None:
    """Write a resolution down, and forget the least recently used ones."""
    store.mkdir(exist_ok=True, mode=0o711)
    value: dict[str, Any] = asdict(resolution)
    files.write_json(store / f"{name}.json", {**value, "names": sorted(resolution.names)})
    found = []
    for path in store.iterdir():
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    for _, path in sorted(found, reverse=True)[KEPT:]:
        path.unlink(missing_ok=True)
    for when, path in found:
        # What a killed writer has left.
        if path.name.startswith(".") and time.time() - when > LEFT_OVER:
            path.unlink(missing_ok=True)


def forget(store: Path, name: str) -> None:
    """Remove a resolution that turned out to be of no use."""
    (store / f"{name}.json").unlink(missing_ok=True)
