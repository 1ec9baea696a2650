"""git as a process: one environment, no foreign configuration, no hooks; refs moved by comparison.

`gitrepo`, `superproject` and the pre-receive hook share it; it imports no GitPython.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from invirtibuilder import files, model
from invirtibuilder.errors import Exit, Fault, Malformed
from invirtibuilder.run import Done, failed, run

ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PROTOCOL_FROM_USER": "0",
    "GIT_TERMINAL_PROMPT": "0",
}

OPTIONS = (
    "core.hooksPath=/dev/null",
    "core.fsync=committed,reference",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.allow=never",
    "protocol.file.allow=always",
)

HEAD = "HEAD.lock"
STALE = 10.0
TRIES = 10
_UNLOCKING = threading.Lock()

MISSING = "0" * 40
"""What git writes for "no object"."""


class RefMoved(Fault):
    """A ref is not where the caller saw it: somebody else was quicker."""

    exit = Exit.TEMPORARY
    code = "ref-moved"


def git(
    repository: Path,
    *args: str | Path,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    timeout: float = 600,
    stdin: bytes | None = None,
    stdout: IO[bytes] | None = None,
    check: bool = True,
    output_limit: int = 64 << 20,
) -> Done:
    """Run git on this bare repository; `options` are further KEY=VALUE of configuration."""
    argv: list[str | Path] = ["git", f"--git-dir={repository}"]
    for option in (*OPTIONS, f"safe.directory={repository}", *options):
        argv += ["-c", option]
    return run(
        [*argv, *args],
        env={**ENVIRONMENT, **(env or {})},
        timeout=timeout,
        stdin=stdin,
        stdout=stdout,
        check=check,
        output_limit=output_limit,
    )


def ref_name(name: str) -> str:
    """The name, when git takes it for a ref below refs/ (git-check-ref-format). Raises Malformed.

    >>> ref_name("refs/tags/debian/1%2.0-1")
    'refs/tags/debian/1%2.0-1'
    >>> ref_name("refs/heads/../../config")
    Traceback (most recent call last):
    invirtibuilder.errors.Malformed: not a valid ref: 'refs/heads/../../config'
    """
    parts = name.split("/")
    wrong = (
        len(parts) < 3
        or parts[0] != "refs"
        or any(not p or p.startswith(".") or p.endswith(".lock") for p in parts)
        or any(c in name for c in (*" ~^:?*[\\", "..", "@{"))
        or any(ord(c) < 32 or ord(c) == 127 for c in name)
        or name.endswith(".")
    )
    if wrong:
        raise Malformed(f"not a valid ref: {name!r}", code="bad-ref")
    return name


def read_ref(repository: Path, name: str) -> str | None:
    """The id of the object that this ref names, a tag not peeled; None when there is no such ref.

    >>> read_ref(Path("/nonexistent"), "HEAD")
    Traceback (most recent call last):
    invirtibuilder.errors.Malformed: not a valid ref: 'HEAD'
    """
    return read_refs(repository, ref_name(name)).get(name)


def read_refs(repository: Path, *prefixes: str) -> dict[str, str]:
    """Refs by full name, not peeled; a prefix is a whole ref or ends where a slash is."""
    done = git(repository, "for-each-ref", "--format=%(objectname) %(refname)", "--", *prefixes)
    lines = done.out.decode("utf-8", "surrogateescape").split("\n")
    return {name: oid for oid, _, name in (line.partition(" ") for line in lines if line)}


def is_ancestor(
    repository: Path, ancestor: str, descendant: str, *, env: Mapping[str, str] | None = None
) -> bool:
    """Whether one commit is in the history of the other (or is that commit)."""
    args = ("merge-base", "--is-ancestor", ancestor, descendant)
    done = git(repository, *args, env=env, check=False)
    if done.code not in (0, 1):
        raise failed(done)
    return done.code == 0


def types(
    repository: Path, names: Sequence[str], *, env: Mapping[str, str] | None = None
) -> list[tuple[str, str] | None]:
    """For each expression (`ID`, `ID^{commit}`) object id and type, or None when there is none."""
    if not names:
        return []
    asked = "".join(f"{name}\n" for name in names).encode()
    form = "--batch-check=%(objectname) %(objecttype)"
    done = git(repository, "cat-file", form, stdin=asked, env=env)
    answers = [line.split(" ") for line in done.text.split("\n")]
    return [(a[0], a[1]) if a[-1] in KINDS and len(a) == 2 else None for a in answers]


KINDS = ("commit", "tag", "tree", "blob")


Move = tuple[str | None, str | None]
"""Where a ref is and where it is to be; None: no ref."""


def set_ref(repository: Path, name: str, new: str | None, old: str | None) -> None:
    """Move a ref from `old` to `new` (None: no ref), or find it moved already; then sync.

    Raises RefMoved when the ref is at neither.
    """
    set_refs(repository, {name: (old, new)})


def set_refs(repository: Path, moves: Mapping[str, Move]) -> None:
    """Move refs, as one where none has been moved yet; then sync.

    Raises RefMoved when one is neither where it was nor where it is to be.
    """
    for name, move in moves.items():
        ref_name(name)
        if move[0] == move[1]:
            raise ValueError("a move to where it is")
        for oid in filter(None, move):
            model.commit_id(oid)
    todo = dict(moves)
    for left in reversed(range(TRIES)):
        if not todo:
            break
        commands = "".join(_command(name, *move) for name, move in todo.items())
        done = git(repository, "update-ref", "--stdin", stdin=commands.encode(), check=not left)
        if done.code == 0:
            break
        todo = _still_to_move(repository, todo)
        for name in todo:
            # Others move refs here at the same time, and one lock is the whole repository's.
            _unlock(repository, name)
    sync_refs(repository, moves)


def _command(name: str, old: str | None, new: str | None) -> str:
    return f"update {name} {new} {old or MISSING}\n" if new else f"delete {name} {old}\n"


def _still_to_move(repository: Path, moves: Mapping[str, Move]) -> dict[str, Move]:
    """Those that are where they were. Raises RefMoved for one that is at neither."""
    found = read_refs(repository, *moves)
    for name, move in moves.items():
        if found.get(name) not in move:
            old = move[0] or "nothing"
            raise RefMoved(f"{name} is at {found.get(name) or 'nothing'}, not at {old}")
    return {name: move for name, move in moves.items() if found.get(name) == move[0]}


def _unlock(repository: Path, name: str) -> None:
    """Remove the locks that a git which was killed, or a power cut, left on a ref.

    A living git holds one for milliseconds: what has been there for STALE seconds is nobody's.
    """
    for each in (f"{name}.lock", "packed-refs.lock", "packed/packed-refs.lock", HEAD):
        lock = repository / each
        while not _gone(lock):
            time.sleep(0.05)


def _gone(lock: Path) -> bool:
    # One at a time: a second one would take a lock that was made anew for the stale one.
    with _UNLOCKING:
        try:
            age = time.time() - lock.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return True
        if not 0 <= age < STALE:
            lock.unlink(missing_ok=True)
            return True
        return False


def sync_refs(repository: Path, names: Iterable[str]) -> None:
    """Make the names of refs survive a power cut; git syncs only their content."""
    folders = {folder for name in names for folder in repository.joinpath(name).parents}
    files.sync_all(f for f in folders if f.is_relative_to(repository) and f.is_dir())


def maintain(repository: Path, *, loose: int = 4000, timeout: float = 3600) -> None:
    """Pack the repository when it has more than about `loose` loose objects."""
    options = (f"gc.auto={loose}", "gc.autoDetach=false")
    git(repository, "gc", "--auto", "--quiet", options=options, timeout=timeout)


def quarantine(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What git hands to pre-receive so that the objects of the push can be seen, by name."""
    names = (
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_QUARANTINE_PATH",
    )
    return {name: environ[name] for name in names if name in environ}
