"""GitPython for objects and refs, in our process: it starts no git; what it writes is synced."""

from __future__ import annotations

import hashlib
import importlib
import os
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


class SyncedObjects(_GitDB):  # type: ignore[misc]
    """git's loose and packed objects; new ones are synced, with their names, before they count."""

    def store(self, istream: Any) -> Any:
        """What GitPython calls to write an object."""
        istream.binsha = bytes.fromhex(self.write(os.fsdecode(istream.type), istream.read()))
        return istream

    def write(self, kind: str, body: bytes) -> str:
        """Write one object; a torn one of the same id, left by a power cut, is replaced."""
        data = b"%s %d\0" % (kind.encode(), len(body)) + body
        name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        folder = Path(self.root_path(), name[:2])
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            files.sync_directory(folder.parent)
        _write_object(folder / name[2:], zlib.compress(data), data)
        return name


def _write_object(path: Path, packed: bytes, plain: bytes) -> None:
    try:
        whole = zlib.decompress(path.read_bytes()) == plain
    except (OSError, zlib.error):
        whole = False
    if whole:
        files.sync_file(path)
        files.sync_directory(path.parent)
        return
    # git takes objects/XX/tmp_obj_* for garbage and prunes it.
    beside = path.with_name(f"tmp_obj_{secrets.token_hex(6)}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    files.sync_directory(path.parent)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A `git.Repo` for one operation: packs may come and go between two."""
    repo = git.Repo(str(path), odbt=SyncedObjects, expand_vars=False)
    try:
        yield repo
    finally:
        repo.close()


def store(repo: Any, kind: str, data: bytes) -> str:
    """Write one object ("blob", "tree", "commit", "tag"), synced; its id."""
    return str(repo.odb.write(kind, data))


TREE = 0o040000
"""The mode of a directory."""
Entries = dict[str, tuple[bytes, int]]
"""What a tree has: by name, the id as it is stored, and the mode."""


def store_entries(repo: Any, entries: Entries) -> bytes:
    """Write one tree, synced; its id as it is stored."""
    # git sorts a directory as if its name ended in a slash.
    order = sorted(entries.items(), key=lambda item: item[0].encode() + b"/" * (item[1][1] == TREE))
    data = b"".join(b"%o %s\0" % (mode, name.encode()) + sha for name, (sha, mode) in order)
    return bytes.fromhex(store(repo, "tree", data))


def store_tree(repo: Any, blobs: Entries) -> bytes:
    """Write the trees of these files, by path, synced; the id of the whole."""
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
