"""A package takes reprepro over and writes what it likes into the indices: none of it is signed."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import files
from invirtibuilder.apt import exported
from invirtibuilder.apt.exchange import Exchange
from invirtibuilder.apt.exported import Expected
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.errors import MachineFault
from invirtibuilder.states import State
from tests.support import debs
from tests.support.line import Line

MAIN = "main/binary-amd64"
OTHER = """Package: {name}
Version: 9.0
Architecture: amd64
Maintainer: Evil <evil@example.org>
Filename: pool/main/h/hello/{file}
Size: 10
SHA256: {sha256}
Description: evil
"""
EVIL = hashlib.sha256(b"evil").hexdigest()
Taken = Callable[[Path], None]


def packages(dist: Path, change: Callable[[str], str], folder: str = MAIN) -> None:
    """Change the list of packages."""
    path = dist / folder / "Packages"
    path.write_text(change(path.read_text()))


def sources(dist: Path, change: Callable[[str], str]) -> None:
    path = dist / "main/source/Sources"
    path.write_text(change(path.read_text()))


def paragraph(text: str, name: str) -> str:
    return next(part for part in text.split("\n\n") if part.startswith(f"Package: {name}\n"))


def without(text: str, name: str) -> str:
    return text.replace(paragraph(text, name).rstrip("\n") + "\n\n", "")


def more(dist: Path, name: str, content: bytes) -> None:
    path = dist / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def plus(**fields: str) -> Callable[[str], str]:
    values = {"name": "openssh", "file": "openssh_9.0_amd64.deb", "sha256": EVIL, **fields}
    return lambda text: text + OTHER.format(**values) + "\n"


def own(text: str) -> str:
    """The paragraph of the package that came, which is what may be new."""
    return paragraph(text, "hello")


def instead(old: str, new: str, name: str = "hello") -> Callable[[str], str]:
    def change(text: str) -> str:
        before = paragraph(text, name)
        assert re.search(old, before, re.MULTILINE)
        return text.replace(before, re.sub(old, new, before, flags=re.MULTILINE))

    return change


TAKEN: dict[str, Taken] = {
    "another package": lambda d: packages(d, plus()),
    "another package for the installer": lambda d: packages(
        d, plus(file="openssh_9.0_amd64.udeb"), "main/debian-installer/binary-amd64"
    ),
    "its file under another name": lambda d: packages(
        d, lambda t: t + own(t).replace("Package: hello", "Package: openssh").strip("\n") + "\n\n"
    ),
    "another version of it": lambda d: packages(d, instead(r"^Version: .*", "Version: 99")),
    "another architecture of it": lambda d: packages(
        d, instead(r"^Architecture: .*", "Architecture: riscv64")
    ),
    "another content of it": lambda d: packages(d, instead(r"^SHA256: .*", f"SHA256: {EVIL}")),
    "its content elsewhere": lambda d: packages(
        d, instead(r"^Filename: .*/", "Filename: ../../../etc/")
    ),
    "a hash twice": lambda d: packages(
        d, instead(r"^SHA256: .*", rf"\g<0>\nsha256: {EVIL}")
    ),
    "a field that is none": lambda d: packages(d, instead(r"^SHA256: .*", r"\g<0>\nevil")),
    "another's content": lambda d: packages(
        d, instead(r"^SHA256: .*", f"SHA256: {EVIL}", "greet")
    ),
    "another's dependencies": lambda d: packages(
        d, instead(r"^Architecture: .*", r"\g<0>\nDepends: hello", "greet")
    ),
    "another's absence": lambda d: packages(d, lambda t: without(t, "greet")),
    "nothing at all": lambda d: packages(d, lambda t: ""),
    "no list": lambda d: shutil.rmtree(d / MAIN),
    "a twin of its own": lambda d: more(d, f"{MAIN}/Packages.gz", gzip.compress(b"evil\n")),
    "a source more": lambda d: sources(
        d, lambda t: t + paragraph(t, "greet").replace("greet", "openssh").strip("\n") + "\n\n"
    ),
    "another's source": lambda d: sources(
        d, instead(r"^ [0-9a-f]{64} ", f" {EVIL} ", "greet")
    ),
    "another source": lambda d: sources(d, instead(r"^ [0-9a-f]{64} ", f" {EVIL} ")),
    "another's source's absence": lambda d: sources(d, lambda t: without(t, "greet")),
    "a list of another kind": lambda d: more(d, "main/dep11/Components-amd64.yml", b"evil\n"),
    "translations": lambda d: more(d, "main/i18n/Translation-en", b"evil\n"),
    "a compression more": lambda d: more(d, f"{MAIN}/Packages.xz", b"evil\n"),
    "an architecture more": lambda d: more(
        d,
        "main/binary-all/Packages",
        OTHER.format(name="openssh", file="openssh_9.0_all.deb", sha256=EVIL).encode(),
    ),
}  # fmt: skip


def signed_off(dist: Path) -> None:
    """Make Release fit what is there, as whoever writes the indices can."""
    found = sorted(p for p in dist.rglob("*") if p.is_file() and p != dist / "Release")
    lines = []
    for path in found:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        lines.append(f" {digest} {len(data)} {path.relative_to(dist)}\n")
    head = (dist / "Release").read_text().split("MD5Sum:", 1)[0]
    (dist / "Release").write_text(head + "SHA256:\n" + "".join(lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exports:
    """What reprepro exported with greet, and then with hello, too."""

    before: Path
    now: Path
    expected: Expected


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    folder = tmp_path_factory.mktemp("exports")
    archive = Reprepro(
        root=folder / "archive",
        codename="staging",
        components=["main"],
        architectures=["amd64"],
        origin="Example",
        label="Example",
        suite="staging",
        description="An archive",
    )
    archive.create()
    with files.locked(archive.lock, inheritable=True) as lock:
        for name in ("greet", "hello"):
            binaries = [debs.Binary(name=name, architecture="amd64")]
            changes = debs.upload(
                folder / f"{name}.in", name, "1:1.0", binaries=binaries, distribution="staging"
            )
            archive.begin()
            exchange = Exchange(archive, {name: [name]}, lock_fd=lock)
            exchange.add(changes, name, "1:1.0")
            exchange.prove()
            archive.export(lock_fd=lock)
            archive.commit()
            shutil.copytree(archive.private / "dists/staging", folder / name)
            # It is no index.
            (folder / name / "Release").unlink()
    return Exports(before=folder / "greet", now=folder / "hello", expected=exchange.expected)


@pytest.mark.parametrize("how", TAKEN)
def test_nothing_else_may_have_changed(exports: Exports, tmp_path: Path, how: str) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(exports.now, dist)
    exports.expected.prove(dist, exports.before)
    TAKEN[how](dist)
    with pytest.raises(MachineFault) as caught:
        exports.expected.prove(dist, exports.before)
    assert caught.value.code == "export-differs"


def test_what_goes_and_what_is_first(exports: Exports) -> None:
    gone = Expected(sources=["hello"], added={})
    gone.prove(exports.before, exports.now)
    with pytest.raises(MachineFault, match="no hello any more"):
        Expected(sources=["greet"], added={}).prove(exports.before, exports.now)
    with pytest.raises(MachineFault):
        exports.expected.prove(exports.now, None)


def test_what_both_have_is_left_out_and_nothing_else() -> None:
    chance = random.Random(0)

    def index() -> bytes:
        names = sorted(chance.sample("abcdefgh", chance.randint(0, 5)))
        return "".join(f"Package: {n}\nSize: {chance.randint(1, 2)}\n\n" for n in names).encode()

    for _ in range(3000):
        now, before = index(), index()
        new, old = (exported._paragraphs(part) for part in exported._changed(now, before))
        whole = exported._paragraphs(now), exported._paragraphs(before)
        assert (new - old, old - new) == (whole[0] - whole[1], whole[1] - whole[0])


def test_nothing_of_it_is_published(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.package("greet")
    assert line.run(line.job("staging", "greet")).status.state == State.PUBLISHED
    line.package("hello")
    root = line.context.site.archive / "staging"
    before = (root / "dists").readlink()
    real = Reprepro.export

    def export(self: Reprepro, **options: Any) -> None:
        real(self, **options)
        # Not what is tried on a copy, when something is wrong: there is no such thing there.
        if not self.trial:
            packages(self.private / "dists/staging", plus())
            signed_off(self.private / "dists/staging")

    monkeypatch.setattr(Reprepro, "export", export)
    job = line.run(line.job("staging", "hello"))
    assert job.status.state == State.FAILED, job.status
    assert job.status.reasons[0]["code"] == "export-differs"
    assert (root / "dists").readlink() == before
    assert line.context.superproject.pin("staging", "hello") is None
    # The control: nothing but that is in the way.
    monkeypatch.setattr(Reprepro, "export", real)
    assert line.run(line.job("staging", "hello")).status.state == State.PUBLISHED


def test_what_is_published_is_not_reprepros_any_more(line: Line) -> None:
    """What takes it over later can change no index that clients see."""
    line.package("greet")
    line.run(line.job("staging", "greet"))
    root = line.context.site.archive / "staging"
    published = root / "dists/staging" / MAIN / "Packages"
    before = published.read_bytes()
    written = root / "private/dists/staging" / MAIN / "Packages"
    assert written.read_bytes() == before
    with written.open("r+b") as file:
        file.write(b"evil")
    assert published.read_bytes() == before
