"""Builds that misbehave: each ends with the right verdict, leaves nothing, and harms no other."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.errors import Blame
from invirtibuilder.order import Limits
from invirtibuilder.sandbox.base import Base, BaseSpec
from tests.escape.machine import served
from tests.support import debs
from tests.support.yard import Ended, Yard, repository, yard

MARKER = f"invirtibuilder-bad-{os.getpid()}"
ROOM = Limits(seconds=240, processes=300, file_size=1 << 30, disk=2 << 30)
"""Little enough for the machine's sake, whatever a limit of a test's own does."""

BOMB = "bomb() { bomb | bomb & }; exec >/dev/null 2>&1; mkfifo /tmp/end; bomb & read x </tmp/end\n"
SILENT = "trap '' TERM HUP INT; sh -c \"trap '' TERM; sleep 999\" & setsid sleep 999 & sleep 999\n"
FILLER = "for i in $(seq 40); do head -c 16M /dev/zero >$1/f$i; done; echo filled; sleep 1000\n"
HOG = "perl -e '@x = map { \"x\" x (16 << 20) } 1..40; sleep 1000'\n"


@pytest.fixture(scope="module")
def place(base: Base, base_spec: BaseSpec, layers: Path) -> Iterator[Yard]:
    """The worker of all tests here."""
    with yard(base, base_spec) as made:
        yield made


def build(
    place: Yard,
    name: str,
    script: str,
    *arguments: str,
    limits: Limits = ROOM,
    extra_sources: str = "",
    build_depends: str = "",
) -> Ended:
    """Build a package whose rules run this script; nothing is left of it, whatever it does."""
    dsc = place.source(
        name,
        build=f"\tsh ./{MARKER} {' '.join(arguments)}\n",
        files={MARKER: script},
        build_depends=build_depends,
    )
    ended = place.build(dsc, limits=limits, extra_sources=extra_sources)
    assert place.remains(MARKER) == []
    return ended


def verdict(ended: Ended) -> tuple[str, Blame]:
    """The first reason's code, and whose fault it is."""
    return ended.codes[0], ended.manifest.blame


def unharmed(place: Yard) -> None:
    """A good build is as good as ever."""
    ended = build(place, "good", "set -e; test ! -e /tmp/x; test ! -e /var/tmp/x; ! test -e /etc/x")
    assert ended.manifest.ok, ended.log[-3000:]
    assert "good_1.0_all.deb" in ended.files


def test_a_fork_bomb(place: Yard) -> None:
    limits = Limits(seconds=240, idle_seconds=10, processes=100)
    ended = build(place, "bomb", BOMB, limits=limits)
    assert verdict(ended) == ("limit-idle", Blame.PACKAGE)
    if "processes" in ended.whole:  # else a sample may miss processes that live for an instant
        assert ended.codes == ["limit-idle", "limit-processes"]
        assert "the limit on processes (100) was hit" in ended.message
    unharmed(place)


def test_a_memory_hog(place: Yard) -> None:
    ended = build(place, "hog", HOG, limits=Limits(seconds=240, memory=256 << 20))
    if "memory" in ended.whole:
        assert verdict(ended) == ("limit-memory", Blame.PACKAGE)
        assert "exceeded the limit on memory (256 MiB)" in ended.message
    else:
        assert verdict(ended) == ("build-failed", Blame.PACKAGE)


def test_memory_of_many_processes(place: Yard) -> None:
    """Each has less than the limit."""
    many = "for i in 1 2 3 4 5 6 7 8; do perl -e '$x = \"x\" x (50 << 20); sleep 4' & done; wait\n"
    ended = build(place, "many", many, limits=Limits(seconds=240, memory=256 << 20))
    if "memory" not in ended.whole:
        assert ended.manifest.ok
        pytest.skip("no control group for memory: only each process is limited, as self-check says")
    assert verdict(ended) == ("limit-memory", Blame.PACKAGE)


@pytest.mark.parametrize("where", [".", "/tmp"])
def test_a_disk_filler(place: Yard, where: str) -> None:
    ended = build(place, "filler", FILLER, where, limits=Limits(seconds=240, disk=300 << 20))
    assert verdict(ended) == ("limit-disk", Blame.PACKAGE)
    assert "exceeded the limit on disk (300 MiB)" in ended.message


def test_a_filler_of_memory(place: Yard) -> None:
    """File systems in memory are small, and end with the build."""
    fill = "set -e; head -c 2G /dev/zero >/dev/shm/x\n"
    ended = build(place, "shm", fill, limits=Limits(seconds=240, memory=512 << 20))
    assert verdict(ended) == ("build-failed", Blame.PACKAGE)
    assert "No space left on device" in ended.message


def test_a_silent_one_that_ignores_every_signal(place: Yard) -> None:
    ended = build(place, "silent", SILENT, limits=Limits(seconds=240, idle_seconds=10))
    assert verdict(ended) == ("limit-idle", Blame.PACKAGE)
    assert "exceeded the limit on idle (10 s)" in ended.message


def test_cpu_time(place: Yard) -> None:
    spin = "for i in 1 2 3; do sh -c 'while :; do :; done' & done; wait\n"
    ended = build(place, "spin", spin, limits=Limits(seconds=240, cpu_seconds=2))
    assert verdict(ended) == ("limit-cpu-time", Blame.PACKAGE)


def test_a_log_of_terminal_escapes(place: Yard) -> None:
    """What a verdict quotes is inert; `log`, mail and the doors escape the log themselves."""
    evil = r"printf '\033]0;owned\007\033[2J\233\177 \342\200\256 end\n'; exit 7" + "\n"
    ended = build(place, "colours", evil)
    assert verdict(ended) == ("build-failed", Blame.PACKAGE)
    assert "\x1b[2J" in ended.log
    assert " end" in ended.message
    assert all(line.isprintable() for line in ended.message.split("\n"))


def test_a_daemon_that_outlives_its_build(place: Yard) -> None:
    stay = f"setsid sh -c \"trap '' TERM; sleep 999; : {MARKER}\" >/dev/null 2>&1 & echo started\n"
    ended = build(place, "stays", stay)
    assert ended.manifest.ok, ended.log[-3000:]


def test_a_build_that_writes_outside_its_tree(place: Yard) -> None:
    writes = """
        for file in /etc/x /usr/bin/x ../x ../../x /root/x /run/x /proc/sys/kernel/core_pattern; do
            (echo bad >$file) && echo "wrote $file"
        done
        echo x >/tmp/x; echo x >/var/tmp/x; echo x >/dev/shm/x
        ln -s /etc/passwd ../stray_1.0_all.txt
        rm -rf /usr/share/doc 2>/dev/null
        true
    """
    ended = build(place, "wild", writes)
    assert ended.manifest.ok, ended.log[-3000:]
    # Its own folder, where its packages go, and /run/lock's like: nothing of the base.
    wrote = [line for line in ended.log.splitlines() if line.startswith("wrote ")]
    assert wrote == ["wrote ../x"]
    assert sorted(ended.files) == ["wild_1.0_all.deb", "wild_1.0_amd64.buildinfo"]
    unharmed(place)


def test_artifacts_that_are_no_files(place: Yard) -> None:
    evil = """
        ln -s /etc/passwd ../link_1.0_all.deb
        mkfifo ../fifo_1.0_all.deb
        truncate -s 1T ../hole_1.0_all.deb
        ln -s /dev/zero ../zero.buildinfo
        mkdir -p '../..deb' '../a/../b'
    """
    ended = build(place, "artful", evil)
    assert verdict(ended) == ("bad-artifacts", Blame.PACKAGE)
    for name in ("link_1.0_all.deb", "fifo_1.0_all.deb", "hole_1.0_all.deb", "zero.buildinfo"):
        assert name in ended.message
    assert ended.files == {}


def test_one_that_waits_for_the_network(place: Yard) -> None:
    wait = "exec bash -c 'until exec 3<>/dev/tcp/192.0.2.1/80; do sleep 0.1; done' 2>err\n"
    ended = build(place, "lonely", wait, limits=Limits(seconds=240, idle_seconds=10))
    assert verdict(ended) == ("limit-idle", Blame.PACKAGE)
    fail = "bash -c 'exec 3<>/dev/tcp/192.0.2.1/80'\n"
    ended = build(place, "hasty", fail)
    assert "Network is unreachable" in ended.log
    assert verdict(ended) == ("build-failed", Blame.PACKAGE)


SCRIPTS = {
    "bomb": (BOMB, "limit-idle"),
    "filler": (FILLER.replace("$1", "/var/lib"), "limit-disk"),
    "failing": ("exit 3\n", "room"),
    "daemon": (f"setsid sh -c 'sleep 999; : {MARKER}' >/dev/null 2>&1 &\n", ""),
}
ALONE = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep 'sleep 9[9]' && exit 9; true\n"


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_maintainer_script_of_a_dependency(place: Yard, tmp_path: Path, kind: str) -> None:
    """It runs as the sandbox's root; the layer that it was to be in is none."""
    script, code = SCRIPTS[kind]
    source = repository(tmp_path, "bad-dependency", script)
    limits = Limits(seconds=240, idle_seconds=10, processes=100, disk=400 << 20)
    with served(tmp_path) as url:
        ended = build(
            place,
            f"uses-{kind}",
            ALONE,
            limits=limits,
            build_depends="bad-dependency",
            extra_sources=source.format(url),
        )
    kept = list((place.directory / "work/slot-1/layers").iterdir())
    if not code:
        assert ended.manifest.ok, ended.log[-3000:]
        return
    assert verdict(ended) == (code, Blame.ROOM)
    assert "installing the build dependencies" in ended.message
    assert not any((layer / "tree/upper/var/lib/f1").exists() for layer in kept)


def test_a_machine_without_room(place: Yard) -> None:
    """Nothing is begun, and it is not the package's fault."""
    ended = build(place, "early", "true\n", limits=Limits(seconds=240, reserve=1 << 60))
    assert verdict(ended) == ("disk-full", Blame.MACHINE)
    assert "dpkg-source" not in ended.log


def hostile(*members: tuple[str, bytes, str]) -> bytes:
    """A native source tarball of these members: name, type, target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz", format=tarfile.GNU_FORMAT) as tar:
        for member, kind, target in members:
            info = tarfile.TarInfo(member)
            info.type = kind
            info.linkname = target
            content = b"" if kind != tarfile.REGTYPE else b"owned\n"
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


TARS: dict[str, tuple[tuple[str, bytes, str], ...]] = {
    "dots": (("evil-1.0/../../../../../../tmp/owned", tarfile.REGTYPE, ""),),
    "absolute": (("/tmp/owned", tarfile.REGTYPE, ""),),
    "through a link": (
        ("evil-1.0/way", tarfile.SYMTYPE, "/tmp"),
        ("evil-1.0/way/owned", tarfile.REGTYPE, ""),
    ),
    "the tree a link": (("evil-1.0", tarfile.SYMTYPE, "/tmp"),),
    "a device": (("evil-1.0/disk", tarfile.BLKTYPE, ""),),
    "debian a link": (("evil-1.0/debian", tarfile.SYMTYPE, "/etc"),),
}


@pytest.mark.parametrize("kind", TARS)
def test_a_hostile_source_tarball(place: Yard, tmp_path: Path, kind: str) -> None:
    owned = Path("/tmp/owned")
    before = owned.exists()
    tar = tmp_path / "evil_1.0.tar.xz"
    tar.write_bytes(hostile(*TARS[kind]))
    dsc = tmp_path / "evil_1.0.dsc"
    dsc.write_text(
        "Format: 3.0 (native)\nSource: evil\nBinary: evil\nArchitecture: all\nVersion: 1.0\n"
        f"Maintainer: {debs.PERSON}\n{debs.checksums([tar])}"
    )
    ended = place.build(dsc, limits=ROOM)
    assert place.remains(MARKER) == []
    assert not ended.manifest.ok
    assert ended.manifest.blame == Blame.PACKAGE, ended.message
    assert ended.files == {}
    assert owned.exists() is before
