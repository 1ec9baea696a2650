"""inside/export.py on real repositories: what comes out is the commit, or there is a reason."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.debchanges import parse_dsc
from invirtibuilder.run import run
from tests.support.exporting import Exported, export
from tests.support.packages import Repo, commit, debian, entry, git, native, upgraded, write
from tests.support.sources import (
    UPSTREAM,
    applied,
    lfs_pointer,
    link,
    pristine,
    quilt,
    submodule,
    tarball,
    with_tree_entry,
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def extracted(made: Exported, *options: str) -> Path:
    """The source package, unpacked by dpkg-source."""
    target = made.out.parent / "unpacked"
    argv = ["dpkg-source", "--no-copy", "--require-strong-checksums", *options, "-x"]
    run([*argv, made.dsc, target], cwd=made.out)
    return target


def members(made: Exported, ending: str) -> list[str]:
    """What is in the one tarball with this ending."""
    (path,) = made.out.glob(f"*{ending}")
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_native_package(tmp_path: Path) -> None:
    repo = native(tmp_path / "repo", files={"bin/tool": "#!/bin/sh\n", "a b/ü\n": "x"})
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    assert made.report["source"], made.report["version"] == ("greet", "1.0")
    assert made.report["format"] == "3.0 (native)"
    assert made.report["tree"] == git(repo.path, "rev-parse", f"{repo.commit}^{{tree}}")
    assert made.report["source_date_epoch"] == 1_750_000_000
    assert made.report["differences"] == []
    on_disk = {p.name: sha256(p) for p in made.out.iterdir() if p.name != "report.json"}
    assert made.hashes == on_disk
    assert set(on_disk) == {"greet_1.0.dsc", "greet_1.0.tar.xz"}
    dsc = parse_dsc(made.dsc.read_bytes())
    assert (dsc.source, dsc.version, dsc.binaries) == ("greet", "1.0", ("greet",))
    assert [file.name for file in dsc.files] == ["greet_1.0.tar.xz"]
    tree = extracted(made)
    assert (tree / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tree / "a b/ü\n").read_text() == "x"


def test_added_changelog_entry_and_suffix(tmp_path: Path) -> None:
    repo = native(tmp_path / "repo", distribution="UNRELEASED")
    version = "1.0~dev.hot+20260102T030405Z.gabababababab"
    added = entry("greet", version, distribution="dev-hot", date=1_760_000_000) + "\n"
    made = export(tmp_path / "work", repo, version=version, changelog_entry=added)
    assert made.report["ok"], made.report
    assert made.report["version"] == version
    assert made.report["source_date_epoch"] == 1_760_000_000
    assert made.report["differences"] == [f"debian/changelog: an entry for {version} on top"]
    text = (extracted(made) / "debian/changelog").read_text()
    assert text == added + (repo.path / "debian/changelog").read_text()


def test_version_that_the_changelog_does_not_have_is_refused(tmp_path: Path) -> None:
    made = export(tmp_path / "work", native(tmp_path / "repo"), version="1.1")
    assert made.codes == {"bad-changelog"}


def test_quilt_from_the_upstream_tag(tmp_path: Path) -> None:
    repo = quilt(tmp_path / "repo", version="2:1.0~rc1-1")
    made = export(tmp_path / "work", repo, tag="upstream/1.0_rc1")
    assert made.report["ok"], made.report
    orig = "greet_1.0~rc1.orig.tar.xz"
    assert made.report["orig_from"] == {orig: "upstream-tag"}
    with tarfile.open(made.out / orig) as tar:
        infos = tar.getmembers()
    assert {(i.uid, i.gid, i.uname, i.mtime) for i in infos} == {(0, 0, "", 1_750_000_000)}
    assert [i.name for i in infos] == sorted(i.name for i in infos)
    assert {i.name.split("/")[0] for i in infos} == {"greet-1.0~rc1"}
    assert (extracted(made) / "greeting").read_text() == "hello from Debian\n"


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_pristine_tar(tmp_path: Path, compression: str) -> None:
    repo = pristine(tmp_path / "repo", compression=compression)
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    orig = f"greet_1.0.orig.tar.{compression}"
    assert made.report["orig_from"] == {orig: "pristine-tar"}
    assert made.hashes[orig] == sha256(tmp_path / "repo.tarballs" / orig)


def test_several_components(tmp_path: Path) -> None:
    repo = pristine(tmp_path / "repo", components=["doc", "test-data"])
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    assert len(made.report["orig_from"]) == 3
    for name, origin in made.report["orig_from"].items():
        assert origin == "pristine-tar"
        assert made.hashes[name] == sha256(tmp_path / "repo.tarballs" / name)
    assert (extracted(made) / "test-data/part.txt").is_file()


def test_components_from_the_upstream_tag(tmp_path: Path) -> None:
    repo = quilt(tmp_path / "repo", upstream={**UPSTREAM, "doc/a": "a\n", "docs/b": "b\n"})
    made = export(tmp_path / "work", repo, components=["doc"], compression="gzip")
    assert made.report["ok"], made.report
    assert set(made.report["orig_from"]) == {"greet_1.0.orig.tar.gz", "greet_1.0.orig-doc.tar.gz"}
    assert "greet-1.0/doc" not in members(made, "orig.tar.gz")
    assert "greet-1.0/docs/b" in members(made, "orig.tar.gz")


def test_signed_tarball(tmp_path: Path) -> None:
    repo = pristine(tmp_path / "repo", signed=True)
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    name = "greet_1.0.orig.tar.gz.asc"
    assert made.report["orig_from"][name] == "pristine-tar"
    assert made.hashes[name] == sha256(tmp_path / "repo.tarballs" / name)
    assert b"verifying" in made.done.err


def test_format_1_with_a_diff(tmp_path: Path) -> None:
    changes = {"greeting": "hello from the diff\n", "new/file": "new\n"}
    repo = quilt(tmp_path / "repo", source_format="1.0", patched=False, files=changes)
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    assert set(made.hashes) == {"greet_1.0-1.dsc", "greet_1.0-1.diff.gz", "greet_1.0.orig.tar.gz"}
    assert made.report["differences"] == []
    assert (extracted(made) / "new/file").read_text() == "new\n"


def test_format_1_without_a_format_file(tmp_path: Path) -> None:
    repo = native(tmp_path / "repo")
    (repo.path / "debian/source/format").unlink()
    repo = replace(repo, commit=commit(repo.path))
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    assert made.report["format"] == "1.0"
    assert set(made.hashes) == {"greet_1.0.dsc", "greet_1.0.tar.gz"}


def test_tree_with_the_patches_applied(tmp_path: Path) -> None:
    made = export(tmp_path / "work", applied(tmp_path / "repo"))
    assert made.report["ok"], made.report
    assert "applied" in made.report["differences"][0]


MAKERS: dict[str, Callable[[Path], Repo]] = {
    "native": native,
    "quilt": quilt,
    "diff": lambda path: quilt(
        path, source_format="1.0", patched=False, files={"greeting": "changed\n"}
    ),
    "pristine": lambda path: pristine(path, compression="xz"),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_same_commit_same_bytes(tmp_path: Path, maker: str) -> None:
    repo = MAKERS[maker](tmp_path / "repo")
    first = export(tmp_path / "one", repo, umask=0o022)
    other = {"LC_ALL": "C", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Kolkata", "XZ_OPT": "-1"}
    other |= {"TAR_OPTIONS": "--owner=me:77", "GZIP": "-1", "SOURCE_DATE_EPOCH": "1"}
    second = export(tmp_path / "two", repo, umask=0o077, env=other)
    third = export(tmp_path / "elsewhere/three", repo, umask=0o002)
    assert first.report["ok"], first.report
    assert first.report == second.report == third.report


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


@pytest.mark.parametrize(
    "attributes",
    [
        "* export-ignore",
        "greeting export-subst",
        "* text eol=crlf",
        "* filter=lfs",
        "* ident",
        "* working-tree-encoding=UTF-16",
    ],
)
def test_attributes_do_not_count(tmp_path: Path, attributes: str) -> None:
    files = {".gitattributes": attributes + "\n", "greeting": "$Format:%H$ $Id$\n", "x": "a\r\nb\n"}
    directory = tmp_path / "repo"
    made = export(tmp_path / "native", raw(native(directory), {**files}))
    assert made.report["ok"], made.report
    assert made.report["differences"] == [".gitattributes: left out by dpkg-source"]
    tree = extracted(made)
    assert (tree / "greeting").read_bytes() == b"$Format:%H$ $Id$\n"
    assert (tree / "x").read_bytes() == b"a\r\nb\n"


def raw(repo: Repo, files: Mapping[str, str]) -> Repo:
    """A commit of these files as they are: `git add` would heed the attributes."""
    write(repo.path, files)
    for name, content in files.items():
        blob = git(repo.path, "hash-object", "-w", "--stdin", stdin=content.encode())
        git(repo.path, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}")
    git(repo.path, "commit", "--quiet", "-m", "Attributes")
    return replace(repo, commit=git(repo.path, "rev-parse", "HEAD"))


def test_pristine_tar_with_attributes(tmp_path: Path) -> None:
    upstream = {**UPSTREAM, ".gitattributes": "greeting export-ignore\n*.c text eol=crlf\n"}
    repo = pristine(tmp_path / "repo", upstream=upstream)
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    orig = "greet_1.0.orig.tar.gz"
    assert made.hashes[orig] == sha256(tmp_path / "repo.tarballs" / orig)


def test_links_are_kept_and_not_followed(tmp_path: Path) -> None:
    repo = link(native(tmp_path / "repo"), "escape", "../../../../etc/passwd")
    repo = link(repo, "absolute", "/etc")
    repo = link(repo, "dangling", "nowhere")
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    tree = extracted(made)
    assert str((tree / "escape").readlink()) == "../../../../etc/passwd"
    assert str((tree / "absolute").readlink()) == "/etc"


@pytest.mark.parametrize("name", ["..", ".", ".git", ".GIT", "greeting", "debian"])
def test_paths_that_no_tree_can_have(tmp_path: Path, name: str) -> None:
    repo = with_tree_entry(native(tmp_path / "repo"), "120000", name, b"/etc")
    made = export(tmp_path / "work", repo)
    assert made.codes <= {"bad-tree", "bad-bundle"}, made.report
    assert made.codes


def test_local_options_are_ignored(tmp_path: Path) -> None:
    files = {"debian/source/local-options": "auto-commit\n"}
    made = export(tmp_path / "good", quilt(tmp_path / "repo", files=files))
    assert made.report["ok"], made.report
    assert made.report["differences"] == ["debian/source/local-options: not exported"]
    changed = {**files, "src/greet.c": "other\n"}
    made = export(tmp_path / "bad", quilt(tmp_path / "other", files=changed))
    assert made.codes == {"upstream-changes"}


def test_rules_are_made_executable(tmp_path: Path) -> None:
    repo = native(tmp_path / "repo")
    (repo.path / "debian/rules").chmod(0o644)
    made = export(tmp_path / "work", replace(repo, commit=commit(repo.path)))
    assert made.report["ok"], made.report
    assert made.report["differences"] == ["debian/rules: made executable by dpkg-source"]


def test_the_store_comes_first(tmp_path: Path) -> None:
    repo = pristine(tmp_path / "repo")
    orig = tarball(tmp_path / "store", "greet_1.0.orig.tar.xz", "other-top", UPSTREAM, date=1)
    made = export(tmp_path / "work", repo, store=[orig])
    assert made.report["ok"], made.report
    assert made.report["orig_from"] == {orig.name: "store"}
    assert made.hashes[orig.name] == sha256(orig)


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


def test_pristine_tar_of_another_version_falls_back_to_the_tag(tmp_path: Path) -> None:
    repo = upgraded(pristine(tmp_path / "repo"), "1.1-1")
    git(repo.path, "tag", "upstream/1.1", "upstream")
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    assert made.report["orig_from"] == {"greet_1.1.orig.tar.xz": "upstream-tag"}


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


def test_unusual_file_names(tmp_path: Path) -> None:
    repo = native(tmp_path / "repo")
    (repo.path / "data").mkdir()
    for name in (b"latin\xe9", b"-rf", b"new\nline", b"a\\b", b"*", b"x" * 200):
        Path(os.fsdecode(os.fsencode(repo.path / "data") + b"/" + name)).write_bytes(name)
    made = export(tmp_path / "work", replace(repo, commit=commit(repo.path)))
    assert made.report["ok"], made.report
    names = set(os.listdir(os.fsencode(extracted(made) / "data")))
    assert {b"latin\xe9", b"-rf", b"new\nline", b"a\\b", b"*", b"x" * 200} == names


def test_empty_debian_directory(tmp_path: Path) -> None:
    repo = native(tmp_path / "repo")
    for name in debian("greet", "1.0"):
        (repo.path / name).unlink()
    made = export(tmp_path / "work", replace(repo, commit=commit(repo.path)))
    assert made.codes == {"no-changelog"}
