"""Layers: sets of installed build dependencies over a base, named by what went into them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from invirtibuilder import files
from invirtibuilder.run import run
from invirtibuilder.sandbox.ids import Ids, make_tree, remove_tree, tree_size
from invirtibuilder.sandbox.userns import upper_of

SIZE = "size"
"""Beside a layer: how many bytes it takes on disk."""


def key(base: str, packages: Iterable[str], profiles: Iterable[str]) -> str:
    """A layer's name: SHA-256 over the base's digest, each package's SHA-256 and the profiles."""
    parts = [f"base {base}", *sorted(f"package {p}" for p in packages)]
    parts += sorted(f"profile {p}" for p in profiles)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextmanager
def held(store: Path, name: str) -> Iterator[Path | None]:
    """The layer's directory, not removed while the block runs; None when there is none."""
    try:
        fd = os.open(store / name / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        # It may have been removed between the opening and the lock.
        layer = upper_of(store / name / "tree")
        if os.fstat(fd).st_nlink and layer.is_dir():
            os.utime(fd)
            yield layer
        else:
            yield None
    finally:
        os.close(fd)


@contextmanager
def made(store: Path, name: str, ids: Ids, *, most: int) -> Iterator[Path]:
    """A scratch tree to install into; it becomes the layer when the block ends well.

    Then the least recently used layers beyond `most` bytes are removed, but those in use.
    """
    beside = Path(tempfile.mkdtemp(prefix=".new-", dir=store))
    beside.chmod(0o711)
    try:
        with files.locked(beside / "lock"):
            make_tree(ids, beside / "tree")
            yield beside / "tree"
            (beside / SIZE).write_text(f"{tree_size(ids, beside / 'tree')}\n")
            # The tree is not ours to open: the whole file system is synced (syncfs(2)).
            run(["sync", "--file-system", beside])
            # Another worker may have been faster: its layer holds the same.
            with suppress(OSError):
                beside.rename(store / name)
            # While this one is held: it is in use.
            collect(store, ids, most=most)
    finally:
        if beside.exists():
            discard(beside, ids)


def collect(store: Path, ids: Ids, *, most: int) -> None:
    """Remove what was left half-made, and the least recently used layers beyond `most` bytes."""
    for leftover in store.glob(".new-*"):
        _discard_free(leftover, ids)
    layers = sorted(
        (p for p in store.iterdir() if not p.name.startswith(".") and (p / "lock").exists()),
        key=lambda p: (p / "lock").stat().st_mtime,
        reverse=True,
    )
    total = 0
    for layer in layers:
        total += _size(layer, most)
        if total > most:
            _discard_free(layer, ids)


def _size(layer: Path, unknown: int) -> int:
    try:
        return int((layer / SIZE).read_text())
    except (FileNotFoundError, ValueError):
        return unknown


def _discard_free(layer: Path, ids: Ids) -> None:
    with suppress(files.Busy, FileNotFoundError), files.locked(layer / "lock", wait=False):
        (layer / "lock").unlink()
        if not layer.name.startswith("."):
            # Half removed it must not stand where the same layer is to be made again.
            layer = layer.rename(tempfile.mkdtemp(prefix=".new-", dir=layer.parent))
        discard(layer, ids)


def discard(layer: Path, ids: Ids) -> None:
    """Remove a layer's directory, whatever is in it."""
    if (layer / "tree").exists():
        remove_tree(ids, layer / "tree")
    files.remove_tree(layer)
