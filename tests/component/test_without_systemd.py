"""conf/without-systemd: every service under its own account, and only those that are asked for."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installed import ACCOUNTS, CONFIG, Installed, installed
from tests.support.place import until

pytestmark = pytest.mark.root

VICTIM = "/etc/root-alone"
TAKEN_OVER = f"""\
#!/usr/bin/python3 -I
import os, socket, sys, time
path = sys.argv[sys.argv.index("--listen") + 1]
print("ready:", path, file=sys.stderr, flush=True)
with socket.socket(socket.AF_UNIX) as own:
    try:
        if os.path.lexists(path):
            os.unlink(path)
        own.bind(path)
        own.listen()
        own.accept()
        os.unlink(path)
        os.symlink("{VICTIM}", path)
    except OSError:
        pass
    print("tried", file=sys.stderr, flush=True)
    time.sleep(1000)
"""
"""What a worker may become: as soon as somebody looks at its socket, a link is in its place."""


@pytest.fixture(scope="module")
def system() -> Iterator[Installed]:
    with installed() as made:
        yield made


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def test_start_status_and_stop(system: Installed) -> None:
    down = system.services("status", check=False)
    assert down.code == 3
    names = [line.split()[0] for line in down.text.splitlines()]
    assert names == ["notifier", "signer", "worker-trusted", "worker-untrusted", "daemon"]
    system.services("start")
    up = system.services("status")
    assert up.text.count(" runs (pid ") == len(names)
    accounts = {
        "daemon": "invirtibuilder",
        "signer": "ib-sign",
        "notifier": "ib-notify",
        "worker-trusted": "ib-build",
        "worker-untrusted": "ib-build-untrusted",
    }
    for service, account in accounts.items():
        ids = system.sh('id -u "$1"; id -g "$1"; id -G "$1"', account).splitlines()
        status = status_of(system.process(service))
        assert status["Uid"] == [ids[0]] * 4, service
        assert status["Gid"] == [ids[1]] * 4, service
        assert sorted(status["Groups"]) == sorted(ids[2].split()), service
        assert {status[f"Cap{each}"][0] for each in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
        environment = Path(f"/proc/{system.process(service)}/environ").read_bytes().split(b"\0")
        handed = () if service == "daemon" else (b"LISTEN_PID", b"LISTEN_FDS")
        assert {e.split(b"=")[0] for e in environment if e} == {
            *(b"PATH", b"LC_ALL", b"HOME", b"INVIRTIBUILDER_CONFIG", *handed),
        }
        assert f"HOME={ACCOUNTS[account]}".encode() in environment
    assert status_of(system.process("daemon"))["CapBnd"] == ["0" * 16]
    assert status_of(system.process("daemon"))["NoNewPrivs"] == ["1"]
    # Only the daemon may connect, and only root may put anything beside the sockets.
    for name in ("notify", "sign", "worker-trusted", "worker-untrusted"):
        listed = system.run("stat", "-c", "%F %U:%G %a", f"/run/invirtibuilder/{name}.sock").text
        assert listed == "socket root:invirtibuilder 660"
    assert system.run("stat", "-c", "%U:%G %a", "/run/invirtibuilder").text == "root:root 755"
    assert not system.run("find", "/run/invirtibuilder", "!", "-user", "root").text
    assert " ready: " in system.run("cat", "/var/log/invirtibuilder/daemon.log").text
    # What runs already stays as it is.
    before = system.process("daemon")
    system.services("start")
    assert system.process("daemon") == before
    system.services("stop", "daemon")
    assert system.services("status", check=False).text.count(" runs (pid ") == 4
    system.services("stop")
    assert system.services("status", check=False).text.count(" does not run") == 5
    assert not list(system.path("/run/invirtibuilder").iterdir())
    assert not Path(f"/proc/{before}").exists()


def test_one_that_has_died_is_started_again(system: Installed) -> None:
    system.services("start", "worker-trusted")
    pid = system.process("worker-trusted")
    os.kill(pid, signal.SIGKILL)
    until(lambda: system.services("status", check=False).text.count("does not run") == 5)
    system.services("start", "worker-trusted")
    assert system.process("worker-trusted") != pid
    system.services("stop")


def test_one_that_is_frozen_is_killed(system: Installed) -> None:
    system.services("start", "signer")
    pid = system.process("signer")
    os.kill(pid, signal.SIGSTOP)
    done = system.services("stop", "signer", timeout=60)
    assert b"signer has not ended in 5 seconds, and is killed" in done.err
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert not list(system.path("/run/invirtibuilder").iterdir())


def test_a_worker_becomes_the_new_program(system: Installed) -> None:
    """What an upgrade does: the same process, socket and orders, another program."""
    system.services("start", "worker-trusted")
    pid = system.process("worker-trusted")
    program = system.path("/usr/bin/invirtibuilder")
    log = system.path("/var/log/invirtibuilder/worker-trusted.log")
    text = program.read_text()

    def become(times: int) -> None:
        os.kill(pid, signal.SIGHUP)
        until(lambda: log.read_text().count("new program") == times)
        until(lambda: log.read_text().count("ready: ") == before + times)

    before = log.read_text().count("ready: ")
    try:
        told = "import sys\nprint('new program', file=sys.stderr)\n"
        program.write_text(text.replace("import sys\n", told))
        become(1)
        become(2)
    finally:
        program.write_text(text)
    assert system.process("worker-trusted") == pid
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(system.path("/run/invirtibuilder/worker-trusted.sock")))
        client.sendall(b"nothing")
        assert client.recv(10) == b""  # it wants descriptors
    system.services("stop")


def test_a_worker_that_was_taken_over_gets_nothing_of_roots(system: Installed) -> None:
    program, victim = system.path("/usr/bin/invirtibuilder"), system.path(VICTIM)
    text = program.read_text()
    victim.touch(0o600)
    try:
        program.write_text(TAKEN_OVER)
        system.services("start", "worker-untrusted", check=False)
        log = system.path("/var/log/invirtibuilder/worker-untrusted.log")
        until(lambda: "tried" in log.read_text())
        status = victim.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o600)
        system.services("start", "worker-untrusted")
        listed = system.run("stat", "-c", "%F %U", "/run/invirtibuilder/worker-untrusted.sock").text
        assert listed == "socket root"
    finally:
        program.write_text(text)
        system.services("stop", "worker-untrusted")


def test_what_is_wrong_is_told(system: Installed) -> None:
    usage = system.services("restart", check=False)
    assert usage.code == 64
    assert b"without-systemd start [SERVICE]" in usage.err
    unknown = system.services("start", "mailer", check=False)
    assert unknown.code == 71
    assert b"no service mailer; services are: notifier signer worker-trusted " in unknown.err
    nobody = system.services("start", "worker-other", check=False)
    assert b"there is no account ib-build-other" in nobody.err
    config = system.path(CONFIG)
    text = config.read_text()
    try:
        config.write_text(text + "mistake: 1\n")
        broken = system.services("start", "daemon", check=False)
        assert broken.code == 71
        assert b"unknown key 'mistake'" in broken.err
        assert b"daemon does not start" in broken.err
        config.unlink()
        assert b"`invirtibuilder init` makes one" in system.services("start", check=False).err
    finally:
        config.write_text(text)
