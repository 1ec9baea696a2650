"""The .changes that we write, with files that dpkg made: the real reprepro includes them."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from invirtibuilder.debchanges import changes, parse_buildinfo, parse_dsc
from invirtibuilder.errors import PackageFault
from invirtibuilder.run import run
from tests.support.exporting import export
from tests.support.packages import Repo, native
from tests.support.sources import pristine

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

# A library with a version of its own, as `dpkg-gencontrol -v` makes it.
OWN_VERSION = """\
#!/usr/bin/make -f
build build-arch build-indep clean binary-arch:
binary-indep binary:
	mkdir -p debian/greet/DEBIAN debian/libgreet/DEBIAN
	dpkg-gencontrol -pgreet -Pdebian/greet
	dpkg-gencontrol -plibgreet -Pdebian/libgreet -v7:3.1
	dpkg-deb --root-owner-group --build debian/greet ..
	dpkg-deb --root-owner-group --build debian/libgreet ..
"""


def built(tmp_path: Path, repo: Repo) -> tuple[Path, list[Path], Path]:
    """The package exported and built: .dsc, binary packages, .buildinfo."""
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    tree = tmp_path / "build/tree"
    tree.parent.mkdir()
    run(["dpkg-source", "--no-copy", "-x", made.dsc, tree])
    run(["dpkg-buildpackage", "-b", "-us", "-uc", "-d"], cwd=tree)
    (info,) = tree.parent.glob("*.buildinfo")
    return made.dsc, sorted(tree.parent.glob("*.deb")), info


def written(
    tmp_path: Path, dsc: Path, binaries: list[Path], info: Path | None, version: str = ""
) -> Path:
    """All files in one directory, with the .changes among them."""
    folder = tmp_path / "upload"
    folder.mkdir()
    for path in [p for p in dsc.parent.iterdir() if p.suffix != ".json"] + [
        *binaries,
        *([info] if info else []),
    ]:
        (folder / path.name).write_bytes(path.read_bytes())
    data = changes(
        dsc=folder / dsc.name,
        binaries=[folder / path.name for path in binaries],
        buildinfo=folder / info.name if info else None,
        distribution="dev-hot",
        urgency="medium",
        maintainer="Ada Test <ada@example.org>",
        changed_by="Ädä Test <ada@example.org>",
        date=WHEN,
        changes=["", "  * A change.", "", "  * Evil\x1b[2J."],
        binary_version=version,
    )
    path = folder / "upload.changes"
    path.write_bytes(data)
    return path


def included(tmp_path: Path, upload: Path) -> str:
    """reprepro's list of the codename after it included this and put every file into the pool."""
    base = tmp_path / "archive"
    (base / "conf").mkdir(parents=True)
    (base / "conf/distributions").write_text(
        "Codename: dev-hot\nArchitectures: amd64 arm64 i386 source\nComponents: main\n"
    )
    argv: list[str | Path] = ["reprepro", "--basedir", base]
    run([*argv, "include", "dev-hot", upload])
    pool = {path.name: path for path in (base / "pool").rglob("*") if path.is_file()}
    summed = re.findall(r"^ ([0-9a-f]{64}) [0-9]+ (\S+)$", upload.read_text(), re.M)
    assert summed
    for sha256, name in summed:
        if not name.endswith(".buildinfo"):
            assert hashlib.sha256(pool[name].read_bytes()).hexdigest() == sha256
    return run([*argv, "list", "dev-hot"]).text


def test_reprepro_includes_a_native_package(tmp_path: Path) -> None:
    dsc, debs, info = built(tmp_path, native(tmp_path / "repo", binaries=["greet", "greet-doc"]))
    upload = written(tmp_path, dsc, debs, info)
    listing = included(tmp_path, upload)
    assert "dev-hot|main|source: greet 1.0" in listing
    assert "dev-hot|main|amd64: greet-doc 1.0" in listing
    text = upload.read_text()
    assert "Date: Fri, 02 Jan 2026 03:04:05 +0000\n" in text
    assert "Architecture: source all\n" in text
    assert "Binary: greet greet-doc\n" in text
    assert "\x1b" not in text
    assert parse_buildinfo(info.read_bytes()).binaries == ("greet", "greet-doc")


def test_reprepro_includes_orig_and_signature(tmp_path: Path) -> None:
    repo = pristine(tmp_path / "repo", version="1:1.0-1", components=["doc"], signed=True)
    dsc, debs, info = built(tmp_path, repo)
    listing = included(tmp_path, written(tmp_path, dsc, debs, info))
    assert "dev-hot|main|source: greet 1:1.0-1" in listing
    pool = {path.name for path in (tmp_path / "archive/pool").rglob("*")}
    assert {"greet_1.0.orig.tar.gz.asc", "greet_1.0.orig-doc.tar.gz"} <= pool


def test_reprepro_includes_a_binary_with_its_own_version(tmp_path: Path) -> None:
    files = {"debian/rules": OWN_VERSION}
    repo = native(tmp_path / "repo", binaries=["greet", "libgreet"], files=files)
    dsc, debs, info = built(tmp_path, repo)
    assert [path.name for path in debs] == ["greet_1.0_all.deb", "libgreet_3.1_all.deb"]
    upload = written(tmp_path, dsc, debs, info)
    assert "\nSource: greet\n" in upload.read_text()
    assert "dev-hot|main|amd64: libgreet 7:3.1" in included(tmp_path, upload)


def test_binary_only_rebuild(tmp_path: Path) -> None:
    rules = "\n".join(line for line in OWN_VERSION.split("\n") if "libgreet" not in line)
    rules = rules.replace("clean binary-arch:", "clean binary-arch:\n\ttrue")
    rules = rules.replace("binary:", "binary:\n\tmkdir -p debian/greet/DEBIAN")
    files = {"debian/rules": rules.replace("-pgreet", "-pgreet -v1.0+b1")}
    repo = native(tmp_path / "repo", files=files)
    dsc, debs, _ = built(tmp_path, repo)
    upload = written(tmp_path, dsc, debs, None, version="1.0+b1")
    text = upload.read_text()
    assert "\nSource: greet (1.0)\n" in text
    assert "\nArchitecture: all\n" in text
    assert "dev-hot|main|amd64: greet 1.0+b1" in included(tmp_path, upload)


def test_source_file_that_is_not_the_one_in_the_dsc(tmp_path: Path) -> None:
    made = export(tmp_path / "work", native(tmp_path / "repo"))
    (file,) = parse_dsc(made.dsc.read_bytes()).files
    assert hashlib.sha256((made.out / file.name).read_bytes()).hexdigest() == file.sha256
    (made.out / file.name).write_bytes(b"other")
    with pytest.raises(PackageFault, match="not those it names"):
        written(tmp_path, made.dsc, [], None)
