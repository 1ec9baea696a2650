"""Bases, made by the real mmdebstrap from the machine's own mirror."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder.errors import RoomFault
from invirtibuilder.files import write_json
from invirtibuilder.sandbox import base as bases
from invirtibuilder.sandbox import sources
from invirtibuilder.sandbox.base import Base, BaseSpec, make_base
from invirtibuilder.sandbox.ids import Ids, make_tree
from tests.support.base import Room, proxied, remove_bases


@pytest.fixture
def directory(ids: Ids, tmp_path: Path) -> Iterator[Path]:
    """A directory of bases of the test's own."""
    made = tmp_path / "bases"
    made.mkdir()
    yield made
    remove_bases(ids, made)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "log").open("wb") as file:
        yield file.fileno()


def test_the_root_is_debian_without_anything_of_this_machine(base: Base, ids: Ids) -> None:
    root = base.root
    assert (root / "etc/resolv.conf").read_bytes() == b""
    assert (root / "etc/hostname").read_text() == "build\n"
    assert "localhost" in (root / "etc/hosts").read_text()
    assert "build:x:1000:1000:" in (root / "etc/passwd").read_text()
    assert (root / "var/lib/apt/lists/partial").is_dir()
    assert list((root / "var/cache/apt/archives").glob("*.deb")) == []
    assert [p.name for p in (root / "etc/apt/sources.list.d").iterdir()] == ["base.sources"]
    assert (root / "usr/bin/dpkg-buildpackage").is_file()
    assert (root / "usr/bin/fakeroot").exists() or (root / "usr/bin/fakeroot-sysv").is_file()
    assert root.stat().st_uid == ids.first_uid


def test_the_tools_are_a_layer_of_their_own(base: Base, room: Room) -> None:
    assert not (base.root / "usr/bin/git").exists()
    assert (base.tools / "usr/bin/git").is_file()
    program = "import json, tarfile, lzma, bz2, zlib, hashlib, subprocess"
    room.python(program)
    for tool in ("git", "pristine-tar", "dpkg-source", "xz", "bzip2", "gpgv", "xdelta", "gpg"):
        room.text("sh", "-c", f"command -v {tool}")
    assert room.text("dpkg", "--audit", user="root") == ""


def test_apt_works_in_it_through_the_proxy(room: Room, base_spec: BaseSpec, base: Base) -> None:
    text, allowed = sources.inside(base_spec.sources)
    (room.directory / "x.sources").write_text(text)
    room.with_scratch()
    program = (
        "cat > /etc/apt/sources.list.d/base.sources; apt-get -q update; "
        "apt-get -qy --no-install-recommends install hello; hello"
    )
    with (room.directory / "x.sources").open() as stdin:
        room.text("sh", "-ec", program, user="root", stdin=stdin.fileno(), proxy=proxied(*allowed))
    assert b"Hello, world!" in room.output
    assert not (base.root / "usr/bin/hello").exists()


def test_the_second_caller_has_it_at_once(
    base: Base, base_spec: BaseSpec, base_directory: Path, ids: Ids, log: int, tmp_path: Path
) -> None:
    start = time.monotonic()
    assert make_base(base_spec, base_directory, ids, log=log) == base
    assert time.monotonic() - start < 30
    assert (tmp_path / "log").read_bytes() == b""


def test_the_key_is_of_all_that_a_base_is_made_from(base_spec: BaseSpec) -> None:
    keys = {
        base_spec.key,
        replace(base_spec, suite="other").key,
        replace(base_spec, architecture="other").key,
        replace(base_spec, sources=base_spec.sources + " ").key,
        replace(base_spec, keys={"a": "b"}).key,
        replace(base_spec, include=()).key,
        replace(base_spec, tools=()).key,
    }
    assert len(keys) == 7


def test_a_mirror_that_fails_leaves_nothing(ids: Ids, directory: Path, log: int) -> None:
    spec = BaseSpec(
        suite="stable",
        architecture="amd64",
        sources="Types: deb\nURIs: http://127.0.0.1:1/debian\nSuites: stable\nComponents: main\n",
    )
    place = directory / spec.key
    (place / ".new-crashed").mkdir(parents=True)
    make_tree(ids, place / ".new-crashed/root")
    (place / "current").symlink_to(".new-crashed")
    assert bases.current(spec, directory) is None
    with pytest.raises(RoomFault, match="mmdebstrap made no base of stable"):
        make_base(spec, directory, ids, log=log)
    # The log tells which mirror, and what is wrong with it.
    said = (directory.parent / "log").read_text()
    assert re.search("Failed to fetch http://127.0.0.1:1/debian/.*Connection refused", said)
    assert [p.name for p in place.iterdir()] == ["current"]
    assert bases.current(spec, directory) is None


def test_two_callers_refresh_it_once_and_the_old_one_stays(
    ids: Ids, directory: Path, base_spec: BaseSpec, base: Base, log: int
) -> None:
    spec = replace(base_spec, tools=("bzip2",), keys={"team.asc": "a key\n"})
    old = directory / spec.key / "old"
    old.mkdir(parents=True)
    make_tree(ids, old / "root")
    make_tree(ids, old / "tools")
    write_json(old / "base.json", {"digest": "0" * 64, "made": "2026-01-01T00:00:00.000Z"})
    (old.parent / "current").symlink_to("old")
    assert make_base(spec, directory, ids, log=log).directory == old

    other = os.fork()
    if other == 0:
        try:
            make_base(spec, directory, ids, log=log, refresh=True)
            os._exit(0)
        finally:
            os._exit(1)
    made = make_base(spec, directory, ids, log=log, refresh=True)
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    names = {p.name for p in old.parent.iterdir()}
    assert names == {"old", "current", made.directory.name}
    assert (made.root / "etc/apt/keyrings/team.asc").read_text() == "a key\n"
    assert made.digest != base.digest


class TestSources:
    TEXT = (
        "Types: deb\nURIs: https://a.example/debian http://b.example:81/x\nSuites: s\n"
        "Signed-By: team.asc\n\n"
        "Types: deb\nURIs: file:///pocket\nSuites: s\nSigned-By: debian-archive-keyring.gpg\n"
    )

    def test_only_the_scheme_changes_for_inside(self) -> None:
        text, allowed = sources.inside(self.TEXT)
        assert "http://a.example/debian http://b.example:81/x" in text
        assert "file:///pocket" in text
        assert allowed == {("a.example", 80, "https"), ("b.example", 81, "http")}

    def test_keys_are_found_by_name(self) -> None:
        text = sources.with_keys(self.TEXT, frozenset({"team.asc"}))
        assert sources.keyrings(text) == (
            "/etc/apt/keyrings/team.asc",
            "/usr/share/keyrings/debian-archive-keyring.gpg",
        )

    def test_a_key_written_out_stays(self) -> None:
        text = (
            "Types: deb\nURIs: http://a.example/\nSuites: s\nSigned-By:\n"
            " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n /9j\n -----END PGP PUBLIC KEY BLOCK-----\n"
        )
        assert sources.with_keys(text, frozenset()) == text
        assert sources.keyrings(text) == ()
