"""inside/export.py on what it must refuse: each with its code, and the paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.debchanges import parse_dsc
from tests.support.exporting import export
from tests.support.packages import Repo, commit, debian, entry, git, native, write
from tests.support.sources import (
    UPSTREAM,
    lfs_pointer,
    link,
    quilt,
    submodule,
    tarball,
    with_tree_entry,
)


def test_version_that_the_changelog_does_not_have_is_refused(tmp_path: Path) -> None:
    made = export(tmp_path / "work", native(tmp_path / "repo"), version="1.1")
    assert made.codes == {"bad-changelog"}


def changed(path: str, content: str | bytes) -> Callable[[Path], Repo]:
    return lambda directory: quilt(directory, files={path: content})


def with_options(text: str, **files: str) -> Callable[[Path], Repo]:
    more = {name.replace("__", "/"): content for name, content in files.items()}
    return lambda directory: quilt(directory, files={"debian/source/options": text, **more})


def one(files: Mapping[str, str | bytes]) -> Callable[[Path], Repo]:
    return lambda path: quilt(path, source_format="1.0", patched=False, files=files)


REFUSED: dict[str, tuple[Callable[[Path], Repo], str, str]] = {
    "changed upstream file": (changed("src/greet.c", "int main;\n"), "upstream-changes", "greet.c"),
    "new upstream file": (changed("extra.c", "int x;\n"), "upstream-changes", "extra.c"),
    "changed binary": (changed("logo.bin", b"\0\1" * 99), "unrepresentable", "logo.bin"),
    "changed .gitignore": (
        lambda path: quilt(
            path,
            upstream={**UPSTREAM, ".gitignore": "*.o\n"},
            files={".gitignore": "*.o\ndebian/files\n"},
        ),
        "unfaithful-changed",
        ".gitignore",
    ),
    "deleted upstream file": (
        lambda path: quilt(path, removed=["src/greet.c"]),
        "unfaithful-restored",
        "src/greet.c",
    ),
    "lost executable bit": (
        lambda path: quilt(path, files={"configure": "exit 0\n"}),
        "u",
        "configure",
    ),
    "submodule": (submodule, "submodule", "src/module"),
    "git-lfs": (changed("data.bin", lfs_pointer()), "git-lfs", "data.bin"),
    "3.0 (git)": (
        lambda path: native(path, files={"debian/source/format": "3.0 (git)\n"}),
        "unsupported-format",
        "3.0 (git)",
    ),
    "2.0": (changed("debian/source/format", "2.0\n"), "unsupported-format", "2.0"),
    "custom": (changed("debian/source/format", "3.0 (custom)\n"), "unsupported-format", "custom"),
    "native with revision": (
        lambda path: native(path, version="1.0-1"),
        "dpkg-source",
        "may not have a revision",
    ),
    "auto-commit": (with_options("auto-commit\n", extra="new\n"), "unfaithful-", "debian-changes"),
    "patch that does not apply": (
        with_options("auto-commit\n", greeting="other\n"),
        "patch-fails",
        "greet.patch",
    ),
    "single-debian-patch": (
        with_options("single-debian-patch\n", extra="new\n"),
        "unfaithful-",
        "debian/patches/",
    ),
    "diff-ignore": (
        with_options('extend-diff-ignore = "^(extra|greeting)$"\n', extra="new\n"),
        "unfaithful-dropped",
        "extra",
    ),
    "tar-ignore": (
        with_options("tar-ignore = debian/copyright\n"),
        "unfaithful-dropped",
        "debian/copyright",
    ),
    "unknown compression": (with_options("compression = zstd\n"), "dpkg-source", ""),
    "1.0 with a changed binary": (one({"logo.bin": b"\0\2" * 9}), "unrepresentable", "logo.bin"),
    "1.0 with an executable": (one({"tool": "#!/bin/sh\n"}), "unfaithful-changed", "tool"),
    "1.0 with a link": (
        lambda path: link(one({})(path), "alias", "greeting"),
        "unrepresentable",
        "alias",
    ),
    "object file in a native package": (
        lambda path: native(path, files={"data/test.o": "x", ".mailmap": "x"}),
        "unfaithful-dropped",
        ".mailmap, data/test.o",
    ),
    "changelog is a link": (
        lambda path: link(native(path), "debian/changelog", "../greeting"),
        "no-changelog",
        "debian/changelog",
    ),
    "debian is a link": (
        lambda path: link(native(path), "debian", "debian.was"),
        "no-changelog",
        "debian/changelog",
    ),
    "link out of debian": (
        lambda path: link(native(path), "debian/install", "/etc/passwd"),
        "dpkg-source",
        "'debian/install' points outside",
    ),
    "garbage for a changelog": (
        lambda path: native(path, files={"debian/changelog": os.urandom(999)}),
        "bad-changelog",
        "",
    ),
    "patch that leaves the tree": (
        changed(
            "debian/patches/greet.patch",
            "--- a/../../../../tmp/x\n+++ b/../../../../tmp/x\n@@ -0,0 +1 @@\n+evil\n",
        ),
        "dpkg-source",
        "",
    ),
}


@pytest.mark.parametrize(
    "options", ["-DVersion=9.9-1", "-DSource=../evil", "-ldebian/other", "--no-check", "--bogus"]
)
def test_options_that_change_nothing(tmp_path: Path, options: str) -> None:
    files = {"debian/source/options": options + "\n", "debian/other": entry("greet", "7-1")}
    made = export(tmp_path / "work", quilt(tmp_path / "repo", files=files))
    assert made.report["ok"], made.report
    assert parse_dsc(made.dsc.read_bytes()).version == "1.0-1"


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_paths(tmp_path: Path, case: str) -> None:
    maker, code, text = REFUSED[case]
    made = export(tmp_path / "work", maker(tmp_path / "repo"))
    assert not made.report["ok"]
    assert all(found.startswith(code) for found in made.codes), made.report
    assert text in made.messages, made.report
    assert os.listdir(made.out) == ["report.json"]


@pytest.mark.parametrize("name", ["..", ".", ".git", ".GIT", "greeting", "debian"])
def test_paths_that_no_tree_can_have(tmp_path: Path, name: str) -> None:
    repo = with_tree_entry(native(tmp_path / "repo"), "120000", name, b"/etc")
    made = export(tmp_path / "work", repo)
    assert made.codes <= {"bad-tree", "bad-bundle"}, made.report
    assert made.codes


def test_a_stored_tarball_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    other = {**UPSTREAM, "src/greet.c": "int other;\n"}
    orig = tarball(tmp_path / "store", "greet_1.0.orig.tar.xz", "greet-1.0", other)
    made = export(tmp_path / "work", quilt(tmp_path / "repo"), store=[orig])
    assert made.codes == {"upstream-changes"}
    assert "src/greet.c" in made.messages
    assert "+ds" in made.report["reasons"][0]["hint"]


def test_no_upstream_tarball_at_all(tmp_path: Path) -> None:
    repo = quilt(tmp_path / "repo")
    git(repo.path, "tag", "-d", "upstream/1.0")
    made = export(tmp_path / "work", repo)
    assert made.codes == {"no-orig"}
    assert "upstream/1.0" in made.report["reasons"][0]["hint"]


def test_hostile_pristine_tar_branch(tmp_path: Path) -> None:
    repo = quilt(tmp_path / "repo")
    tree = git(repo.path, "rev-parse", "upstream^{tree}")
    git(repo.path, "checkout", "--quiet", "--orphan", "pristine-tar")
    git(repo.path, "rm", "-r", "--quiet", "--force", ".")
    delta, name = b"\x1f\x8b$(touch /tmp/pwned)", "greet_1.0.orig.tar.gz"
    write(repo.path, {f"{name}.delta": delta, f"{name}.id": f"{tree}\n"})
    commit(repo.path)
    made = export(tmp_path / "work", repo)
    assert made.codes == {"pristine-tar"}
    write(repo.path, {f"{name}.id": "'; touch /tmp/pwned; '\n"})
    commit(repo.path)
    made = export(tmp_path / "again", repo)
    assert made.codes == {"pristine-tar"}
    assert not Path("/tmp/pwned").exists()


def test_a_tree_without_end(tmp_path: Path) -> None:
    """Ten trees of ten times the next one are ten thousand million files."""
    repo = native(tmp_path / "repo")
    oid = git(repo.path, "hash-object", "-w", "--stdin", stdin=b"x")
    kind = "100644 blob"
    for _ in range(10):
        listing = "".join(f"{kind} {oid}\tsome-name-{n}\n" for n in range(10))
        oid = git(repo.path, "mktree", stdin=listing.encode())
        kind = "040000 tree"
    listing = git(repo.path, "ls-tree", "HEAD") + f"\n040000 tree {oid}\tzz-bomb\n"
    tree = git(repo.path, "mktree", stdin=listing.encode())
    made = git(repo.path, "commit-tree", tree, "-p", repo.commit, "-m", "Bomb")
    done = export(tmp_path / "work", replace(repo, commit=made))
    assert done.codes == {"bad-tree"}
    assert "too many files" in done.messages


def test_a_link_that_is_a_large_file(tmp_path: Path) -> None:
    repo = with_tree_entry(native(tmp_path / "repo"), "120000", "link", b"x" * 5000)
    assert export(tmp_path / "work", repo).codes == {"bad-tree"}


def test_a_pristine_tar_id_that_is_a_large_file(tmp_path: Path) -> None:
    repo = quilt(tmp_path / "repo")
    git(repo.path, "checkout", "--quiet", "--orphan", "pristine-tar")
    git(repo.path, "rm", "-r", "--quiet", "--force", ".")
    name = "greet_1.0.orig.tar.gz"
    write(repo.path, {f"{name}.delta": b"x", f"{name}.id": b"0" * (2 << 20)})
    commit(repo.path)
    made = export(tmp_path / "work", repo)
    assert made.codes == {"pristine-tar"}


@pytest.mark.parametrize(
    "order",
    [
        {"commit": "1" * 40},
        {"pristine_tar": "2" * 40},
        {"upstream_tag": {"name": "upstream/1", "object": "3" * 40, "commit": "3" * 40}},
    ],
)
def test_bundle_that_is_not_what_the_order_says(tmp_path: Path, order: dict[str, Any]) -> None:
    made = export(tmp_path / "work", native(tmp_path / "repo"), **order)
    assert made.codes == {"bad-bundle"}


def test_empty_debian_directory(tmp_path: Path) -> None:
    repo = native(tmp_path / "repo")
    for name in debian("greet", "1.0"):
        (repo.path / name).unlink()
    made = export(tmp_path / "work", replace(repo, commit=commit(repo.path)))
    assert made.codes == {"no-changelog"}
