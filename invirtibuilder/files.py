"""Files: write beside, sync, rename; contained joins; locks."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from invirtibuilder.errors import Malformed

SYNCS = 16
"""How many files are synced at once."""


def sync_directory(path: Path) -> None:
    """Make the names in this directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(path: Path) -> None:
    """Sync every regular file and directory below `path` (symbolic links are not followed)."""
    found = []
    for folder, _, names in os.walk(path):
        files = (Path(folder, name) for name in names)
        found += [*(file for file in files if not file.is_symlink()), Path(folder)]
    sync_all(found)


def sync_file(path: Path) -> None:
    """Make the content of this file, or the names in this directory, survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_all(paths: Iterable[Path]) -> None:
    """Sync files and directories at once: a file system puts what comes together into one write."""
    found = list(paths)
    waiting = [_syncers(os.getpid()).submit(sync_file, path) for path in found[1:]]
    try:
        for path in found[:1]:
            sync_file(path)
    finally:
        wait(waiting)
    for each in waiting:
        each.result()


@functools.cache
def _syncers(_process: int) -> ThreadPoolExecutor:
    """The threads that do that, a process's own: they do not outlive a fork."""
    return ThreadPoolExecutor(SYNCS, "sync")


def write_atomic(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Replace `path` so that any reader, even after a crash, sees the old or the new content."""
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """`write_atomic` of JSON with sorted keys."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n", mode=mode)


def read_json(path: Path, *, limit: int = 4 << 20) -> Any:
    """Read JSON of at most `limit` bytes. Raises Malformed, FileNotFoundError."""
    data = read_capped(path, limit=limit)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path}: not JSON: {error}") from error


def read_capped(path: Path, *, limit: int) -> bytes:
    """Read a regular file, never through a symbolic link, of at most `limit` bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Malformed(f"{path}: not a regular file")
    with os.fdopen(fd, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Malformed(f"{path}: larger than {limit} bytes")
    return data


def contained(root: Path, name: str) -> Path:
    """Join `root` and a relative name that stays below it. Raises Malformed for anything else."""
    parts = name.split("/")
    if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise Malformed(f"not a plain relative path: {name!r}")
    return root.joinpath(*parts)


def remove_tree(path: Path) -> None:
    """Remove a directory or file of our own; no error when it is gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=False)
    else:
        path.unlink(missing_ok=True)


def link_target(path: Path) -> str | None:
    """What a symbolic link says; None when there is none."""
    try:
        return os.readlink(path)  # noqa: PTH115
    except FileNotFoundError:
        return None


class Busy(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, inheritable: bool = False) -> Iterator[int]:
    """Hold an exclusive flock on `path` (made if absent); yields its descriptor.

    With `inheritable`, children that are given the descriptor keep the lock until they end.
    Raises Busy when `wait` is false and another process has it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(str(path)) from error
        if inheritable:
            os.set_inheritable(fd, True)
        yield fd
    finally:
        os.close(fd)
