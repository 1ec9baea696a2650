"""The binary packages of an APT index, as far as their dependencies go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debian.deb822 import Packages

from invirtibuilder import model
from invirtibuilder.run import run

Alternative = tuple[str, str, str]  # name, relation (or nothing), version (or nothing)


@dataclass(frozen=True, kw_only=True)
class BinaryPackage:
    """One stanza: `needs` are Pre-Depends and Depends, each a list of alternatives."""

    name: str
    version: str
    source: str
    provides: tuple[tuple[str, str], ...]  # name and version, or nothing
    needs: tuple[tuple[Alternative, ...], ...]
    rivals: frozenset[str] = frozenset()  # the names in Breaks and Conflicts
    stanza: str = ""


def read_packages(path: Path) -> list[BinaryPackage]:
    """All stanzas of an uncompressed Packages file."""
    found = []
    for stanza in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        for paragraph in Packages.iter_paragraphs(stanza.strip("\n"), use_apt_pkg=False):
            found.append(_binary(paragraph, stanza.strip("\n")))
    return found


def sources_of(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Of these binary packages, as far as an uncompressed Packages file has them, the sources.

    Only their stanzas are parsed: an index may have many.
    """
    text = b"\n" + path.read_bytes()
    found = {}
    for name in names:
        at = text.find(b"\nPackage: %s\n" % name.encode())
        if at >= 0:
            begin, end = text.rfind(b"\n\n", 0, at + 1) + 1, text.find(b"\n\n", at)
            stanza = text[begin : end if end >= 0 else None].strip()
            for paragraph in Packages.iter_paragraphs(stanza, use_apt_pkg=False):
                found[name] = str(paragraph.get("Source", name)).partition(" ")[0]
    return found


def _binary(paragraph: Packages, stanza: str) -> BinaryPackage:
    relations: Any = paragraph.relations
    needs = [*relations["pre-depends"], *relations["depends"]]
    provides = [_alternative(a) for group in relations["provides"] for a in group]
    rivals = [a for key in ("breaks", "conflicts") for group in relations[key] for a in group]
    name = str(paragraph["Package"])
    return BinaryPackage(
        name=name,
        version=str(paragraph["Version"]),
        source=str(paragraph.get("Source", name)).partition(" ")[0],
        provides=tuple((of, version) for of, _, version in provides),
        needs=tuple(tuple(_alternative(a) for a in group) for group in needs),
        rivals=frozenset(str(a["name"]) for a in rivals),
        stanza=stanza,
    )


def _alternative(found: dict[str, object]) -> Alternative:
    version = found.get("version")
    relation, of = version if isinstance(version, tuple) else ("", "")
    return str(found["name"]), str(relation), str(of)


def known_versions(names: Sequence[str], suite: str) -> Iterable[tuple[str, str]]:
    """Names and versions that this machine's APT knows of a suite, its updates and security."""
    asked = [name for name in names if model.PACKAGE.fullmatch(name)]
    if not asked:
        return []
    done = run(["apt-cache", "madison", "--", *asked], check=False)
    rows = [line.split("|") for line in done.text.splitlines()]
    suites = {suite, f"{suite}-updates", f"{suite}-security"}
    return [
        (row[0].strip(), row[1].strip())
        for row in rows
        if len(row) == 3 and any(word.partition("/")[0] in suites for word in row[2].split())
    ]
