"""reprepro's transactions, against the real reprepro."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import files
from invirtibuilder.apt import reprepro
from invirtibuilder.apt.exchange import MANY, Exchange
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.errors import ConfigFault, Fault, MachineFault, Malformed, PackageFault
from invirtibuilder.run import Killed
from tests.support import debs
from tests.support.debs import Binary


@pytest.fixture
def archive(tmp_path: Path) -> Reprepro:
    made = Reprepro(
        root=tmp_path / "archive" / "dev",
        codename="dev",
        components=["main", "contrib"],
        architectures=["amd64", "arm64"],
        origin="Example",
        label="Example dev",
        suite="dev",
        description="Test archive",
    )
    made.create()
    return made


@pytest.fixture
def lock(archive: Reprepro) -> Iterator[int]:
    with files.locked(archive.lock, inheritable=True) as fd:
        yield fd


def include(archive: Reprepro, changes: Path, lock: int, **more: Any) -> None:
    """A whole transaction for one .changes, restored when it fails."""
    include_all(archive, [changes], lock, **more)


def include_all(archive: Reprepro, uploads: Sequence[Path], lock: int, **more: Any) -> None:
    """A whole transaction for several, restored when it fails."""
    archive.begin()
    try:
        debs.exchange(archive, *uploads, lock_fd=lock, **more)
    except Fault:
        archive.restore()
        raise
    archive.commit()


def listed(archive: Reprepro, lock: int) -> set[tuple[str, str, str]]:
    return {(e.package, e.version, e.architecture) for e in archive.listing(lock_fd=lock)}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p) for p in folder.iterdir() if p.is_file()}


def test_include_lists_source_and_every_binary(
    archive: Reprepro, lock: int, tmp_path: Path
) -> None:
    binaries = [
        Binary(name="foo-doc"),
        Binary(name="libfoo1", architecture="amd64", version="3.0-1"),
        Binary(name="libfoo1-dbgsym", architecture="amd64", version="3.0-1"),
    ]
    changes = debs.upload(tmp_path / "in", "foo", "1:1.0-1", binaries=binaries)
    for path in changes.parent.iterdir():
        if path.is_file():
            path.chmod(0o600)

    include(archive, changes, lock)

    assert listed(archive, lock) == {
        ("foo", "1:1.0-1", "source"),
        ("foo-doc", "1:1.0-1", "amd64"),
        ("foo-doc", "1:1.0-1", "arm64"),
        ("libfoo1", "3.0-1", "amd64"),
        ("libfoo1-dbgsym", "3.0-1", "amd64"),
    }
    for entry in archive.listing(lock_fd=lock):
        file = archive.root / entry.filename
        assert entry.filename.startswith("pool/main/f/foo/")
        assert (entry.source, entry.source_version, entry.component) == ("foo", "1:1.0-1", "main")
        assert sha256(file) == sha256(changes.parent / file.name)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(archive.private.stat().st_mode) == 0o700
    assert not archive.is_open()


def test_packages_for_the_installer_are_taken(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    """Many real sources have one; clients that install other packages never look at its index."""
    binaries = [
        Binary(name="libfoo1", architecture="amd64"),
        Binary(name="libfoo1-udeb", architecture="amd64", udeb=True),
    ]
    include(archive, debs.upload(tmp_path / "in", "foo", "1.0", binaries=binaries), lock)
    assert ("libfoo1-udeb", "1.0", "amd64") in listed(archive, lock)
    archive.begin()
    archive.export(lock_fd=lock)
    archive.commit()
    dists = archive.private / "dists/dev/main"
    assert "libfoo1-udeb" not in (dists / "binary-amd64/Packages").read_text()
    assert "libfoo1-udeb" in (dists / "debian-installer/binary-amd64/Packages").read_text()


def test_include_again_is_no_error(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    changes = debs.upload(tmp_path / "in", "foo", "1.0")
    include(archive, changes, lock)
    before = listed(archive, lock)
    include(archive, changes, lock)
    assert listed(archive, lock) == before


def test_lower_version_is_detected_though_reprepro_returns_0(
    archive: Reprepro, lock: int, tmp_path: Path
) -> None:
    """Of what was said to be an upgrade: all others are out before."""
    include(archive, debs.upload(tmp_path / "new", "foo", "2.0"), lock)
    before = listed(archive, lock)
    old = debs.upload(tmp_path / "old", "foo", "1.0")

    with pytest.raises(PackageFault, match="Skipping inclusion") as refused:
        include(archive, old, lock, upgraded={"foo"})

    assert refused.value.code == "reprepro-refused"
    assert str(tmp_path / "archive") not in str(refused.value)
    assert listed(archive, lock) == before


def test_everything_of_the_source_is_replaced(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    both = [Binary(name="foo"), Binary(name="foo-extra")]
    include(archive, debs.upload(tmp_path / "new", "foo", "2.0", binaries=both), lock)
    include(archive, debs.upload(tmp_path / "other", "bar", "5"), lock)

    include(archive, debs.upload(tmp_path / "old", "foo", "1.0"), lock)

    foo = {entry for entry in listed(archive, lock) if entry[0].startswith("foo")}
    assert foo == {("foo", "1.0", a) for a in ("source", "amd64", "arm64")}
    assert ("bar", "5", "source") in listed(archive, lock)
    # Clients of the last publication still fetch what it names.
    assert (archive.root / "pool/main/f/foo/foo_2.0_all.deb").is_file()


def test_same_version_with_other_bytes_is_refused_whole(
    archive: Reprepro, lock: int, tmp_path: Path
) -> None:
    include(archive, debs.upload(tmp_path / "one", "foo", "1.0"), lock)
    before, pool = listed(archive, lock), digests(archive.root / "pool/main/f/foo")
    other = debs.upload(tmp_path / "two", "foo", "1.0", content="other")

    with pytest.raises(PackageFault, match="different checksums") as refused:
        include(archive, other, lock)

    assert refused.value.hint
    assert listed(archive, lock) == before
    assert digests(archive.root / "pool/main/f/foo") == pool
    include(archive, debs.upload(tmp_path / "next", "foo", "1.1"), lock)


def test_epoch_twin_is_refused(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    include(archive, debs.upload(tmp_path / "one", "foo", "1.0"), lock)
    twin = debs.upload(tmp_path / "two", "foo", "1:1.0")
    with pytest.raises(PackageFault, match="different checksums"):
        include(archive, twin, lock)


def test_binary_of_another_source_is_refused(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    include(archive, debs.upload(tmp_path / "one", "foo", "1.0"), lock)
    thief = debs.upload(tmp_path / "two", "bar", "2.0", binaries=[Binary(name="foo")])

    with pytest.raises(PackageFault, match=r"foo belongs to foo 1\.0") as refused:
        include(archive, thief, lock)
    assert refused.value.code == "binary-clash"

    include(archive, thief, lock, take_over=True)
    assert ("foo", "2.0", "amd64") in listed(archive, lock)


def test_several_come_and_go_together(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    first = [debs.upload(tmp_path / name, name, "1.0") for name in ("foo", "bar", "old")]
    include_all(archive, first, lock)
    second = [
        debs.upload(tmp_path / "2" / name, name, "2.0", binaries=[Binary(name=f"{name}-tools")])
        for name in ("foo", "new")
    ]
    include_all(archive, second, lock, gone=["old", "never-there"])
    sources = {entry[:2] for entry in listed(archive, lock) if entry[2] == "source"}
    assert sources == {("foo", "2.0"), ("bar", "1.0"), ("new", "2.0")}
    names = {entry[0] for entry in listed(archive, lock) if entry[2] == "amd64"}
    assert names == {"foo-tools", "bar", "new-tools"}


def test_of_two_that_bring_one_binary_the_second_is_refused(
    archive: Reprepro, lock: int, tmp_path: Path
) -> None:
    both = [
        debs.upload(tmp_path / name, name, "1.0", binaries=[Binary(name="common")])
        for name in ("one", "two")
    ]
    with pytest.raises(PackageFault, match=r"common belongs to one 1\.0"):
        include_all(archive, both, lock)
    assert listed(archive, lock) == set()


@pytest.mark.parametrize("first", [0, 1])
def test_a_binary_moves_on_to_another_source(
    archive: Reprepro, lock: int, tmp_path: Path, first: int
) -> None:
    """The source that had it has it no more, whichever of the two comes first."""
    include(
        archive, debs.upload(tmp_path / "1", "foo", "1.0", binaries=[Binary(name="both")]), lock
    )
    left = debs.upload(tmp_path / "2", "foo", "2.0")
    joined = debs.upload(tmp_path / "3", "bar", "2.0", binaries=[Binary(name="both")])
    include_all(archive, [left, joined] if first else [joined, left], lock)
    entries = {(e.package, e.source) for e in archive.listing(lock_fd=lock)}
    assert {("both", "bar"), ("foo", "foo")} <= entries


def test_many_at_once(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    """More names than one formula has."""
    names = [f"p{number}" for number in range(MANY // 2)]
    include_all(archive, [debs.upload(tmp_path / n, n, "1.0") for n in names[:3]], lock)
    include(archive, debs.upload(tmp_path / "other", "other", "1.0"), lock)
    include(archive, debs.upload(tmp_path / "2", "p1", "2.0"), lock, gone=set(names) - {"p1"})
    sources = {entry[:2] for entry in listed(archive, lock) if entry[2] == "source"}
    assert sources == {("p1", "2.0"), ("other", "1.0")}


def test_foreign_distribution_is_refused(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    changes = debs.upload(tmp_path / "in", "foo", "1.0", distribution="prod")
    with pytest.raises(PackageFault, match="distribution") as refused:
        include(archive, changes, lock)
    assert refused.value.code == "reprepro-refused"
    assert listed(archive, lock) == set()


def test_unknown_architecture_is_refused(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    binaries = [Binary(name="foo", architecture="riscv64")]
    with pytest.raises(PackageFault, match="riscv64"):
        include(archive, debs.upload(tmp_path / "in", "foo", "1.0", binaries=binaries), lock)
    assert listed(archive, lock) == set()


def test_reason_names_no_directory_of_ours(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    changes = debs.upload(tmp_path / "in", "foo", "1.0")
    changes.write_text(changes.read_text().replace(" misc optional ", " misc - "))
    with pytest.raises(PackageFault, match="No priority specified") as refused:
        include(archive, changes, lock)
    assert str(tmp_path) not in str(refused.value)


def test_corrupt_deb_is_refused(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    changes = debs.upload(tmp_path / "in", "foo", "1.0")
    deb = changes.with_name("foo_1.0_all.deb")
    deb.write_bytes(deb.read_bytes()[:-1] + b"!")
    with pytest.raises(PackageFault):
        include(archive, changes, lock)
    assert listed(archive, lock) == set()


def test_changes_must_be_of_the_job(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    changes = debs.upload(tmp_path / "in", "foo", "1.0")
    archive.begin()
    exchange = Exchange(archive, {"foo": ["foo"], "bar": []}, lock_fd=lock)
    with pytest.raises(Malformed, match=r"not the \.changes of foo 1\.1"):
        exchange.add(changes, "foo", "1.1")
    with pytest.raises(Malformed, match=r"not the \.changes of bar 1\.0"):
        exchange.add(changes, "bar", "1.0")
    with pytest.raises(Malformed, match="was not to be exchanged"):
        exchange.add(changes, "other", "1.0")
    changes.write_text(changes.read_text().replace(" foo_1.0_all.deb", " ../foo_1.0_all.deb"))
    with pytest.raises(Malformed, match="file name"):
        exchange.add(changes, "foo", "1.0")


def test_changed_pool_file_is_our_fault(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    changes = debs.upload(tmp_path / "in", "foo", "1.0")
    include(archive, changes, lock)
    file = archive.root / "pool/main/f/foo/foo_1.0_all.deb"
    file.write_bytes(file.read_bytes()[:-1] + b"!")  # reprepro does not notice this one
    with pytest.raises(MachineFault, match="in the pool has SHA-256"):
        include(archive, changes, lock)
    file.write_bytes(b"bad")
    with pytest.raises(MachineFault, match="reprepro failed"):
        include(archive, changes, lock)


def test_no_write_without_a_transaction(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    with pytest.raises(MachineFault):
        debs.exchange(archive, debs.upload(tmp_path, "foo", "1.0"), lock_fd=lock)
    archive.begin()
    with pytest.raises(MachineFault):
        archive.begin()


def test_restore_undoes_and_is_safe_at_any_moment(
    archive: Reprepro, lock: int, tmp_path: Path
) -> None:
    include(archive, debs.upload(tmp_path / "one", "foo", "1.0"), lock)
    before = listed(archive, lock)
    changes = debs.upload(tmp_path / "two", "foo", "2.0")

    def crashed() -> None:
        archive.begin()
        debs.exchange(archive, changes, lock_fd=lock)
        archive.export(lock_fd=lock)
        (archive.private / "db" / "lockfile").touch()

    crashed()
    archive.restore()
    assert listed(archive, lock) == before

    # In restore, after the database was moved away; `create` then runs first at a start.
    crashed()
    (archive.private / "db").rename(archive.private / "db.old")
    archive.create()
    archive.restore()
    assert listed(archive, lock) == before

    # In begin, before the transaction was open; and in commit, after it was closed.
    shutil.copytree(archive.private / "db", archive.private / "db.txn.tmp")
    archive.restore()
    assert listed(archive, lock) == before
    crashed()
    (archive.private / "db.txn").rename(archive.private / "db.txn.done")
    archive.restore()
    assert ("foo", "2.0", "source") in listed(archive, lock)
    assert sorted(p.name for p in archive.private.iterdir()) == [
        *(".lock", "conf", "db", "dists", "gnupg"),
    ]


def test_export_after_restore_names_the_old_content(
    archive: Reprepro, lock: int, tmp_path: Path
) -> None:
    include(archive, debs.upload(tmp_path / "one", "foo", "1.0"), lock)
    archive.begin()
    debs.exchange(archive, debs.upload(tmp_path / "two", "foo", "2.0"), lock_fd=lock)
    archive.export(lock_fd=lock)
    archive.restore()
    archive.export(lock_fd=lock)
    index = archive.private / "dists/dev/main/binary-amd64/Packages"
    assert "Version: 1.0\n" in index.read_text()
    assert sha256(index) in (archive.private / "dists/dev/Release").read_text()


HUNTER = """import os, signal, sys, time
from pathlib import Path
from typing import Any
root, lock, delay = os.fsencode(sys.argv[1]), sys.argv[2], float(sys.argv[3])
wanted = {b"include", b"--outdir=" + root}
def including():
    # Not by all of /proc: where pid 1 does not reap, it is full of what earlier tests left.
    for children in Path(f"/proc/{os.getppid()}/task").glob("*/children"):
        for pid in children.read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\\0")
            if words[0] == b"reprepro" and wanted <= {*words}:
                return int(pid)
    return 0
def has_lock(pid):
    fds = list(Path(f"/proc/{pid}/fd").iterdir())
    for fd in fds:
        try:
            if os.readlink(fd) == lock:
                return True
        except FileNotFoundError:  # closed meanwhile
            continue
    return False if fds else None  # it has ended and is not reaped yet
print("ready", flush=True)
seen = None
while seen is None:
    try:
        pid = including()
        seen = has_lock(pid) if pid else None
    except OSError:  # a process or thread has ended meanwhile
        continue
print(seen, flush=True)
time.sleep(delay)
os.killpg(pid, signal.SIGKILL)
"""
"""A process of its own: a thread of ours would not get its turn in time."""


@contextlib.contextmanager
def killer(archive: Reprepro, delay: float) -> Iterator[list[bool]]:
    """Kill -9 the group of the next include, `delay` seconds after it is seen.

    Afterwards, what is yielded has one value if it was seen: whether it had the lock open.
    """
    seen: list[bool] = []
    words = [str(archive.root), str(archive.lock), str(delay)]
    argv = [sys.executable, "-IS", "-c", HUNTER, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as hunter:
        assert hunter.stdout
        assert hunter.stdout.readline() == "ready\n"
        try:
            yield seen
        finally:
            hunter.kill()
            seen += [line == "True\n" for line in hunter.stdout]


def test_killed_include_is_undone_and_repeated(
    archive: Reprepro, lock: int, tmp_path: Path
) -> None:
    for number in range(30):
        binaries = [Binary(name=f"old{number}-{n}") for n in range(4)]
        debs.upload(
            tmp_path / f"{number}", f"old{number}", "1.0", binaries=binaries[: 1 + number % 4]
        )
    archive.begin()
    uploads = [tmp_path / f"{n}" / f"old{n}_1.0.changes" for n in range(30)]
    debs.exchange(archive, *uploads, lock_fd=lock)
    archive.commit()
    locks: list[bool] = []
    killed = 0
    for step in range(8):
        before = listed(archive, lock)
        # Large enough for an include to be found at work on an idle machine, too.
        content = "x" * (12 << 20)
        changes = debs.upload(tmp_path / f"new{step}", "foo", f"{step}.0", content=content)
        archive.begin()
        with killer(archive, 0.01 * step) as seen:
            try:
                debs.exchange(archive, changes, lock_fd=lock)
            except Killed as fault:
                assert "killed from outside by SIGKILL" in str(fault)
                killed += 1
        locks += seen
        archive.restore()
        assert listed(archive, lock) == before
        include(archive, changes, lock)
        assert ("foo", f"{step}.0", "source") in listed(archive, lock)
    assert killed >= 2, "too few of the calls were killed for this test to say anything"
    # So an orphan of a dead daemon keeps the lock until it ends.
    assert locks
    assert all(locks)


def test_call_that_does_not_end_is_stopped(archive: Reprepro, lock: int, tmp_path: Path) -> None:
    changes = debs.upload(tmp_path / "in", "foo", "1.0")
    archive.begin()
    hasty = replace(archive, timeout=0.0)
    with pytest.raises(MachineFault):
        debs.exchange(hasty, changes, lock_fd=lock)
    archive.restore()
    include(archive, changes, lock)


def test_file_limit_stops_a_runaway(
    archive: Reprepro, lock: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = debs.upload(tmp_path / "in", "foo", "1.0")
    archive.begin()
    monkeypatch.setattr(reprepro, "FILE_LIMIT", 4096)
    with pytest.raises(MachineFault):
        debs.exchange(archive, changes, lock_fd=lock)
    monkeypatch.undo()
    archive.restore()
    include(archive, changes, lock)


def test_create_rewrites_settings_but_loses_nothing(
    archive: Reprepro, lock: int, tmp_path: Path
) -> None:
    archive.create()
    include(archive, debs.upload(tmp_path / "in", "foo", "1.0"), lock)
    before = listed(archive, lock)
    renamed = replace(archive, origin="Renamed", components=["main", "contrib", "non-free"])
    renamed.create()
    assert listed(renamed, lock) == before
    assert "Origin: Renamed\n" in (archive.private / "conf/distributions").read_text()
    with pytest.raises(ConfigFault, match="arm64"):
        replace(renamed, architectures=["amd64"]).create()
    with pytest.raises(ConfigFault, match="Label"):
        replace(renamed, label="x\nSignWith: ! /bin/sh").create()
    assert listed(renamed, lock) == before
