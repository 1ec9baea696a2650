"""The units' confinement can be borne: whole jobs with each service as its unit would run it.

There is no systemd here; tests/support/hardened.py does what it would do.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.run import CLEAN, run
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.ids import Ids
from tests.support import hardened, packages
from tests.support.installed import ACCOUNTS, Installed, installed
from tests.support.place import until
from tests.support.repository import TOP
from tests.support.units import Unit, units, worker

pytestmark = pytest.mark.root

LISTS = ("CapabilityBoundingSet", "ReadWritePaths", "InaccessiblePaths", "RestrictAddressFamilies")
PROBES = {
    "an address family": "socket.socket(socket.AF_INET)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a namespace": "c(libc.unshare(0x10000000))",
    "memory to write and run": "mmap.mmap(-1, 4096, prot=7)",
    "another personality": "c(libc.personality(0x0040000))",
    "a setuid file": "made('setuid').chmod(0o4755)",
    "another priority": "os.setpriority(os.PRIO_PROCESS, 0, 5)",
    "being traced": "c(libc.ptrace(0, 0, None, None))",
    "what builds": "os.stat('/var/lib/ib-build/slot-1')",
    "a file elsewhere": "pathlib.Path('/var/lib/world/x').write_text('')",
    "somebody's home": "os.listdir('/home')",
    "root's processes": "pathlib.Path('/proc/1/status').read_text()",
    "what the kernel is set to": "pathlib.Path('/proc/sys/kernel/ostype').read_text()",
    "another's temporary file": "os.stat('/var/tmp/invirtibuilder-probe')",
}
"""What the daemon's unit denies, and whoever is the same account without it may do."""
PROBE = """\
import ctypes, json, mmap, os, pathlib, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def c(result):
    if result == -1 and ctypes.get_errno() != 14: raise OSError(ctypes.get_errno(), "denied")
def made(name):
    path = pathlib.Path("/var/lib/invirtibuilder", name); path.write_text(""); return path
found = {}
for name, code in json.loads(sys.argv[1]).items():
    try: exec(code)
    except OSError as error: found[name] = str(error)
    else: found[name] = ""
made("setuid").unlink()
print(json.dumps(found))
"""


@functools.cache
def groups() -> dict[str, frozenset[str]]:
    """The names of systemd's sets of system calls, with those in them."""
    lists: dict[str, list[str]] = {}
    name = ""
    for line in run(["systemd-analyze", "--no-pager", "syscall-filter"]).text.splitlines():
        if line.startswith("@"):
            name = line.strip()
            lists[name] = []
        elif line.startswith(" ") and "#" not in line and name:
            lists[name].append(line.strip())

    def calls(of: str) -> frozenset[str]:
        if not of.startswith("@"):
            return frozenset([of])
        return frozenset[str]().union(*(calls(each) for each in lists[of]))

    return {name: calls(name) for name in lists}


def allowed(unit: Unit) -> list[str]:
    """The system calls that a unit leaves, without any filter none."""
    found: set[str] = set()
    for value in unit.settings.get("Service.SystemCallFilter", ()):
        for word in value.removeprefix("~").split():
            named = groups().get(word, frozenset([word]))
            found = found - named if value[0] == "~" else found | named
    return sorted(found)


def as_unit(system: Installed, unit: Unit, *argv: str, listen: str = "") -> list[str]:
    """The words that run a command as a unit would run it."""
    told: dict[str, object] = {name: unit.all(f"Service.{name}") for name in LISTS}
    for key in unit.settings:
        section, _, name = key.partition(".")
        if section == "Service" and name not in LISTS:
            assert name in hardened.UNDERSTOOD, f"{unit.name}: {name} is not looked at"
            told[name] = unit.one(key)
    told |= {"argv": argv, "listen": listen, "calls": allowed(unit)}
    return system.argv("/usr/bin/python3", TOP / "tests/support/hardened.py", json.dumps(told))


def service(unit: Unit) -> list[str]:
    """The command of a unit."""
    return unit.settings["Service.ExecStart"][-1].split()


@contextlib.contextmanager
def running(system: Installed, unit: Unit, socket: str = "") -> Iterator[Path]:
    """A service, until the block ends; its output."""
    log = system.disk / f"{unit.name}.log"
    argv = as_unit(system, unit, *service(unit), listen=socket)
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, env=CLEAN, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        until(lambda: "ready" in log.read_text() or process.poll() is not None, unit.name)
        assert process.poll() is None, log.read_text()
        yield log
    finally:
        # nsenter has one child, which is the service.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        for child in children.split():
            os.kill(int(child), signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def system(base: Base, ids: Ids) -> Iterator[Installed]:
    with installed(base, ids) as made:
        for name in ("ib-build", "ib-build-untrusted"):
            # As the unit's private /var/tmp does not have the tests' base.
            made.sh(
                'cd "$1/slot-1" && rm bases && mkdir bases && mount --bind "$2" bases',
                *(ACCOUNTS[name], base.directory.parents[1]),
            )
        yield made


@pytest.fixture
def served(system: Installed) -> Iterator[dict[str, Path]]:
    """All services that a site without hooks has, each as its unit."""
    with contextlib.ExitStack() as stack:
        logs = {}
        for unit in (
            units()["invirtibuilder-signer.service"],
            worker("trusted"),
            worker("untrusted"),
            units()["invirtibuilder.service"],
        ):
            words = service(unit)
            socket = words[words.index("--listen") + 1] if "--listen" in words else ""
            logs[unit.name] = stack.enter_context(running(system, unit, socket))
        yield logs


def test_a_job_of_each_domain(system: Installed, served: dict[str, Path], tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "hello", "hello", "1.0")
    kept = system.disk / "hello"
    run(["cp", "-r", repo.path, kept])
    system.run("invirtibuilder", "package", "create", "hello", "--from", kept)
    for pocket in ("staging", "dev"):
        words = ("submit", pocket, "hello", repo.commit, "--wait")
        done = system.run("/usr/bin/invirtibuilder", *words, check=False)
        logs = {name: log.read_text()[-3000:] for name, log in served.items()}
        assert done.code == 0, (done, logs)
    assert system.run("/usr/bin/invirtibuilder", "cancel", "nonesuch", check=False).code == 66
    for name in ("fsck", "gc"):
        unit = units()[f"invirtibuilder-{name}.service"]
        out = run(as_unit(system, unit, *service(unit))).text
        assert "Traceback" not in out


def test_bases_are_only_asked_for(system: Installed) -> None:
    unit = units()["invirtibuilder-base-refresh.service"]
    jobs = run(as_unit(system, unit, *service(unit))).text.split()
    queued = [system.path(f"/var/lib/invirtibuilder/queue/new/{job}.json") for job in jobs]
    assert [json.loads(path.read_text())["action"] for path in queued] == ["base-refresh"] * 3
    for path in queued:
        path.unlink()


def probed(system: Installed, argv: list[str]) -> dict[str, str]:
    """What came of each probe: nothing, when it was let in."""
    return dict(json.loads(run(argv).text))


def test_the_daemons_unit_denies(system: Installed) -> None:
    """Each way is open to the same account outside of the unit: no probe is denied for another
    reason."""
    system.sh("install -d -m 0777 /var/lib/world; : >/var/tmp/invirtibuilder-probe")
    try:
        argv = ("/usr/bin/python3", "-c", PROBE, json.dumps(PROBES))
        ids = ("--reuid=invirtibuilder", "--regid=invirtibuilder", "--init-groups")
        outside = probed(system, system.argv("setpriv", *ids, *argv))
        assert {name for name, why in outside.items() if why} == set()
        inside = probed(system, as_unit(system, units()["invirtibuilder.service"], *argv))
        assert {name for name, why in inside.items() if not why} == set()
    finally:
        system.sh("rm -r /var/lib/world /var/tmp/invirtibuilder-probe")
