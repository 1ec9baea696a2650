"""Files: all or nothing, and never elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from invirtibuilder import files
from invirtibuilder.errors import Malformed


def test_contained(tmp_path: Path) -> None:
    assert files.contained(tmp_path, "a/b.c") == tmp_path / "a/b.c"
    assert files.contained(tmp_path, "...") == tmp_path / "..."
    for name in ("", ".", "..", "/a", "a/", "a//b", "a/../b", "./a", "a/.", "a\0b", "../x"):
        with pytest.raises(Malformed):
            files.contained(tmp_path, name)


def test_write_atomic_replaces_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    old = os.umask(0o077)
    try:
        files.write_atomic(path, "one")
        assert path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    files.write_atomic(tmp_path / "link", b"two", mode=0o600)
    assert (tmp_path / "target").read_text() == "kept"
    assert not (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "target"]


def test_write_atomic_that_fails_leaves_the_old(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(OSError, match="directory"):
        files.write_atomic(tmp_path / "full", "new")
    with pytest.raises(FileNotFoundError):
        files.write_atomic(tmp_path / "no/such", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


KILLED = """
import os, signal, sys
from pathlib import Path
from invirtibuilder import files
def killed(fd):
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = killed
files.write_atomic(Path(sys.argv[1]), "new" * 1000)
"""


def test_write_atomic_that_is_killed_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    root = Path(__file__).resolve().parents[2]
    argv = [sys.executable, "-c", KILLED, str(path)]
    assert subprocess.run(argv, cwd=root, check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # What it has left is hidden, and in nobody's way.
    assert all(p.name.startswith(".") for p in tmp_path.iterdir() if p != path)
    files.write_atomic(path, "newer")
    assert path.read_text() == "newer"


def test_reading_is_bounded_and_never_follows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert files.read_capped(path, limit=10) == b"x" * 10
    with pytest.raises(Malformed, match="larger"):
        files.read_capped(path, limit=9)
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic"):
        files.read_capped(tmp_path / "link", limit=10)
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(Malformed, match="not a regular file"):
            files.read_capped(tmp_path / name, limit=10)
    with pytest.raises(FileNotFoundError):
        files.read_capped(tmp_path / "no", limit=10)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "file"
    value = {"b": [1, "µ\n"], "a": None}
    files.write_json(path, value)
    assert files.read_json(path) == value
    for text in (b"", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(Malformed):
            files.read_json(path)


def test_a_tree_is_removed_but_not_what_it_links_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "tree/a").mkdir(parents=True)
    (tmp_path / "tree/a/link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("tree", "link", "nothing"):
        files.remove_tree(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").exists()


def test_syncing_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").touch()
    (tmp_path / "a/dangling").symlink_to("/nonexistent")
    files.sync_tree(tmp_path)
    with pytest.raises(OSError, match="symbolic"):
        files.sync_file(tmp_path / "a/dangling")


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.locked(path), pytest.raises(files.Busy), files.locked(path, wait=False):
        pass
    with files.locked(path, wait=False):
        pass


def test_a_child_that_is_given_the_lock_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.locked(path, inheritable=True) as fd:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[fd])
    with pytest.raises(files.Busy), files.locked(path, wait=False):
        pass
    child.communicate()
    with files.locked(path, wait=False):
        pass
