"""The bundle as a repository of our own, and raw trees out of it: no attributes, no filters."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from invirtibuilder.inside.export_base import (
        ENVIRONMENT,
        Ran,
        Reason,
        Refusal,
        lines,
        listed,
        refusal,
        run,
        shown,
    )
else:
    from export_base import (
        ENVIRONMENT,
        Ran,
        Reason,
        Refusal,
        lines,
        listed,
        refusal,
        run,
        shown,
    )

OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
LFS = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n"
    rb"(?:[a-z0-9.-]+ [^\n]*\n)*oid sha256:[0-9a-f]{64}\n"
)
# In info/attributes these outrank every .gitattributes of the content.
NO_ATTRIBUTES = (
    "* -text -eol -crlf -ident -filter -working-tree-encoding -export-ignore -export-subst\n"
)
GIT_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_COUNT": "4",
    "GIT_CONFIG_KEY_0": "core.hooksPath",
    "GIT_CONFIG_VALUE_0": "/dev/null",
    "GIT_CONFIG_KEY_1": "protocol.allow",
    "GIT_CONFIG_VALUE_1": "never",
    "GIT_CONFIG_KEY_2": "protocol.file.allow",
    "GIT_CONFIG_VALUE_2": "always",
    "GIT_CONFIG_KEY_3": "gc.auto",
    "GIT_CONFIG_VALUE_3": "0",
}
MAX_LISTING = 256 << 20
"""Bytes of a tree's listing: some two million files. Trees within trees make endless ones of a few
objects."""

MAX_CONTENT = 1 << 20
MAX_LINK = 4095
LATEST = (1 << 32) - 1
"""Seconds since the epoch; gzip's and tar's time fields end there."""


class Blob(NamedTuple):
    """A file or symbolic link in a commit's tree."""

    path: bytes
    mode: str
    oid: str


class Node(NamedTuple):
    """What a path is: `file`, `link` or `special`; a link's digest is its target's."""

    kind: str
    executable: bool
    digest: str


Tree = dict[bytes, Node]


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class Repository:
    """A repository without a work tree content, that nobody else writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *args: str, stdin: bytes | None = None) -> Ran:
        """Run git here; never raises for its exit code."""
        return run(["git", *args], cwd=self.path, env=GIT_ENVIRONMENT, stdin=stdin)

    def resolve(self, name: str, kind: str) -> str | None:
        """The id of the `kind` of object that this name leads to, or None."""
        found = self.git(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{{kind}}}"
        )
        return found.text if found.code == 0 and OBJECT.fullmatch(found.text) else None

    def content(self, commit: str, path: str) -> bytes:
        """A small file's content in a commit, empty when there is none, or it is not small."""
        size = self.git("cat-file", "-s", f"{commit}:{path}").text
        if not size.isdigit() or int(size) > MAX_CONTENT:
            return b""
        found = self.git("cat-file", "blob", f"{commit}:{path}")
        return found.out if found.code == 0 else b""

    def listing(self, commit: str) -> list[bytes]:
        """The records of `git ls-tree -r -z`. Raises Refusal."""
        argv = ["git", "ls-tree", "-r", "-z", "--full-tree", commit]
        print("+ " + " ".join(argv), file=sys.stderr, flush=True)
        with subprocess.Popen(
            argv,
            cwd=self.path,
            env={**ENVIRONMENT, **GIT_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            out = cast("IO[bytes]", process.stdout).read(MAX_LISTING + 1)
            if len(out) > MAX_LISTING:
                process.kill()
                raise refusal("bad-tree", f"the tree of {commit} has too many files")
        if process.returncode != 0:
            raise refusal("bad-tree", f"git cannot list the tree of {commit}")
        return lines(out)


def opened(bundle: Path, directory: Path, object_length: int) -> Repository:
    """A repository with the objects and refs/export/* of the bundle. Raises Refusal."""
    directory.mkdir()
    repository = Repository(directory)
    object_format = "sha256" if object_length == 64 else "sha1"
    repository.git("init", "--quiet", f"--object-format={object_format}", ".")
    done = repository.git(
        "fetch", "--quiet", "--no-tags", str(bundle), "+refs/export/*:refs/export/*"
    )
    if done.code != 0:
        raise refusal("bad-bundle", f"git cannot read the bundle (exit code {done.code})")
    return repository


def blobs(repository: Repository, commit: str) -> list[Blob]:
    """All files of a commit (or tree), checked: plain relative paths, no submodules. Raises
    Refusal with all that is wrong."""
    found, submodules, odd = [], [], []
    for record in repository.listing(commit):
        head, _, path = record.partition(b"\t")
        mode, kind, oid = head.decode("ascii", "replace").split(" ")
        if mode == "160000":
            submodules.append(path)
        elif kind != "blob" or mode not in ("100644", "100664", "100755", "120000") or _odd(path):
            odd.append(path)
        else:
            found.append(Blob(path, mode, oid))
    files = [blob.path for blob in found]
    directories = {parent for path in files for parent in _parents(path)}
    odd += sorted(directories.intersection(files))
    odd += [path for path, times in Counter(files).items() if times > 1]
    reasons = []
    if submodules:
        hint = "merge their content into this repository"
        reasons.append(Reason("submodule", f"git submodules: {listed(submodules)}", hint))
    if odd:
        reasons.append(Reason("bad-tree", f"paths that no work tree can have: {listed(odd)}"))
    if reasons:
        raise Refusal(reasons)
    return found


def _odd(path: bytes) -> bool:
    return len(path) > 4000 or any(
        part in (b"", b".", b"..") or part.lower() == b".git" or len(part) > 255
        for part in path.split(b"/")
    )


def _parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:n]) for n in range(1, len(parts))]


def write_tree(repository: Repository, files: list[Blob], target: Path) -> Tree:
    """Write the files, as they are in git, into a new directory. Raises Refusal for git-lfs
    pointers. `files` are those of `blobs`, so no path leads out of the directory or through a
    symbolic link, whatever order they come in: links are made last."""
    target.mkdir()
    for directory in sorted({parent for blob in files for parent in _parents(blob.path)}):
        (target / os.fsdecode(directory)).mkdir()
    tree: Tree = {}
    links: dict[bytes, bytes] = {}
    pointers: list[bytes] = []
    with tempfile.TemporaryFile() as wanted:
        wanted.write("".join(f"{blob.oid}\n" for blob in files).encode())
        wanted.seek(0)
        with _cat_file(repository, wanted) as process:
            stream = cast("IO[bytes]", process.stdout)
            for blob in files:
                size = _size(stream, blob)
                if blob.mode == "120000":
                    if size > MAX_LINK:
                        raise _no_link(blob.path)
                    links[blob.path] = stream.read(size)
                    tree[blob.path] = Node("link", False, digest(links[blob.path]))
                else:
                    tree[blob.path] = _write_file(stream, size, target, blob, pointers)
                stream.read(1)
    for path, destination in links.items():
        if not destination or b"\0" in destination:
            raise _no_link(path)
        (target / os.fsdecode(path)).symlink_to(os.fsdecode(destination))
    if pointers:
        hint = "commit the content itself; git lfs migrate export"
        raise refusal("git-lfs", f"git-lfs pointers instead of content: {listed(pointers)}", hint)
    return tree


def _no_link(path: bytes) -> Refusal:
    return refusal("bad-tree", f"not a symbolic link that can exist: {shown(path)}")


def _cat_file(repository: Repository, wanted: IO[bytes]) -> subprocess.Popen[bytes]:
    print("+ git cat-file --batch", file=sys.stderr, flush=True)
    return subprocess.Popen(
        ["git", "cat-file", "--batch"],
        cwd=repository.path,
        env={**ENVIRONMENT, **GIT_ENVIRONMENT},
        stdin=wanted,
        stdout=subprocess.PIPE,
    )


def _size(stream: IO[bytes], blob: Blob) -> int:
    words = stream.readline().split()
    if len(words) != 3 or words[1] != b"blob":
        raise refusal("bad-tree", f"git has no content of {shown(blob.path)}")
    return int(words[2])


def _write_file(
    stream: IO[bytes], size: int, root: Path, blob: Blob, pointers: list[bytes]
) -> Node:
    executable = blob.mode == "100755"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    fd = os.open(root / os.fsdecode(blob.path), flags, 0o755 if executable else 0o644)
    summed, left = hashlib.sha256(), size
    with os.fdopen(fd, "wb") as file:
        while left:
            block = stream.read(min(left, 1 << 20))
            if not block:
                raise refusal("bad-tree", f"git's content of {shown(blob.path)} ends early")
            if left == size < 1024 and LFS.match(block):
                pointers.append(blob.path)
            file.write(block)
            summed.update(block)
            left -= len(block)
    return Node("file", executable, summed.hexdigest())


def read_tree(directory: Path) -> Tree:
    """What is on disk below a directory; directories themselves do not count, git has none."""
    tree: Tree = {}
    pending = [directory]
    while pending:
        for path in pending.pop().iterdir():
            name = os.fsencode(path.relative_to(directory))
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            elif stat.S_ISLNK(status.st_mode):
                tree[name] = Node("link", False, digest(os.readlink(os.fsencode(path))))
            elif stat.S_ISREG(status.st_mode):
                tree[name] = Node("file", bool(status.st_mode & 0o100), file_digest(path))
            else:
                tree[name] = Node("special", False, "")
    return tree


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    summed = hashlib.sha256()
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            if not block:
                return summed.hexdigest()
            summed.update(block)


def set_times(directory: Path, seconds: int) -> None:
    """Give every file, link and directory below this modification time."""
    for folder, directories, files in os.walk(directory):
        for name in directories + files:
            os.utime(Path(folder, name), (seconds, seconds), follow_symlinks=False)
    os.utime(directory, (seconds, seconds))


def copy(source: Path, target: Path) -> None:
    """Copy a plain file; never through a symbolic link, never over another."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with source.open("rb") as old, os.fdopen(fd, "wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
