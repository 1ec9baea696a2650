"""`.dsc` and `.buildinfo` read as hostile text, and the `.changes` that we write ourselves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from invirtibuilder import model
from invirtibuilder.errors import Malformed, PackageFault

MAX_CONTROL = 4 << 20
MAX_FILES = 500
MAX_BINARIES = 2000

FIELD = re.compile(r"([!-9;-~]+):[ \t]*(.*)")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
HEX = {"md5": 32, "sha1": 40, "sha256": 64}
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_+-]{0,99}")
RELATIONS = (
    "build-depends",
    "build-depends-arch",
    "build-depends-indep",
    "build-conflicts",
    "build-conflicts-arch",
    "build-conflicts-indep",
)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file that a `.dsc` or `.buildinfo` names; `size` is in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of Package-List: a binary package that the source says it builds."""

    name: str
    kind: str
    section: str
    priority: str


@dataclass(frozen=True, kw_only=True)
class Dsc:
    """What a source package's control file says."""

    source: str
    version: str
    format: str
    architecture: tuple[str, ...]
    binaries: tuple[str, ...]
    files: tuple[SourceFile, ...]
    maintainer: str = ""
    relations: Mapping[str, str]
    packages: tuple[Listed, ...] = ()

    @property
    def build_depends(self) -> str:
        """The field Build-Depends on one line, or ""."""
        return self.relations.get("build-depends", "")


@dataclass(frozen=True, kw_only=True)
class BuildInfo:
    """What a `.buildinfo` says. `source_version` is the source's, `version` the binaries'."""

    source: str
    source_version: str
    version: str
    architecture: tuple[str, ...]
    binaries: tuple[str, ...]
    files: tuple[SourceFile, ...]
    installed: tuple[str, ...] = ()


def paragraph(data: bytes) -> dict[str, str]:
    """The fields of the one paragraph of a control file, names in lower case.

    A clear-signed file's signature is taken off, not checked. Continuation lines stay, joined
    with newlines. Raises Malformed (code `bad-control-file`) for anything that is not UTF-8, has
    control characters, a second paragraph, a field twice, or more than 4 MiB.
    """
    if len(data) > MAX_CONTROL:
        raise _bad(0, f"larger than {MAX_CONTROL} bytes")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise _bad(0, "not UTF-8") from error
    fields: dict[str, str] = {}
    name, ended = "", False
    for number, line in enumerate(_unsigned(lines), 1):
        if CONTROL.search(line):
            raise _bad(number, "a control character")
        if not line.strip():
            ended = ended or bool(fields)
        elif ended:
            raise _bad(number, "more than one paragraph")
        elif line[0] in " \t":
            if not name:
                raise _bad(number, "a continuation of nothing")
            fields[name] += "\n" + line.strip()
        else:
            match = FIELD.fullmatch(line.rstrip())
            if not match or match[1].lower() in fields:
                raise _bad(number, "a field twice" if match else "not a field")
            name = match[1].lower()
            fields[name] = match[2].strip()
    return fields


def _unsigned(lines: list[str]) -> list[str]:
    if lines[0].rstrip() != "-----BEGIN PGP SIGNED MESSAGE-----":
        return lines
    try:
        end = next(n for n, line in enumerate(lines) if line.startswith("-----BEGIN PGP SIGNATURE"))
        start = next(n for n, line in enumerate(lines) if not line.strip()) + 1
        tail = next(n for n, line in enumerate(lines) if line.startswith("-----END PGP SIGNATURE"))
    except StopIteration as error:
        raise _bad(0, "a signed message that does not end") from error
    if not start <= end < tail or any(line.strip() for line in lines[tail + 1 :]):
        raise _bad(tail + 1, "text outside the signed message")
    return [line.removeprefix("- ") for line in lines[start:end]]


def parse_dsc(data: bytes) -> Dsc:
    """The content of a `.dsc`, signed or not. Raises Malformed."""
    fields = paragraph(data)
    binaries = [name.strip() for name in _need(fields, "binary").replace("\n", " ").split(",")]
    return Dsc(
        source=model.package_name(_need(fields, "source")),
        version=model.version(_need(fields, "version")),
        format=_need(fields, "format"),
        architecture=_architectures(_need(fields, "architecture")),
        binaries=tuple(model.package_name(name) for name in binaries[:MAX_BINARIES]),
        files=_files(fields, also=("files", "checksums-sha1")),
        maintainer=fields.get("maintainer", "").replace("\n", " "),
        relations={
            name: fields[name].replace("\n", " ").strip() for name in RELATIONS if name in fields
        },
        packages=_package_list(fields.get("package-list", "")),
    )


def parse_buildinfo(data: bytes) -> BuildInfo:
    """The content of a `.buildinfo`, signed or not. Raises Malformed."""
    fields = paragraph(data)
    version = model.version(_need(fields, "version"))
    match = re.fullmatch(r"(\S+)(?: \((\S+)\))?", _need(fields, "source"))
    if not match:
        raise _bad(0, "Source is not `name` or `name (version)`")
    installed = fields.get("installed-build-depends", "").split("\n")
    return BuildInfo(
        source=model.package_name(match[1]),
        source_version=model.version(match[2] or version),
        version=version,
        architecture=_architectures(_need(fields, "architecture")),
        binaries=tuple(model.package_name(name) for name in fields.get("binary", "").split()),
        files=_files(fields, also=("checksums-md5",)),
        installed=tuple(line.strip().rstrip(",") for line in installed if line.strip()),
    )


def _need(fields: Mapping[str, str], name: str) -> str:
    if not fields.get(name):
        raise _bad(0, f"no field {name}")
    return fields[name]


def _bad(number: int, why: str) -> Malformed:
    where = f"line {number}: " if number else ""
    return Malformed(f"not a Debian control file: {where}{why}", code="bad-control-file")


def _architectures(text: str) -> tuple[str, ...]:
    return tuple(
        model.matching(model.ARCHITECTURE, word, "architecture") for word in text.split()[:100]
    )


def _files(fields: Mapping[str, str], *, also: Iterable[str]) -> tuple[SourceFile, ...]:
    files = _checksums(_need(fields, "checksums-sha256"), HEX["sha256"])
    for name in also:
        digits = HEX["sha1"] if name.endswith("sha1") else HEX["md5"]
        if name in fields and {
            (file.name, file.size) for file in _checksums(fields[name], digits)
        } != {(file.name, file.size) for file in files}:
            raise _bad(0, f"{name} and checksums-sha256 name different files")
    return files


def _checksums(text: str, digits: int) -> tuple[SourceFile, ...]:
    files: dict[str, SourceFile] = {}
    lines = [line for line in text.split("\n") if line]
    if len(lines) > MAX_FILES:
        raise _bad(0, f"more than {MAX_FILES} files")
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]+) ([0-9]{1,15}) (\S+)", line)
        if not match or len(match[1]) != digits:
            raise _bad(0, "not `checksum size name`")
        name = model.matching(model.FILE_NAME, match[3], "file-name")
        if name in files:
            raise _bad(0, f"{name} twice")
        files[name] = SourceFile(name=name, size=int(match[2]), sha256=match[1])
    return tuple(files.values())


def _package_list(text: str) -> tuple[Listed, ...]:
    listed = []
    for line in [line for line in text.split("\n") if line][:MAX_BINARIES]:
        words = line.split()
        if len(words) < 4 or not all(WORD.fullmatch(word) for word in words[1:4]):
            raise _bad(0, "Package-List is not `name type section priority`")
        listed.append(
            Listed(
                name=model.package_name(words[0]),
                kind=words[1],
                section=words[2],
                priority=words[3],
            )
        )
    return tuple(listed)


@dataclass(frozen=True, kw_only=True)
class _Summed:
    name: str
    size: int
    md5: str
    sha1: str
    sha256: str


def _summed(path: Path) -> _Summed:
    # MD5 and SHA-1 are what the format demands beside SHA-256, not what anything here relies on.
    sums = [hashlib.new(name, usedforsecurity=False) for name in HEX]
    size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            for one in sums:
                one.update(block)
    name = model.matching(model.FILE_NAME, path.name, "file-name")
    md5, sha1, sha256 = (one.hexdigest() for one in sums)
    return _Summed(name=name, size=size, md5=md5, sha1=sha1, sha256=sha256)


def binary_name(file_name: str) -> tuple[str, str, str]:
    """Package, version (without epoch) and architecture of a binary package's file name.

    Raises Malformed.

    >>> binary_name("libfoo1-dbgsym_1.2~rc1-1+b1_amd64.deb")
    ('libfoo1-dbgsym', '1.2~rc1-1+b1', 'amd64')
    """
    match = re.fullmatch(r"([^_]+)_([^_]+)_([^_]+)\.(?:deb|udeb)", file_name)
    if not match:
        raise Malformed(f"not a binary package's file name: {model.printable(file_name)[:200]!r}")
    return (
        model.package_name(match[1]),
        match[2],
        model.matching(model.ARCHITECTURE, match[3], "architecture"),
    )


def changes(
    *,
    dsc: Path,
    binaries: Sequence[Path],
    distribution: str,
    urgency: str,
    maintainer: str,
    changed_by: str,
    date: datetime,
    changes: Sequence[str],
    buildinfo: Path | None = None,
    binary_version: str = "",
) -> bytes:
    """A `.changes` file (format 1.8, unsigned) for a source package with all its files and orig
    tarballs, which lie beside `dsc`, and the binary packages built from it.

    `changes` are the lines of the changelog's top entry. Section and priority come from the
    `.dsc`'s Package-List. With `binary_version` other than the source's it is a binary-only
    upload: `Source` has the source's version in parentheses and the source is left out.
    Raises Malformed for names that do not fit, PackageFault (code `files-differ`) when a source
    file on disk is not the one in the `.dsc`.
    """
    source = parse_dsc(dsc.read_bytes())
    version = binary_version or source.version
    with_source = version == source.version
    named = [binary_name(path.name) for path in binaries]
    summed = _source_files(dsc, source) if with_source else []
    summed += [_summed(path) for path in [*binaries, *([buildinfo] if buildinfo else [])]]
    architectures = {architecture for _, _, architecture in named}
    head = {
        "Format": "1.8",
        "Date": format_datetime(date.astimezone(UTC)),
        "Source": source.source + ("" if with_source else f" ({source.version})"),
        "Binary": " ".join(sorted({name for name, _, _ in named})),
        "Architecture": " ".join((["source"] if with_source else []) + sorted(architectures)),
        "Version": version,
        "Distribution": distribution,
        "Urgency": urgency,
        "Maintainer": maintainer,
        "Changed-By": changed_by,
    }
    lines = [f"{key}: {_one_line(value)}" for key, value in head.items() if value]
    lines += ["Changes:", f" {source.source} ({version}) {distribution}; urgency={urgency}"]
    lines += [f" {model.printable(line.rstrip())}" if line.strip() else " ." for line in changes]
    lines += ["Checksums-Sha1:", *(f" {file.sha1} {file.size} {file.name}" for file in summed)]
    lines += ["Checksums-Sha256:", *(f" {file.sha256} {file.size} {file.name}" for file in summed)]
    lines += ["Files:"]
    for file in summed:
        section, priority = _section(source, file.name)
        lines.append(f" {file.md5} {file.size} {section} {priority} {file.name}")
    return ("\n".join(lines) + "\n").encode()


def _source_files(dsc: Path, source: Dsc) -> list[_Summed]:
    files = [_summed(dsc)] + [_summed(dsc.parent / file.name) for file in source.files]
    on_disk = [(file.name, file.size, file.sha256) for file in files[1:]]
    if on_disk != [(file.name, file.size, file.sha256) for file in source.files]:
        raise PackageFault(
            f"the files beside {dsc.name} are not those it names", code="files-differ"
        )
    return files


def _section(source: Dsc, file_name: str) -> tuple[str, str]:
    """Section and priority as dpkg-genchanges gives them; reprepro wants both for each file."""
    of_source = (
        (source.packages[0].section, "optional") if source.packages else ("misc", "optional")
    )
    if not file_name.endswith((".deb", ".udeb")):
        return of_source
    name = binary_name(file_name)[0]
    if name.endswith("-dbgsym"):
        return "debug", "optional"
    listed = {package.name: package for package in source.packages}
    if name not in listed:
        return of_source
    return listed[name].section, listed[name].priority


def _one_line(text: str) -> str:
    return model.printable(text.strip())
