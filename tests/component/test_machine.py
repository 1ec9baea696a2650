"""Throw-away machines: what works in them, what is out of reach, what stays.

A boot takes seconds when it is emulated, so that each test asks one machine for much.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder.errors import MachineFault
from invirtibuilder.files import read_json, write_json
from invirtibuilder.run import CLEAN
from invirtibuilder.sandbox import kvm
from invirtibuilder.sandbox.contract import Bind, Limits
from invirtibuilder.sandbox.ids import Ids
from invirtibuilder.sandbox.userns import upper_of
from invirtibuilder.sandbox.vm import FILE, Hardware, Machine
from tests.support.machines import MachineRoom

LOOK = """
import json, os, socket, sys

def tried(family, address):
    try:
        with socket.socket(family) as it:
            it.settimeout(5)
            it.connect(address)
    except OSError as error:
        return error.strerror
    return "connected"

def contents(path):
    try:
        return os.listdir(path)
    except OSError as error:
        return error.strerror

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "status": {k: status[k].strip() for k in status if k.startswith("Cap") or k == "NoNewPrivs"},
    "environment": dict(os.environ),
    "host": os.uname().nodename,
    "mounts": [line.split()[1] for line in open("/proc/mounts")],
    "dev": sorted(os.listdir("/dev")),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "loopback": tried(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))),
    "abstract": tried(socket.AF_UNIX, "\\0" + sys.argv[2]),
    "elsewhere": tried(socket.AF_INET, ("10.0.2.2", int(sys.argv[1]))),
    "processes": sorted(int(p) for p in os.listdir("/proc") if p.isdigit()),
    "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
    "host files": os.path.exists(sys.argv[3]),
    "outside": [contents(p) for p in ("/disks", "/control", "/base", "/proc/1/root/disks")],
    "given": sys.stdin.read(),
}), file=sys.stderr)
print("result")
for path in ("/x", "/in/put/x", "/run/deep/er/file"):
    try:
        open(path, "a")
        print("wrote", path)
    except OSError as error:
        print(error.strerror)
open("/dev/stderr", "a").write("again\\n")
sys.exit(7)
"""


CRASHING = """
result=/disks/own/result
if [ "$(head -c 1 $result)" = x ]; then printf 'started\\nstatus 3 0 0 0 0 0\\n' >&2; exit; fi
[ "$0" = always ] || printf x 1<>$result
kill -SEGV $$
"""
"""What stands for the emulator; it can write nothing but what is to be its guest's output."""


@pytest.mark.parametrize("how", ["once", "always"])
def test_an_emulator_that_crashes_is_started_again_once(
    machine: MachineRoom, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    monkeypatch.setattr(Machine, "_argv", lambda *_: ("/bin/sh", "-euc", CRASHING, how))
    with (tmp_path / "output").open("wb") as output:
        if how == "once":
            assert machine.run("true", stdout=output.fileno()).code == 3
        else:
            with pytest.raises(MachineFault, match="the machine does not start"):
                machine.run("true", stdout=output.fileno())


def test_what_is_in_reach_of_a_build(machine: MachineRoom, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "file").write_text("content")
    machine.binds = (
        Bind(source=ours, target="/in/put"),
        Bind(source=ours / "file", target="/run/deep/er/file"),
    )
    given, results = tmp_path / "given", tmp_path / "results"
    given.write_bytes(b"x" * 1000)
    name = f"invirtibuilder-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        given.open() as stdin,
        results.open("wb") as stdout,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen()
        args = (str(server.getsockname()[1]), name, str(tmp_path))
        outcome = machine.run(
            *("python3", "-c", LOOK, *args),
            env={"EXTRA": "a 'quoted' $value"},
            stdin=stdin.fileno(),
            stdout=stdout.fileno(),
        )
    assert (outcome.code, outcome.limit) == (7, ""), machine.output
    readonly = "Read-only file system"
    assert results.read_text().splitlines() == ["result", *[readonly] * 3]
    seen, again = machine.output.decode().splitlines()
    assert again == "again"
    found = json.loads(seen)
    assert found["ids"] == [[1000] * 3, [1000] * 3, []]
    assert found["status"].pop("NoNewPrivs") == "1"
    assert {int(value, 16) for value in found["status"].values()} == {0}
    expected = {**CLEAN, "HOME": "/nonexistent", "EXTRA": "a 'quoted' $value"}
    assert found["environment"] == expected
    assert found["host"] == "build"
    mounts = ["/", "/dev", "/dev/pts", "/dev/shm", "/in/put", "/proc", "/run", "/run/deep/er/file"]
    assert sorted(found["mounts"]) == [*mounts, "/sys", "/tmp"]
    names = ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin"]
    assert found["dev"] == [*names, "stdout", "tty", "urandom", "zero"]
    assert found["interfaces"] == ["lo"]
    assert found["loopback"] == found["abstract"] == "Connection refused"
    assert found["elsewhere"] == "Network is unreachable"
    assert len(found["processes"]) <= 3
    assert found["descriptors"] == [0, 1, 2, 3]
    assert not found["host files"]
    assert found["outside"] == ["No such file or directory"] * 3 + ["Permission denied"]
    assert found["given"] == "x" * 1000


def test_what_is_written_stays_on_disks(machine: MachineRoom, ids: Ids) -> None:
    """Root writes, and the next machines find it: as a layer, and in a bind."""
    base = machine.hardware.base
    machine.lowers = (base.root,)
    machine.scratch, theirs = machine.tree("scratch"), machine.tree("theirs")
    machine.binds = (Bind(source=theirs, target="/out", writable=True),)
    program = """
        rm /etc/hostname; mkdir /layer; echo in >/layer/file; echo x >/out/x; echo t >/tmp/t
        grep CapEff /proc/self/status
        mknod /tmp/disk b 254 0 && cat /tmp/disk && echo a disk can be read
        mount -t tmpfs none /mnt && echo something can be mounted
        kill -KILL $$
    """
    outcome = machine.run("sh", "-c", program, user="root")
    assert (outcome.code, outcome.limit) == (-signal.SIGKILL, "")
    text = machine.output.decode()
    assert "CapEff:\t00000000800404fb" in text
    assert "can be" not in text
    upper = upper_of(machine.scratch)
    assert [path.name for path in upper.iterdir()] == [FILE]
    assert (upper / FILE).stat().st_uid == ids.first_uid + 1000
    assert not list(theirs.iterdir())

    machine.lowers, machine.scratch = (upper, base.tools, base.root), None
    machine.binds = (Bind(source=theirs, target="/again"),)
    program = "test ! -e /etc/hostname && cat /layer/file /again/x; touch /again/y; ls /tmp"
    assert machine.run("sh", "-c", program).code == 0
    read = "touch: cannot touch '/again/y': Read-only file system"
    assert machine.output.decode().splitlines() == ["in", "x", read]


def test_limits_inside(machine: MachineRoom) -> None:
    machine.limits = Limits(
        seconds=300, processes=20, memory=64 << 20, disk=16 << 20, file_size=1 << 20
    )
    out = machine.tree("out")
    machine.binds = (Bind(source=out, target="/out", writable=True),)
    program = """
        yes >/out/large
        i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i + 1)); done
        echo never
    """
    outcome = machine.run("sh", "-c", program, user="root")
    assert outcome.code != 0
    assert outcome.hits["processes"] >= 1
    assert outcome.hits["file_size"] == 1
    assert b"never" not in machine.output

    hog = machine.run("python3", "-c", "x = bytearray(1 << 28); print('never')")
    assert (hog.code, hog.limit) == (-signal.SIGKILL, "memory")

    machine.limits = replace(machine.limits, file_size=None)
    program = "yes >/out/big; echo still here; exit 3"
    filler = machine.run("sh", "-c", program, user="root")
    assert (filler.code, filler.limit) == (3, "disk")
    assert b"still here" in machine.output


def test_limits_of_the_whole(machine: MachineRoom, tmp_path: Path) -> None:
    seen = []

    def look() -> bool:
        seen.append(len(machines()))
        return False

    machine.limits = Limits(seconds=5)
    outcome = machine.run("sleep", "1000", cancelled=look)
    assert (outcome.limit, outcome.code) == ("time", -signal.SIGKILL)
    assert max(seen) > 0, "no machine was seen: the test shows nothing"
    assert not machines()

    start = time.monotonic()
    machine.limits = Limits(seconds=300)
    outcome = machine.run("sleep", "1000", cancelled=lambda: time.monotonic() > start + 1)
    assert outcome.limit == "cancelled"

    machine.limits = Limits(seconds=300, output=100000)
    with (tmp_path / "results").open("wb") as stdout:
        outcome = machine.run("sh", "-c", "yes | head -c 200000", stdout=stdout.fileno())
    assert outcome.limit == "output"
    assert (tmp_path / "results").stat().st_size <= 100000


def machines() -> list[int]:
    """The processes that we, or what we have started, have started and that are qemu."""
    found, parents = [], {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if (entry / "cmdline").read_bytes().startswith(b"qemu-system-"):
                found.append(pid)
    return [pid for pid in found if _ours(pid, parents)]


def _ours(pid: int, parents: Mapping[int, int]) -> bool:
    while pid in parents and pid != os.getpid():
        pid = parents[pid]
    return pid == os.getpid()


class TestKvm:
    def test_without_it_only_emulation_that_is_asked_for(
        self, hardware: Hardware, ids: Ids, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
        answer = tmp_path / "answer"
        with pytest.raises(MachineFault, match="there is no") as caught:
            kvm.with_accelerator(hardware, ids, answer=answer, emulation=False)
        assert "emulation: true" in caught.value.hint
        emulated = kvm.with_accelerator(hardware, ids, answer=answer, emulation=True)
        assert emulated.accelerator == "tcg"

    def test_a_device_is_no_proof(
        self, hardware: Hardware, ids: Ids, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Something called kvm that is none: the trial says why, once for these circumstances."""
        monkeypatch.setattr(kvm, "DEVICE", Path("/dev/null"))
        broken = replace(hardware, kit=tmp_path)
        answer = tmp_path / "answer"
        problem = kvm.kvm_problem(broken, ids, answer)
        assert problem
        known = read_json(answer)
        assert known["problem"] == problem
        write_json(answer, {**known, "problem": "as it was found"})
        assert kvm.kvm_problem(broken, ids, answer) == "as it was found"
        write_json(answer, {**known, "circumstances": ["another boot"], "problem": ""})
        assert kvm.kvm_problem(broken, ids, answer) == problem
