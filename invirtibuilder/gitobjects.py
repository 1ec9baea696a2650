"""GitPython for objects and refs, in our process: it starts no git; what it writes is synced."""

from __future__ import annotations

import bisect
import hashlib
import importlib
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from invirtibuilder import files, model
from invirtibuilder.errors import Malformed

NO_GIT = "/nonexistent/git"


def _import_git() -> Any:
    # At its import GitPython starts `git version` with a copy of our environment, unless the
    # program it looks for does not exist.
    wanted = {"GIT_PYTHON_GIT_EXECUTABLE": NO_GIT, "GIT_PYTHON_REFRESH": "quiet"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        module: Any = importlib.import_module("git")
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    module.Git.GIT_PYTHON_GIT_EXECUTABLE = NO_GIT
    return module


git = _import_git()
_GitDB: Any = git.GitDB


LEVEL = 1
"""Of zlib, as git has it for loose objects: trees are mostly ids, which nothing makes smaller."""


class SyncedObjects(_GitDB):  # type: ignore[misc]
    """git's loose and packed objects; new ones are there, synced with their names, after `keep`."""

    def __init__(self, root_path: str) -> None:
        super().__init__(root_path)
        self._beside: dict[Path, Path] = {}
        self._there: list[Path] = []

    def store(self, istream: Any) -> Any:
        """What GitPython calls to write an object."""
        istream.binsha = bytes.fromhex(self.write(os.fsdecode(istream.type), istream.read()))
        return istream

    def write(self, kind: str, body: bytes) -> str:
        """Write one object; a torn one of the same id, left by a power cut, is replaced."""
        data = b"%s %d\0" % (kind.encode(), len(body)) + body
        name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        path = Path(self.root_path(), name[:2], name[2:])
        if path in self._beside:
            return name
        if _holds(path, data):
            self._there.append(path)
            return name
        path.parent.mkdir(exist_ok=True)
        # git takes objects/XX/tmp_obj_* for garbage and prunes it.
        beside = path.with_name(f"tmp_obj_{secrets.token_hex(6)}")
        self._beside[path] = beside
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
        with os.fdopen(fd, "wb") as file:
            file.write(zlib.compress(data, LEVEL))
        return name

    def keep(self) -> None:
        """Make what was written count, all of it synced at once."""
        if paths := [*self._beside, *self._there]:
            files.sync_all([*self._beside.values(), *self._there])
            for path in list(self._beside):
                self._beside[path].rename(path)
                del self._beside[path]
            files.sync_all({Path(self.root_path()), *(path.parent for path in paths)})

    def drop(self) -> None:
        """Remove what does not count."""
        for beside in self._beside.values():
            beside.unlink(missing_ok=True)


def _holds(path: Path, plain: bytes) -> bool:
    try:
        return zlib.decompress(path.read_bytes()) == plain
    except (OSError, zlib.error):
        return False


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A `git.Repo` for one operation: packs may come and go between two.

    Objects that are stored in the block are there when it has been left, all or none.
    """
    repo = git.Repo(str(path), odbt=SyncedObjects, expand_vars=False)
    try:
        yield repo
        repo.odb.keep()
    finally:
        repo.odb.drop()
        repo.close()


def store(repo: Any, kind: str, data: bytes) -> str:
    """Write one object ("blob", "tree", "commit", "tag"); its id."""
    return str(repo.odb.write(kind, data))


TREE = 0o040000
"""The mode of a directory."""
Entry = tuple[bytes, int]
"""The id as it is stored, and the mode."""
Entries = dict[str, Entry]
"""What a tree has, by name."""
_ENTRY = re.compile(rb"([0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)


def read_tree(repo: Any, sha: bytes) -> bytes:
    """A tree as it is stored."""
    return bytes(repo.odb.stream(sha).read())


def entries(tree: bytes) -> Entries:
    """All of a tree that `read_tree` has given. GitPython takes ten times as long."""
    found = _ENTRY.findall(tree)
    return {os.fsdecode(name): (sha, int(mode, 8)) for mode, name, sha in found}


def entry(tree: bytes, name: str) -> Entry | None:
    """One entry of a tree that `read_tree` has given."""
    wanted = os.fsencode(name)
    found = (each for each in _ENTRY.finditer(tree) if each[2] == wanted)
    return next(((each[3], int(each[1], 8)) for each in found), None)


def store_entries(repo: Any, entries: Entries) -> bytes:
    """Write one tree; its id as it is stored."""
    # git sorts a directory as if its name ended in a slash.
    order = sorted(entries.items(), key=lambda item: item[0].encode() + b"/" * (item[1][1] == TREE))
    data = b"".join(b"%o %s\0" % (mode, name.encode()) + sha for name, (sha, mode) in order)
    return bytes.fromhex(store(repo, "tree", data))


class Files:
    """A tree without trees, which may be large, as it is changed entry by entry."""

    def __init__(self, tree: bytes) -> None:
        found = list(_ENTRY.finditer(tree))
        self._names = [each[2] for each in found]
        self._entries = [each[0] for each in found]

    def names(self) -> list[str]:
        """All of them, sorted."""
        return [os.fsdecode(name) for name in self._names]

    def put(self, name: str, sha: bytes, mode: int) -> bool:
        """Set an entry; whether it is a new one."""
        raw = os.fsencode(name)
        at, there = self._at(raw)
        self._names[at : at + there] = [raw]
        self._entries[at : at + there] = [b"%o %s\0" % (mode, raw) + sha]
        return not there

    def drop(self, name: str) -> bool:
        """Take an entry away; whether it was there."""
        at, there = self._at(os.fsencode(name))
        del self._names[at : at + there], self._entries[at : at + there]
        return there

    def _at(self, raw: bytes) -> tuple[int, bool]:
        at = bisect.bisect_left(self._names, raw)
        return at, self._names[at : at + 1] == [raw]

    def store(self, repo: Any) -> bytes:
        """Write it; its id as it is stored."""
        return bytes.fromhex(store(repo, "tree", b"".join(self._entries)))


def store_tree(repo: Any, blobs: Entries) -> bytes:
    """Write the trees of these files, by path; the id of the whole."""
    entries: Entries = {}
    below: dict[str, Entries] = {}
    for path, entry in blobs.items():
        name, slash, rest = path.partition("/")
        if slash:
            below.setdefault(name, {})[rest] = entry
        else:
            entries[name] = entry
    for name, inner in below.items():
        entries[name] = (store_tree(repo, inner), TREE)
    return store_entries(repo, entries)


def seconds(date: datetime) -> int:
    """An aware time as git writes it: whole seconds."""
    if date.tzinfo is None:
        raise ValueError("a time without a zone")
    return int(date.astimezone(UTC).timestamp())


def identity(name: str, mail: str, date: datetime) -> str:
    """`NAME <MAIL> SECONDS +0000`, with no character of either breaking the line."""
    if not name.strip():
        raise Malformed("an author needs a name", code="bad-author")
    return f"{encode(name)} <{encode(mail, also=' ')}> {seconds(date)} +0000"


def encode(text: str, *, also: str = "") -> str:
    """Printable ASCII from which `decode` gets the text back; for author lines and trailers.

    Everything else, and the characters that end something there, becomes %XX of its UTF-8 bytes.

    >>> encode("alice/admin@EXAMPLE.ORG"), encode("a <b>\\n100% \\u00e9 ")
    ('alice/admin@EXAMPLE.ORG', 'a %3Cb%3E%0A100%25 %C3%A9%20')
    """
    special = '%<>"\\' + also
    raw = text.encode("utf-8", "surrogateescape")
    out = "".join(chr(b) if 32 <= b < 127 and chr(b) not in special else f"%{b:02X}" for b in raw)
    inner = out.strip(" ")
    lead = len(out) - len(out.lstrip(" "))
    return "%20" * lead + inner + "%20" * (len(out) - lead - len(inner))


def decode(text: str) -> str:
    """What `encode` was given.

    >>> decode(encode(" a%20<\\u202e>\\n")) == " a%20<\\u202e>\\n"
    True
    """
    head, *rest = text.split("%")
    raw = head.encode()
    for part in rest:
        raw += bytes.fromhex(part[:2]) + part[2:].encode()
    return raw.decode("utf-8", "surrogateescape")


def one_line(text: str) -> str:
    """The text for a commit's subject: one line, nothing that a terminal would act on."""
    return model.printable(text).encode("utf-8", "backslashreplace").decode()
