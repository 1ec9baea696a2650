"""Repositories for the export: quilt, 1.0, pristine-tar, signed, and those it must refuse.

All made by the real gbp and git, as their users make them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from invirtibuilder.model import tag_version
from invirtibuilder.run import run
from tests.support.packages import DATE, Repo, commit, debian, git, identity, write

UPSTREAM: dict[str, str | bytes] = {
    "README": "A program that greets.\n",
    "greeting": "hello from upstream\n",
    "src/greet.c": '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n',
    "configure": "#!/bin/sh\nexit 0\n",
    "logo.bin": bytes(range(256)),
}

PATCH = """\
Description: greet in Debian's way
Author: Ada Test <ada@example.org>

--- a/greeting
+++ b/greeting
@@ -1 +1 @@
-hello from upstream
+hello from Debian
"""

TAR = {"gz": "--gzip", "bz2": "--bzip2", "xz": "--xz"}


def tarball(
    directory: Path, name: str, top: str, files: Mapping[str, str | bytes], date: int = DATE
) -> Path:
    """A tarball `directory/name` of these files below `top`, as an upstream would make it."""
    tree = directory / f"{name}.d"
    write(tree / top, files)
    (tree / top).mkdir(parents=True, exist_ok=True)
    path = directory / name
    argv = ["tar", "--create", TAR[name.rpartition(".")[2]], f"--file={path}", "--sort=name"]
    run([*argv, f"--mtime=@{date}", "--owner=up:500", "--group=up:500", top], cwd=tree)
    return path


def upstream_branch(
    directory: Path, upstream: str, files: Mapping[str, str | bytes] | None = None
) -> None:
    """A new repository with one commit, tagged upstream/VERSION, on branch upstream and main."""
    directory.mkdir(parents=True, exist_ok=True)
    git(directory, "init", "--quiet")
    write(directory, files if files is not None else UPSTREAM)
    commit(directory, f"New upstream version {upstream}")
    git(directory, "branch", "upstream")
    tag = f"upstream/{tag_version(upstream)}"
    git(directory, "tag", "-a", tag, "-m", f"Upstream {upstream}")


def quilt(
    directory: Path,
    name: str = "greet",
    version: str = "1.0-1",
    *,
    source_format: str = "3.0 (quilt)",
    upstream: Mapping[str, str | bytes] | None = None,
    patched: bool = True,
    files: Mapping[str, str | bytes] | None = None,
    removed: Sequence[str] = (),
) -> Repo:
    """A package with an upstream branch and tag, no pristine-tar, and a patch (if `patched`).

    `files` are added to the packaging commit, `removed` are deleted in it; with either it may
    well be one that cannot be exported faithfully.
    """
    upstream_branch(directory, version.rpartition("-")[0].rpartition(":")[2], upstream)
    patches = {"debian/patches/series": "greet.patch\n", "debian/patches/greet.patch": PATCH}
    write(directory, debian(name, version, source_format=source_format))
    write(directory, {**(patches if patched else {}), **(files or {})})
    for path in removed:
        (directory / path).unlink()
    made = commit(directory, f"{name} {version}")
    return Repo(path=directory, commit=made, name=name, version=version)


def pristine(
    directory: Path,
    name: str = "greet",
    version: str = "1.0-1",
    *,
    compression: str = "gz",
    components: Sequence[str] = (),
    upstream: Mapping[str, str | bytes] | None = None,
    files: Mapping[str, str | bytes] | None = None,
    signed: bool = False,
    source_format: str = "3.0 (quilt)",
    pristine_tar: bool = True,
) -> Repo:
    """A package made by `gbp import-orig --pristine-tar` (or `--no-pristine-tar`); the tarballs
    are beside the repository, in DIRECTORY.tarballs.

    With `components` there is a second tarball for each; with `signed` the main one has a
    detached signature by a new key, which is debian/upstream/signing-key.asc.
    """
    number = version.rpartition("-")[0].rpartition(":")[2]
    beside = directory.with_name(directory.name + ".tarballs")
    beside.mkdir(parents=True)
    main = f"{name}_{number}.orig.tar.{compression}"
    tarball(beside, main, f"{name}-{number}", upstream if upstream is not None else UPSTREAM)
    for component in components:
        part = f"{name}_{number}.orig-{component}.tar.{compression}"
        tarball(beside, part, component, {"part.txt": f"the part {component}\n"})
    directory.mkdir()
    git(directory, "init", "--quiet")
    git(directory, "commit", "--quiet", "--allow-empty", "-m", "Start")
    extra = {"debian/upstream/signing-key.asc": sign(beside, main)} if signed else {}
    option = "--pristine-tar" if pristine_tar else "--no-pristine-tar"
    argv = ["gbp", "import-orig", "--no-interactive", option, "--debian-branch=main"]
    argv += [f"--component={component}" for component in components]
    argv += [f"--upstream-version={number}", "--upstream-branch=upstream"]
    # gbp wants the branch, and a signature beside the tarball is taken by itself.
    git(directory, "branch", "upstream")
    run([*argv, str(beside / main)], cwd=directory, env=identity())
    write(directory, debian(name, version, source_format=source_format))
    patches = {"debian/patches/series": "greet.patch\n", "debian/patches/greet.patch": PATCH}
    write(directory, patches if source_format == "3.0 (quilt)" and upstream is None else {})
    write(directory, {**extra, **(files or {})})
    made = commit(directory, f"{name} {version}")
    return Repo(path=directory, commit=made, name=name, version=version)


def sign(directory: Path, name: str) -> bytes:
    """Sign `directory/name` with a new key (NAME.asc beside it); the public key, armoured."""
    person = "Up Stream <up@example.org>"
    # A short path: a socket's name has 108 bytes at most.
    with tempfile.TemporaryDirectory(prefix="key-") as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback"]
        gpg += ["--passphrase", ""]
        run([*gpg, "--quick-generate-key", person, "ed25519", "sign", "never"])
        signature = f"{directory / name}.asc"
        run([*gpg, "--armor", "--detach-sign", "--output", signature, str(directory / name)])
        key = run([*gpg, "--armor", "--export"]).out
        run(["gpgconf", "--homedir", home, "--kill", "all"])
    return key


def applied(directory: Path) -> Repo:
    """A quilt package whose tree has its patch applied already, as dgit keeps it."""
    return quilt(directory, files={"greeting": "hello from Debian\n"})


def link(repo: Repo, path: str, target: str) -> Repo:
    """The repository with one more commit, which makes `path` a symbolic link."""
    place = repo.path / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        place.rename(place.with_name(place.name + ".was"))
    place.unlink(missing_ok=True)
    place.symlink_to(target)
    return replace(repo, commit=commit(repo.path, "A link"))


def submodule(directory: Path) -> Repo:
    """A quilt package with a submodule below src/."""
    repo = quilt(directory)
    cache = f"160000,{'1' * 40},src/module"
    git(repo.path, "update-index", "--add", "--cacheinfo", cache)
    git(repo.path, "commit", "--quiet", "-m", "A submodule")
    return replace(repo, commit=git(repo.path, "rev-parse", "HEAD"))


def lfs_pointer(content: bytes = b"large") -> str:
    """What git-lfs commits in place of a file."""
    digest = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"


def with_tree_entry(repo: Repo, mode: str, name: str, content: bytes) -> Repo:
    """The repository with a commit whose top tree has one more entry, written as it is: git's
    own commands would refuse `..` or `.git`."""
    blob = git(repo.path, "hash-object", "-w", "--stdin", stdin=content)
    listing = git(repo.path, "ls-tree", "-z", "HEAD")
    raw = b""
    for record in [*listing.split("\0"), f"{mode} blob {blob}\t{name}"]:
        if record:
            head, _, path = record.partition("\t")
            kind, _, oid = head.split(" ")
            raw += kind.lstrip("0").encode() + b" " + path.encode() + b"\0" + bytes.fromhex(oid)
    tree = git(repo.path, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=raw)
    made = git(repo.path, "commit-tree", tree, "-p", repo.commit, "-m", "Odd")
    git(repo.path, "update-ref", "refs/heads/main", made)
    return replace(repo, commit=made)
