"""Limits of a run: what is enforced by control groups, and what without any."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from invirtibuilder.sandbox import cgroups, limits, usage
from invirtibuilder.sandbox.contract import Bind, Limits
from invirtibuilder.sandbox.ids import Ids
from invirtibuilder.sandbox.limits import PREFIX, Group, Groups
from invirtibuilder.sandbox.usage import Meter, Sample, at_size
from tests.support.base import Room

EVERY = ("memory", "processes", "cpu_time")


@pytest.fixture(scope="module")
def real() -> Iterator[Groups]:
    """Groups as this machine allows them, below ones of this module; maybe none."""
    name = f"test-{secrets.token_hex(4)}"
    found = Groups.find()
    places = {resource: place / name for resource, place in found.places.items()}
    for place in set(places.values()):
        place.mkdir()
        if cgroups.is_second(place):
            cgroups.enabled(place)
    yield Groups(places=places, why=found.why)
    for place in set(places.values()):
        assert not list(place.glob("*/")), "a run has left its group"
        place.rmdir()


@pytest.fixture(params=["groups", "rlimits"])
def limited(request: pytest.FixtureRequest, room: Room, real: Groups) -> Room:
    """A room with control groups, if there are any, and one without."""
    room.groups = real if request.param == "groups" else Groups()
    return room


FORKS = """
import os, sys, time
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    pass
print(made, flush=True)
time.sleep(float(sys.argv[1]))
os._exit(3)
"""
SPIN = "while :; do :; done"


class TestWhole:
    @pytest.mark.parametrize("user", ["root", "build"])
    def test_processes(self, limited: Room, user: str) -> None:
        limited.limits = Limits(seconds=60, processes=50)
        # A group counts what it refuses; else the processes have to be seen.
        seconds = "0" if "processes" in limited.groups.places else "10"
        outcome = limited.run("python3", "-c", FORKS, seconds, user=user)  # type: ignore[arg-type]
        assert outcome.code == 3
        assert 10 < int(limited.output) < 50
        assert outcome.hits["processes"] >= 1

    def test_too_few_processes_is_no_hit(self, limited: Room) -> None:
        limited.limits = Limits(seconds=60, processes=50)
        assert limited.run("sh", "-c", "sleep 1.5; exit 3").hits == {}

    def test_memory_of_one_process(self, limited: Room) -> None:
        limited.limits = Limits(seconds=60, memory=128 << 20)
        outcome = limited.run("python3", "-c", "x = bytearray(b'x') * (512 << 20)")
        if "memory" in limited.groups.places:
            assert outcome.limit == "memory"
        else:
            assert (outcome.limit, outcome.code) == ("", 1)
            assert b"MemoryError" in limited.output

    def test_memory_of_all_processes(self, limited: Room) -> None:
        """Each by itself has less than the limit."""
        hold = "import time; x = bytearray(b'x') * (40 << 20); time.sleep(10)"
        limited.limits = Limits(seconds=60, memory=128 << 20)
        many = f'for i in 1 2 3 4 5 6; do python3 -c "{hold}" & done; wait; exit 0'
        outcome = limited.run("sh", "-c", many)
        whole = "memory" in limited.groups.places
        assert outcome.limit == ("memory" if whole else "")
        assert whole or "of each process by itself" in limited.groups.lacking()["memory"]

    def test_a_build_within_its_memory(self, limited: Room) -> None:
        limited.limits = Limits(seconds=60, memory=128 << 20, processes=50, cpu_seconds=20)
        assert limited.run("python3", "-c", "x = bytearray(b'x') * (20 << 20)").code == 0

    @pytest.mark.parametrize("place", ["/dev/shm", "/run", "/tmp"])
    def test_file_systems_in_memory_are_smaller_than_it(self, limited: Room, place: str) -> None:
        limited.limits = Limits(seconds=60, memory=128 << 20)
        fill = f"head -c 64M /dev/zero > {place}/x; df -B1M --output=used {place}"
        outcome = limited.run("sh", "-c", fill, user="root")
        assert (outcome.limit, outcome.code) == ("", 0)
        assert b"No space left on device" in limited.output
        assert int(limited.output.split()[-1]) == 32

    def test_cpu_time_of_all_processes(self, limited: Room) -> None:
        """Of three that run, and of many that are over in no time."""
        limited.limits = Limits(seconds=60, cpu_seconds=1)
        assert limited.run("sh", "-c", f"({SPIN})& ({SPIN})& {SPIN}").limit == "cpu_time"
        short = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
        assert limited.run("sh", "-c", f"while :; do sh -c '{short}'; done").limit == "cpu_time"

    def test_one_file(self, limited: Room) -> None:
        limited.with_scratch()
        limited.limits = Limits(seconds=60, file_size=1 << 20)
        outcome = limited.run("dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=5")
        assert outcome.code == -signal.SIGXFSZ
        assert outcome.hits == {"file_size": 1}
        assert limited.run("sh", "-c", "rm /tmp/big; exit 3").hits == {}


class TestDisk:
    @pytest.mark.parametrize("place", ["/tmp/x", "/var/x", "/out/x"])
    def test_what_is_written_counts(self, room: Room, place: str) -> None:
        room.with_scratch()
        room.binds = (Bind(source=room.tree("out"), target="/out", writable=True),)
        room.limits = Limits(seconds=60, disk=32 << 20)
        fill = f"dd if=/dev/zero of={place} bs=1M count=64 status=none; sleep 1000"
        assert room.run("sh", "-c", fill, user="root").limit == "disk"

    def test_it_is_measured_without_a_cause_too(
        self, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By allocated blocks: holes do not count."""
        monkeypatch.setattr(usage, "FIRST", 0.5)
        room.with_scratch()
        room.limits = Limits(seconds=60, disk=32 << 20)
        assert room.run("sh", "-c", "truncate -s 1T /tmp/x; sleep 2").limit == ""
        room.text("dd", "if=/dev/zero", "of=/tmp/y", "bs=1M", "count=64", "status=none")
        assert room.run("sleep", "1000").limit == "disk"

    def test_a_tree_of_too_many_files_is_given_up(
        self, room: Room, ids: Ids, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(usage, "FIRST", 0.0)
        monkeypatch.setattr(usage, "LONGEST", 0.0)
        tree = room.tree("tree")
        meter = Meter(ids, [tree], limit=1 << 60, reserve=None)
        # The first look starts a measurement, the second one has no patience.
        assert [meter.look(), meter.look(), meter.look()] == ["", "", ""]
        assert meter._running is None
        assert meter._due > time.monotonic() + 50

    def test_empty_files_count_when_there_is_no_room_for_more(self, room: Room, ids: Ids) -> None:
        tree = room.tree("tree")
        room.binds = (Bind(source=tree, target="/tree", writable=True),)
        room.python("for n in range(3000): open(f'/tree/{n}', 'w')", user="root")
        assert Meter(ids, [tree], limit=8 << 20, reserve=1 << 60).whose() == "disk"
        assert Meter(ids, [tree], limit=16 << 20, reserve=1 << 60).whose() == "reserve"

    def test_too_little_room_on_the_machine(self, room: Room) -> None:
        room.with_scratch()
        room.limits = Limits(seconds=60, reserve=1 << 60)
        assert room.run("sleep", "1000").limit == "reserve"
        room.limits = Limits(seconds=60, reserve=1 << 60, disk=1 << 30)
        assert room.run("sleep", "1000").limit == "reserve"
        # Also when it was over before anybody looked.
        assert room.run("sh", "-c", "exit 3").limit == "reserve"

    def test_a_run_that_took_the_room_itself(self, room: Room) -> None:
        room.with_scratch()
        room.text("dd", "if=/dev/zero", "of=/var/tmp/x", "bs=1M", "count=32", user="root")
        room.limits = Limits(seconds=60, reserve=1 << 60, disk=16 << 20)
        assert room.run("sleep", "1000").limit == "disk"

    def test_removed_files_that_are_open_count_at_the_end(self, room: Room, ids: Ids) -> None:
        tree = room.tree("tree")
        meter = Meter(ids, [tree], limit=64 << 20, reserve=1 << 60)
        assert meter.whose() == "reserve"
        held = os.open(tree.parent, os.O_TMPFILE | os.O_RDWR)
        os.posix_fallocate(held, 0, 1 << 30)
        assert meter.look() == "reserve"
        os.close(held)
        assert meter.whose() == "disk"

    def test_nothing_to_write_to(self, ids: Ids) -> None:
        meter = Meter(ids, [], limit=1, reserve=1 << 60)
        assert (meter.look(), meter.full()) == ("", False)

    def test_a_hostile_tree_is_measured(self, room: Room, ids: Ids) -> None:
        tree = room.tree("tree")
        room.binds = (Bind(source=tree, target="/tree", writable=True),)
        program = """
            import os
            os.chdir("/tree")
            os.symlink("/usr", "link")
            os.mkfifo("fifo")
            os.mkdir("closed")
            open("closed/file", "wb").write(bytes(1 << 20))
            os.link("closed/file", "closed/again")
            os.chown("closed/file", 1234, 1234)
            os.chmod("closed", 0)
            for _ in range(3000):
                os.mkdir("a" * 20)
                os.chdir("a" * 20)
            os.truncate(os.open("hole", os.O_CREAT | os.O_WRONLY), 1 << 40)
        """
        room.python(program, user="root")
        meter = Meter(ids, [tree], limit=1, reserve=None)
        assert meter.whose() == "disk"
        # A block for each directory, a MiB once, nothing for the hole.
        assert 1 << 20 < meter.used < 30 << 20
        assert at_size(ids, [tree], 1 << 40)
        assert not at_size(ids, [tree], 12345)


class TestSamples:
    def test_all_that_descend_are_seen(self) -> None:
        program = "import os, time\nif os.fork() == 0: os.setsid()\nos.fork()\ntime.sleep(100)"
        process = subprocess.Popen([sys.executable, "-c", program])
        try:
            end = time.monotonic() + 30
            while (sample := Sample.below(process.pid)).processes < 4:
                assert time.monotonic() < end, sample
                time.sleep(0.02)
            assert sample.cpu_seconds < 10
        finally:
            group = Sample.below(process.pid)
            assert group.processes == 4
            for pid in _below(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()

    def test_nobody(self) -> None:
        assert Sample.below(1 << 22).processes == 0


def _below(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in _below(int(child)))]


MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
31 22 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 22 0:28 /box/a\\040b /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 22 0:29 /elsewhere /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""
MEMBER = """\
9:name=systemd:/
7:memory:/box
6:pids:/box/a b/c
3:cpu,cpuacct:/user
0::/system.slice/ib.service
"""


class TestPlaces:
    def test_our_own_groups(self, tmp_path: Path) -> None:
        (tmp_path / "mountinfo").write_text(MOUNTS)
        (tmp_path / "cgroup").write_text(MEMBER)
        top = Path("/sys/fs/cgroup")
        assert cgroups.own_groups(tmp_path) == {
            "": top / "unified/system.slice/ib.service",
            "cpu": top / "cpu,cpuacct/user",
            "cpuacct": top / "cpu,cpuacct/user",
            "pids": top / "pids/c",
        }

    def test_this_process(self) -> None:
        for place in cgroups.own_groups().values():
            assert str(os.getpid()) in (place / "cgroup.procs").read_text().split()

    def test_whoever_may_write_no_group_is_told_what_holds(self) -> None:
        def nobody() -> None:
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            found = Groups.find()
            os.write(1, "\n".join([*found.places, *found.lacking().values()]).encode())

        text = _in_a_child(nobody)
        told = [line for line in text.splitlines() if line not in EVERY]
        places = set(text.splitlines()) & set(EVERY)
        assert len(told) + len(places) == 3
        for resource in set(EVERY) - places:
            assert any(f"the limit on {resource} is enforced" in line for line in told)
        if os.getuid() == 0:
            assert not places
            assert "cannot be written" in text or "no control groups" in text

    def test_a_delegated_group(self) -> None:
        """Its processes move to a leaf of it, and later ones find it from there."""
        own = cgroups.own_groups().get("")
        if own is None or not os.access(own, os.W_OK):
            assert own not in Groups.find().places.values()
            return
        given = own / f"test-{secrets.token_hex(4)}"
        given.mkdir()
        try:
            os.setxattr(given, "user.delegate", b"1")

            def inside() -> None:
                cgroups.write(given / "cgroup.procs", "0")
                cgroups._settle(given)
                os.write(1, repr(cgroups.own_groups()[""].relative_to(given)).encode())
                os.write(1, f" {cgroups.delegated(cgroups.own_groups()[''])}".encode())

            text = _in_a_child(inside)
            assert text == f"PosixPath('{cgroups.LEAF}') ({given!r}, '')"
            assert cgroups._handed_over(given)
            assert not cgroups._handed_over(own)
            # A group of that name in one that is not delegated is no leaf of ours.
            alike = given / "x" / cgroups.LEAF
            alike.mkdir(parents=True)
            assert cgroups.delegated(alike)[0] != alike.parent
            alike.rmdir()
            alike.parent.rmdir()
        finally:
            with suppress(FileNotFoundError):
                (given / cgroups.LEAF).rmdir()
            given.rmdir()


def _in_a_child(body: object) -> str:
    """What a function writes to its standard output, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writer, 1)
            body()  # type: ignore[operator]
        except BaseException as error:
            os.write(1, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


class TestGroups:
    def test_a_run_has_its_own_and_leaves_none(self, room: Room, real: Groups) -> None:
        room.groups = real
        room.limits = Limits(seconds=60, processes=50, memory=1 << 30, cpu_seconds=60)
        seen: set[Path] = set()

        def look() -> bool:
            for place in real.places.values():
                seen.update(g for g in place.iterdir() if g.is_dir() and _processes(g))
            return {group.parent for group in seen} == set(real.places.values())

        assert room.run("sleep", "1000", cancelled=look).limit == "cancelled"
        assert {group.parent for group in seen} == set(real.places.values())
        assert all(group.name.startswith(PREFIX) for group in seen)

    def test_what_a_killed_worker_left_is_swept(self, real: Groups) -> None:
        group = real.make(memory=None, processes=20, cpu=True)
        real.sweep()
        assert all(directory.exists() for directory in group.directories)
        real.sweep(older=0)
        assert not any(directory.exists() for directory in group.directories)
        group.remove()

    def test_version_2(self, tmp_path: Path) -> None:
        for name, text in {
            "cgroup.controllers": "memory pids\n",
            "memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
            "pids.events": "max 7\n",
            "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n",
        }.items():
            (tmp_path / name).write_text(text)
        group = Group(dict.fromkeys(EVERY, tmp_path))
        assert (group.out_of_memory(), group.forks_refused()) == (True, 7)
        assert group.cpu_seconds() == 2.5
        # Killed, as the machine had no more: not the group's own limit.
        (tmp_path / "memory.events").write_text("max 0\noom 0\noom_kill 1\n")
        assert not group.out_of_memory()

    def test_version_1(self, tmp_path: Path) -> None:
        for name, text in {
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "memory.limit_in_bytes": f"{64 << 20}\n",
            "memory.max_usage_in_bytes": f"{(64 << 20) - 8192}\n",
            "pids.events": "max 7\n",
            "cpuacct.usage": "2500000000\n",
        }.items():
            (tmp_path / name).write_text(text)
        group = Group(dict.fromkeys(EVERY, tmp_path))
        assert (group.out_of_memory(), group.forks_refused()) == (True, 7)
        assert group.cpu_seconds() == 2.5
        (tmp_path / "memory.max_usage_in_bytes").write_text(f"{32 << 20}\n")
        assert not group.out_of_memory()

    def test_no_group(self) -> None:
        group = Groups().make(memory=1, processes=1, cpu=True)
        assert (group.directories, group.out_of_memory(), group.forks_refused()) == ([], False, 0)
        assert group.cpu_seconds() is None
        assert len(Groups().lacking()) == len(limits.RESOURCES)


def _processes(group: Path) -> list[str]:
    with suppress(OSError):
        return (group / "cgroup.procs").read_text().split()
    return []
