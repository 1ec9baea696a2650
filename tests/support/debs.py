"""Uploads (.dsc, .deb, .changes) made in milliseconds without a build, and a real signing key."""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from debian.deb822 import Deb822

from invirtibuilder.apt import signer
from invirtibuilder.apt.exchange import Exchange
from invirtibuilder.apt.exported import Expected
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.model import without_epoch
from invirtibuilder.run import run

PERSON = "Ada Test <ada@example.org>"


@dataclass(frozen=True, kw_only=True)
class Binary:
    """A binary package of an upload; its version is the source's unless given.

    `fields` are further lines of its control file.
    """

    name: str
    architecture: str = "all"
    udeb: bool = False
    version: str = ""
    fields: str = ""


@contextlib.contextmanager
def signing_key() -> Iterator[signer.GpgSigner]:
    """A real key in a short path (a socket's name has 108 bytes at most), its agent ended."""
    with tempfile.TemporaryDirectory(prefix="key-") as folder:
        home = Path(folder, "gnupg")
        key = signer.create_key(home, "Test Archive", "archive@example.org")
        using = signer.GpgSigner(gnupghome=home, key=key)
        try:
            yield using
        finally:
            using.close()


def machine_architecture() -> str:
    """The architecture that this machine's apt-get downloads."""
    return run(["dpkg", "--print-architecture"]).text


def upload(
    folder: Path,
    source: str,
    version: str,
    *,
    binaries: Sequence[Binary] = (),
    distribution: str = "dev",
    content: str = "",
    section: str = "misc",
) -> Path:
    """Make a native upload in `folder` and return its .changes; `content` varies the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    binaries = binaries or (Binary(name=source),)
    names = [b.name for b in binaries]
    tar = _tarball(folder, source, version, content)
    dsc = folder / f"{source}_{without_epoch(version)}.dsc"
    head = f"Format: 3.0 (native)\nSource: {source}\nBinary: {', '.join(names)}\n"
    head += f"Architecture: any all\nVersion: {version}\nMaintainer: {PERSON}\n"
    dsc.write_text(head + checksums([tar]))
    debs = [deb(folder, b, source, version, content) for b in binaries]
    changes = dsc.with_suffix(".changes")
    kinds = " ".join(sorted({"source", *(b.architecture for b in binaries)}))
    changes.write_text(
        f"Format: 1.8\nDate: Fri, 02 Jan 2026 03:04:05 +0000\nSource: {source}\n"
        f"Binary: {' '.join(names)}\nArchitecture: {kinds}\nVersion: {version}\n"
        f"Distribution: {distribution}\nUrgency: medium\nMaintainer: {PERSON}\n"
        f"Changed-By: {PERSON}\nDescription:\n {source} - test\n"
        f"Changes:\n {source} ({version}) {distribution}; urgency=medium\n .\n   * Test.\n"
        + checksums([dsc, tar, *debs], f"{section} optional ")
    )
    return changes


def deb(folder: Path, binary: Binary, source: str, version: str, content: str = "") -> Path:
    """A binary package with one file, of `content`."""
    own = binary.version or version
    tree = folder / "tree" / binary.name
    data = tree / "usr" / "share" / binary.name / "content"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(f"{own} {content}\n")
    (tree / "DEBIAN").mkdir(exist_ok=True)
    (tree / "DEBIAN").chmod(0o755)
    of = "" if (source, version) == (binary.name, own) else f"Source: {source} ({version})\n"
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {binary.name}\n{of}Version: {own}\nArchitecture: {binary.architecture}\n"
        f"Maintainer: {PERSON}\nDescription: test\n"
        + binary.fields
        + ("Package-Type: udeb\nSection: debian-installer\n" if binary.udeb else "")
    )
    ending = "udeb" if binary.udeb else "deb"
    path = folder / f"{binary.name}_{without_epoch(own)}_{binary.architecture}.{ending}"
    run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, path],
        env={"SOURCE_DATE_EPOCH": "1750000000"},
    )
    return path


def checksums(paths: Sequence[Path], section: str = "") -> str:
    """The three checksum fields of a .dsc, or with `section` ("misc optional ") a .changes."""
    fields = (("Checksums-Sha1", "sha1", ""), ("Checksums-Sha256", "sha256", ""))
    text = ""
    for field, digest, extra in (*fields, ("Files", "md5", section)):
        text += f"{field}:\n"
        for path in paths:
            data = path.read_bytes()
            text += f" {hashlib.new(digest, data).hexdigest()} {len(data)} {extra}{path.name}\n"
    return text


def _tarball(folder: Path, source: str, version: str, content: str) -> Path:
    raw = io.BytesIO()
    data = f"{version} {content}\n".encode()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo(f"{source}/content")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    path = folder / f"{source}_{without_epoch(version)}.tar.xz"
    path.write_bytes(lzma.compress(raw.getvalue()))
    return path


def exchange(
    archive: Reprepro,
    *uploads: Path,
    lock_fd: int,
    gone: Collection[str] = (),
    upgraded: Collection[str] = (),
    take_over: bool = False,
) -> Expected:
    """What the line does with these .changes in an open transaction, and with what is to go.

    Says what may differ in what is exported then.
    """
    told = [Deb822(path.read_text()) for path in uploads]
    coming = {each["Source"]: each["Binary"].split() for each in told}
    done = Exchange(
        archive,
        {**dict.fromkeys(gone, ()), **coming},
        upgraded=upgraded,
        take_over=take_over,
        lock_fd=lock_fd,
    )
    for path, each in zip(uploads, told, strict=True):
        done.add(path, each["Source"], each["Version"])
    done.prove()
    return done.expected
