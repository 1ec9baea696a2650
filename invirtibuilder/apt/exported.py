"""Whether what reprepro exported differs from what is published by what was to change, and no more.

A package that takes reprepro over while it is added can write what it likes into the pocket's
indices, and so into what is signed next. Here each paragraph is that of the publication before,
letter for letter, or one of a file that was to come; and none is gone but those that were to go.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder import files, model
from invirtibuilder.errors import MachineFault, PackageFault

INDEX_LIMIT = 1 << 30
END = b"\n\n"
_FIELD = re.compile(r"^([^\s:][^:\n]*):[ \t]*(.*(?:\n[ \t].*)*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What was to change: sources that were exchanged, and files that came, with their SHA-256.

    `taken` are the binary packages that may have come from another source.
    """

    sources: Collection[str]
    added: Mapping[str, str]
    taken: Collection[str] = ()

    def prove(self, dist: Path, before: Path | None) -> None:
        """Compare `dist` with that of the publication before.

        Raises MachineFault, and PackageFault (code binary-clash) for what is another source's.
        """
        names = {str(p.relative_to(dist)) for p in dist.rglob("*") if p.is_file()}
        for name in sorted(names):
            if not known(name):
                raise _wrong(f"an index {model.printable(name)}")
        was = {str(p.relative_to(before)) for p in before.rglob("*")} if before else set()
        for name in sorted(n for n in names | was if n.endswith(("/Packages", "/Sources"))):
            older = _content(before / name) if before else b""
            self._prove_index(name, _content(dist / name), older)

    def _prove_index(self, name: str, now: bytes, before: bytes) -> None:
        new, old = (_paragraphs(part) for part in _changed(now, before))
        coming = [_fields(text) for text in new - old]
        for fields in coming:
            if name.endswith("/Packages"):
                self._prove_binary(fields)
            else:
                self._prove_source(fields)
        replaced = {fields["package"] for fields in coming}
        for text in old - new:
            fields = _fields(text)
            package = fields["package"]
            source = fields.get("source", package).partition(" ")[0]
            if source in self.sources or (package in replaced and package in self.taken):
                continue
            if package in replaced:
                raise clash([f"{package} belongs to {model.printable(source)}"])
            raise _wrong(f"no {model.printable(package)} any more in {name}")

    def _prove_binary(self, fields: Mapping[str, str]) -> None:
        names = ("package", "version", "architecture")
        package, version, architecture = (fields.get(name, "") for name in names)
        folder, _, file = fields.get("filename", "").rpartition("/")
        plain = f"{package}_{model.without_epoch(version)}_{architecture}"
        if file not in (f"{plain}.deb", f"{plain}.udeb") or not folder.startswith("pool/"):
            raise _wrong(f"{model.printable(package)} with the file {model.printable(file)}")
        self._prove_file(file, fields.get("sha256", ""))

    def _prove_source(self, fields: Mapping[str, str]) -> None:
        if fields["package"] not in self.sources:
            raise _wrong(f"the source {model.printable(fields['package'])}")
        for line in fields.get("checksums-sha256", "").split("\n"):
            if words := line.split():
                self._prove_file(words[-1], words[0])

    def _prove_file(self, name: str, sha256: str) -> None:
        if self.added.get(name) != sha256:
            raise _wrong(f"{model.printable(name)} with another content")


def known(name: str) -> bool:
    """Whether reprepro writes an index of this name, with our settings."""
    component, _, rest = name.partition("/")
    folder, _, kind = rest.removeprefix("debian-installer/").partition("/")
    if folder == "source":
        return kind in ("Sources", "Release")
    return bool(component) and folder.startswith("binary-") and kind in ("Packages", "Release")


def published(name: str) -> bool:
    """Whether a publication has an index of this name: one of those, or one compressed by us."""
    plain = name.removesuffix(".gz") if name.endswith(("/Packages.gz", "/Sources.gz")) else name
    return known(plain)


def _changed(now: bytes, before: bytes) -> tuple[bytes, bytes]:
    """Both without the whole paragraphs that they have alike at the beginning and at the end."""
    start = now.rfind(END, 0, _alike(now, before)) + len(END)
    start = start if start >= len(END) else 0
    now, before = now[start:], before[start:]
    same = _alike(now, before, end=True)
    end = now.find(END, len(now) - same)
    rest = len(now) - end - len(END) if end >= 0 else 0
    return now[: len(now) - rest], before[: len(before) - rest]


def _alike(one: bytes, other: bytes, *, end: bool = False) -> int:
    """How many bytes they begin, or end, with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if end:
            same = (
                one[len(one) - middle : len(one) - low]
                == (other[len(other) - middle : len(other) - low])
            )
        else:
            same = one[low:middle] == other[low:middle]
        low, high = (middle, high) if same else (low, middle - 1)
    return low


def _paragraphs(index: bytes) -> set[str]:
    text = index.decode("utf-8", "surrogateescape")
    return {part.strip("\n") for part in text.split("\n\n")} - {""}


def _content(index: Path) -> bytes:
    """An index; nothing when it is not there."""
    try:
        return files.read_capped(index, limit=INDEX_LIMIT)
    except FileNotFoundError:
        return b""


def _fields(text: str) -> dict[str, str]:
    """A paragraph's fields in lower case, each once. Raises MachineFault for any other text."""
    found = list(_matches(text))
    fields = dict(found)
    if len(fields) < len(found) or "package" not in fields or {"\r", "\0"} & set(text):
        raise _wrong(f"a paragraph that is none: {model.printable(text)[:200]}")
    return fields


def _matches(text: str) -> Iterator[tuple[str, str]]:
    end = 0
    for match in _FIELD.finditer(text):
        if text[end : match.start()].strip("\n"):
            break
        end = match.end()
        yield match[1].strip().lower(), match[2]
    if text[end:].strip("\n"):
        raise _wrong(f"a paragraph that is none: {model.printable(text)[:200]}")


def clash(which: Sequence[str]) -> PackageFault:
    """A fault for binary packages that another source has."""
    return PackageFault(
        "binary packages of another source: " + "; ".join(which),
        hint="rename the binary package, or allow the takeover",
        code="binary-clash",
    )


def _wrong(what: str) -> MachineFault:
    return MachineFault(
        f"reprepro exported what nobody asked for: {what}",
        hint="a package may have taken it over; nothing of it is published",
        code="export-differs",
    )
