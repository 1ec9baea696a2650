"""inside/export.py on real repositories: what comes out is the commit, or there is a reason."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder.debchanges import parse_dsc
from invirtibuilder.run import run
from tests.support.exporting import Exported, export
from tests.support.packages import Repo, commit, entry, git, native, upgraded, write
from tests.support.sources import (
    UPSTREAM,
    applied,
    link,
    pristine,
    quilt,
    tarball,
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
    assert (made.report["source"], made.report["version"]) == ("greet", "1.0")
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


def test_of_two_stored_tarballs_one_is_used(tmp_path: Path) -> None:
    """The second is there when the package was once in the format 1.0, which wants gzip."""
    repo = pristine(tmp_path / "repo", compression="bz2")
    store = [tarball(tmp_path / e, f"greet_1.0.orig.tar.{e}", "g", UPSTREAM) for e in ("gz", "xz")]
    made = export(tmp_path / "work", repo, store=store)
    assert made.report["ok"], made.report
    assert made.report["orig_from"] == {"greet_1.0.orig.tar.xz": "store"}


def test_the_store_comes_first(tmp_path: Path) -> None:
    repo = pristine(tmp_path / "repo")
    orig = tarball(tmp_path / "store", "greet_1.0.orig.tar.xz", "other-top", UPSTREAM, date=1)
    made = export(tmp_path / "work", repo, store=[orig])
    assert made.report["ok"], made.report
    assert made.report["orig_from"] == {orig.name: "store"}
    assert made.hashes[orig.name] == sha256(orig)


def test_pristine_tar_of_another_version_falls_back_to_the_tag(tmp_path: Path) -> None:
    repo = upgraded(pristine(tmp_path / "repo"), "1.1-1")
    git(repo.path, "tag", "upstream/1.1", "upstream")
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    assert made.report["orig_from"] == {"greet_1.1.orig.tar.xz": "upstream-tag"}


@pytest.mark.parametrize("date", [0, 1 << 40, (1 << 63) - 1])
def test_upstream_tags_of_any_date(tmp_path: Path, date: int) -> None:
    repo = quilt(tmp_path / "repo")
    tree = git(repo.path, "rev-parse", "upstream^{tree}")
    odd = f"tree {tree}\nauthor A <a> {date} +0000\ncommitter A <a> {date} +0000\n\nOdd\n"
    write_object = ("hash-object", "-w", "-t", "commit", "--literally", "--stdin")
    made = git(repo.path, *write_object, stdin=odd.encode())
    git(repo.path, "tag", "--force", "upstream/1.0", made)
    exported = export(tmp_path / "work", repo)
    assert exported.report["ok"], exported.report


def test_unusual_file_names(tmp_path: Path) -> None:
    repo = native(tmp_path / "repo")
    (repo.path / "data").mkdir()
    for name in (b"latin\xe9", b"-rf", b"new\nline", b"a\\b", b"*", b"x" * 200):
        Path(os.fsdecode(os.fsencode(repo.path / "data") + b"/" + name)).write_bytes(name)
    made = export(tmp_path / "work", replace(repo, commit=commit(repo.path)))
    assert made.report["ok"], made.report
    names = set(os.listdir(os.fsencode(extracted(made) / "data")))
    assert {b"latin\xe9", b"-rf", b"new\nline", b"a\\b", b"*", b"x" * 200} == names
