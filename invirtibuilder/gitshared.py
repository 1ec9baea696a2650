"""A bare repository that another account pushes to: what that one may write in it, and how.

It belongs to the site. The group of the pushing account may add packs and move branches, tags and
notes; it writes neither configuration nor hooks, HEAD, alternates or refs of the site's own, and
removes nothing of what the site has written but branches and notes:

- git locks HEAD, in the repository's own directory, to move the branch that HEAD names. It does not
  when HEAD names a ref that names that branch; clients see no difference.
- git locks packed-refs, to delete a ref. That is a link into a directory for the lock, where it
  cannot be replaced. The site packs no refs, so that none are in it.
- A push is kept as one pack, in directories where nobody removes another's files.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from invirtibuilder import files
from invirtibuilder.accounts import let

HEAD = "refs/site/HEAD"
PACKED = "packed"
_NO_REFS = "# pack-refs with: peeled fully-peeled sorted \n"

SETTINGS = {
    "gc": {"packRefs": "false"},
    "receive": {"unpackLimit": "1", "autogc": "false"},
    "transfer": {"hideRefs": "refs/site"},
}
"""What the configuration has besides."""

OPEN = 0o2775
"""A directory where the group also replaces and removes."""
STICKY = 0o3775
"""One where it only adds."""

DEEPEST = 100
"""Folders in each other, each a descriptor here: who pushes could make them without an end."""

ABANDONED = 86400.0
"""Seconds after which no push goes on."""


def git_options(repository: Path) -> list[str]:
    """Options of the git that the pushing account runs, so that the site can go on with it."""
    options = (f"safe.directory={repository}", "core.sharedRepository=group")
    return [word for option in options for word in ("-c", option)]


def head(repository: Path) -> str:
    """The name of the symbolic ref that names the branch which a clone checks out."""
    return HEAD if (repository / HEAD).exists() else "HEAD"


def sweep(repository: Path) -> None:
    """Remove what killed pushes of this account have left, which nobody else can."""
    for path in (repository / "objects").glob("*incoming-*"):
        with suppress(OSError):
            status = path.stat()
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def share(repository: Path, gid: int, tags: Sequence[str] = ()) -> None:
    """Let a group push; safe to repeat.

    `tags` are folders of tags that are the site's. Raises MachineFault for who is not in the group.
    """
    _indirect_head(repository)
    _move_packed(repository)
    for name in (*(f"refs/tags/{tag}" for tag in tags), "refs/notes", "objects/pack"):
        (repository / name).mkdir(parents=True, exist_ok=True)
    for name in (PACKED, "objects", "objects/pack"):
        let(repository / name, gid, STICKY)
    for name, mode in (("refs/heads", OPEN), ("refs/notes", OPEN), ("refs/tags", STICKY)):
        top = repository / name
        for folder, below, _, fd in os.fwalk(top):
            path = Path(folder)
            let(path, gid, mode, fd=fd)
            if len(path.relative_to(top).parts) == DEEPEST:
                below.clear()


def _indirect_head(repository: Path) -> None:
    own = repository / "HEAD"
    said = own.read_text()
    if said.strip() != f"ref: {HEAD}":
        (repository / HEAD).parent.mkdir(exist_ok=True)
        files.write_atomic(repository / HEAD, said)
        files.write_atomic(own, f"ref: {HEAD}\n")


def _move_packed(repository: Path) -> None:
    packed = repository / "packed-refs"
    moved = repository / PACKED / packed.name
    moved.parent.mkdir(exist_ok=True)
    if packed.is_symlink() and moved.exists():
        return
    # First as another name of it: at no moment there are no refs.
    if packed.exists() and not packed.is_symlink():
        moved.unlink(missing_ok=True)
        os.link(packed, moved)
    else:
        files.write_atomic(moved, _NO_REFS)
    beside = repository / ".packed-refs"
    beside.unlink(missing_ok=True)
    beside.symlink_to(f"{PACKED}/{packed.name}")
    beside.rename(packed)
    files.sync_directory(repository)
