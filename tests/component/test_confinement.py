"""A package takes over reprepro: what it can do then, and what the same program can elsewhere."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from invirtibuilder import confine, files
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.confine import Confinement
from invirtibuilder.run import CLEAN, ProcessFault, run

SOURCE = Path(__file__).parents[1] / "support/takenover.c"
OWN = {"own-pocket", "own-configuration", "own-artifact"}
FILES = {
    *("read-key", "read-job", "read-environment", "read-memory", "start-program"),
    *("write-queue", "write-job", "write-other-pocket", "write-superproject"),
    *("write-publication", "write-configuration", "creat", "mkdir", "rename", "unlink"),
}
"""What only Landlock denies."""

VICTIM = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER_ANY
there = ctypes.create_string_buffer(b"here")
print(ctypes.addressof(there), flush=True)
sys.stdin.read()
"""
"""Stands for the daemon: a process of the same account, that others may look into."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A site's files and services, with the program that shall come in reprepro's place."""

    place: Path
    program: Path
    archive: Reprepro

    @property
    def changes(self) -> str:
        """What is included."""
        return str(self.place / "jobs/1/artifacts/x.changes")

    def state(self) -> dict[str, tuple[int, int, bytes]]:
        """All that is outside the pocket's own folders, and what is in those that leads away."""
        found = {}
        for path in self.place.rglob("*"):
            name = str(path.relative_to(self.place))
            ours = name.startswith(("archive/dev/pool/", "archive/dev/private/db"))
            about = path.lstat()
            if not ours or path.is_symlink() or not (path.is_file() or path.is_dir()):
                content = path.read_bytes() if path.is_file() else b""
                found[name] = (about.st_mode, about.st_mtime_ns if content else 0, content)
        return found


@pytest.fixture
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    place = tmp_path_factory.mktemp("s")
    for name in ("gnupg/private-keys-v1.d", "jobs/1/artifacts", "queue/new", "queue/tmp"):
        (place / name).mkdir(parents=True)
    for name in ("superproject.git", "archive/prod/pool", "archive/dev/publications", "run"):
        (place / name).mkdir(parents=True)
    archive = Reprepro(
        root=place / "archive/dev",
        codename="dev",
        components=["main"],
        architectures=["amd64"],
        origin="Example",
        label="Example",
        suite="dev",
        description="An archive",
    )
    archive.create()
    for name in ("jobs/1/fact.json", "jobs/1/artifacts/x.deb", "queue/tmp/entry"):
        (place / name).write_text("true\n")
    (place / "gnupg/private-keys-v1.d/key").write_text("secret\n")
    (place / "superproject.git/HEAD").write_text("true\n")
    (archive.private / "conf/options").write_text("# none\n")
    with ExitStack() as stack:
        listeners = [place / "run" / name for name in ("sign.sock", "daemon.sock", "notify.sock")]
        for address in (*map(str, listeners), f"\0{place}"):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(address)
            server.listen()
        network = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        victim = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        assert victim.stdout
        somewhere = int(victim.stdout.readline())
        words = {
            "PLACE": f'"{place}"',
            "VICTIM": str(victim.pid),
            "VICTIMS": f'"/proc/{victim.pid}"',
            "ADDRESS": str(somewhere),
            "PORT": str(network.getsockname()[1]),
        }
        program = tmp_path_factory.mktemp("bin") / "reprepro"
        defined = [f"-D{name}={value}" for name, value in words.items()]
        run(["gcc", "-O1", "-Wall", *defined, "-o", program, SOURCE])
        yield Scene(place=place, program=program, archive=archive)
        assert victim.poll() is None


def results(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (line.split() for line in text.splitlines())}


def test_what_takes_over_reprepro_gets_nowhere(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the very call that would run the real one; then the same program without confinement."""
    monkeypatch.setitem(CLEAN, "PATH", f"{scene.program.parent}:{CLEAN['PATH']}")
    with files.locked(scene.archive.lock, inheritable=True) as lock:
        before = scene.state()
        for action in ("list", "include"):
            done = scene.archive.call(action, "dev", scene.changes, lock_fd=lock)
            found = results(done.text)
            assert len(found) >= 40
            assert {name for name, number in found.items() if number == 0} == OWN
            assert scene.state() == before
    # The control: each of them would have succeeded, and does harm.
    found = results(run([scene.program]).text)
    assert not any(found.values()), {name: os.strerror(n) for name, n in found.items() if n}
    assert scene.state() != before


def test_without_landlock_it_has_files_but_no_service_and_no_process(scene: Scene) -> None:
    def enter() -> None:
        confine._filter(forks=True, syncs=True)

    found = results(run([scene.program], enter=enter).text)
    assert {name for name, number in found.items() if number == 0} == OWN | FILES


def test_with_the_landlock_of_debian_12_it_gets_nowhere_either(scene: Scene) -> None:
    """That one knows no right to truncate a file."""
    confined = scene.archive._confinement("include", [scene.changes])
    confined = dataclasses.replace(confined, execute=[*confined.execute, scene.program])
    before = scene.state()
    found = results(run([scene.program], enter=lambda: confined._enter(2)).text)
    assert {name for name, number in found.items() if number == 0} == OWN
    assert scene.state() == before


def rights() -> list[str]:
    """What the kernel says of this thread."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("NoNewPrivs", "Seccomp"))]


def test_only_the_thread_that_starts_it_is_confined(tmp_path: Path) -> None:
    """Nothing of it is left in whoever called, nor in threads that are started later."""
    before, seen = rights(), []
    confinement = Confinement(read=[Path("/proc")], execute=[Path("/usr/bin/cat").resolve()])
    told = run(["cat", "/proc/self/status"], enter=confinement.enter).text
    assert "NoNewPrivs:\t1" in told
    assert "Seccomp:\t2" in told
    thread = threading.Thread(target=lambda: seen.append(rights()))
    thread.start()
    thread.join()
    assert [rights(), *seen] == [before, before]
    (tmp_path / "written").touch()
    socket.socket(socket.AF_UNIX).close()


@pytest.mark.parametrize("syncs", [True, False])
def test_who_syncs_afterwards_spares_a_command_the_waiting(syncs: bool) -> None:
    """There is no such descriptor; only the kernel would say so."""
    program = "import os\ntry: os.fdatasync(99)\nexcept OSError: print('asked the kernel')"
    confined = Confinement(execute=[Path("/usr")], syncs=syncs)
    done = run(["/usr/bin/python3", "-IS", "-c", program], enter=confined.enter)
    assert done.text == ("asked the kernel" if syncs else "")


def test_a_confined_command_is_killed_with_all_it_started(tmp_path: Path) -> None:
    """Its own thread could not: there kill(2) fails."""
    paths = [Path(shutil.which(name) or "") for name in ("sh", "sleep")]
    confinement = Confinement(execute=[path.resolve() for path in paths], forks=True)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with fifo.open("wb") as held, pytest.raises(ProcessFault, match="no end after"):
        run(
            ["sh", "-c", "sleep 600 & sleep 600"],
            pass_fds=[held.fileno()],
            timeout=0.3,
            enter=confinement.enter,
        )
    # Nobody has the other end any more.
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_cannot_be_confined_is_not_started(tmp_path: Path) -> None:
    def enter() -> None:
        raise OSError(1, "no filter")

    with pytest.raises(ProcessFault, match="no filter"):
        run(["touch", tmp_path / "made"], enter=enter)
    assert not (tmp_path / "made").exists()


def test_the_version_of_landlock_is_the_kernels() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert confine.abi() == max(0, libc.syscall(444, None, 0, 1)) > 0
