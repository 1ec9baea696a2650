"""The units' confinement can be borne: whole jobs with each service as its unit would run it.

There is no systemd here; tests/support/hardened.py does what it would do, and says in LEFT what it
does not. Of that, nothing here shows that these can be borne: AppArmorProfile and SELinuxContext,
which need a kernel that has them (tests/component/test_profiles.py), what the control groups of a
service bound, and a watchdog. There is no mail server either: tests/support/sendmail.c needs what
the sendmail of one needs.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from invirtibuilder.run import CLEAN, Done, run
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.ids import Ids
from tests.support import hardened, packages
from tests.support.installed import ACCOUNTS, CONFIG, SITE, Installed, installed
from tests.support.kdc import Realm, free_port, remctl
from tests.support.packages import Repo
from tests.support.place import until
from tests.support.repository import TOP
from tests.support.units import Unit, units, worker

pytestmark = pytest.mark.root

LISTS = frozenset(
    ("CapabilityBoundingSet", "ReadWritePaths", "InaccessiblePaths", "RestrictAddressFamilies")
    + ("DeviceAllow",)
)
ALICE = "alice@BUILD.TEST"
AUDIT = Path("/var/log/invirtibuilder/audit/audit.jsonl")
SPOOL = Path("/var/spool/invirtibuilder-test")
METRICS = Path("/var/lib/prometheus/node-exporter/invirtibuilder.prom")
FOUND = Path("/run/invirtibuilder/fsck")
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
def running(
    system: Installed, unit: Unit, address: str = "", ready: str = "ready"
) -> Iterator[Path]:
    """A service, until the block ends; its output."""
    log = system.disk / f"{unit.name}.log"
    argv = as_unit(system, unit, *service(unit), listen=address)
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, env=CLEAN, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        until(lambda: ready in log.read_text() or process.poll() is not None, unit.name)
        assert process.poll() is None, log.read_text()
        yield log
    finally:
        # nsenter has one child, which is the service.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        for child in children.split():
            os.kill(int(child), signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def system(base: Base, ids: Ids, web: Web, realm: Realm) -> Iterator[Installed]:
    """An installed system with the hooks that we ship, a keytab, and what remctld starts."""
    with installed(base, ids) as made:
        configure(made, web)
        shared = made.path("/usr/share/invirtibuilder")
        for name in ("hooks.d", "conf/fsck", "conf/remctl"):
            shutil.copytree(TOP / name, shared / Path(name).name)
        rules = ("make", "-f", TOP / "debian/rules", "execute_after_dh_install")
        made.run(*rules, "SHARE=/usr/share/invirtibuilder", check=False)
        shutil.copy(shared / "remctl/invirtibuilder", made.path("/etc/remctl/conf.d"))
        shutil.copy(realm.directory / "krb5.conf", made.path("/etc/krb5.conf"))
        shutil.copy(realm.keytab, made.path("/etc/krb5.keytab"))
        made.sh(
            'gcc -o /usr/sbin/sendmail "$1" && chmod 4755 /usr/sbin/sendmail',
            TOP / "tests/support/sendmail.c",
        )
        for name in ("ib-build", "ib-build-untrusted"):
            # As the unit's private /var/tmp does not have the tests' base.
            made.sh(
                'cd "$1/slot-1" && rm bases && mkdir bases && mount --bind "$2" bases',
                *(ACCOUNTS[name], base.directory.parents[1]),
            )
        yield made


class Web(http.server.ThreadingHTTPServer):
    """The other side of a webhook: keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Posted)
        self.got: list[dict[str, Any]] = []


class Posted(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def configure(system: Installed, web: Web) -> None:
    """Each hook that we ship, a program of an ACL, and alice, who may submit to dev."""
    value = yaml.safe_load(system.path(CONFIG).read_text())
    told = {
        "mail": {"MAIL_TO": "root", "MAIL_FROM": "builder@example.org"},
        "webhook": {"WEBHOOK_URL": f"http://127.0.0.1:{web.server_port}/"},
        "audit": {"AUDIT_FILE": str(AUDIT)},
    }
    value["hooks"] = [
        {"program": f"/usr/share/invirtibuilder/hooks.d/{name}", "environment": settings}
        for name, settings in told.items()
    ]
    who = system.path("/usr/share/invirtibuilder/who")
    who.write_text("#!/bin/sh\necho alice@BUILD.TEST\n")
    who.chmod(0o755)
    value["pockets"]["dev"]["acl"]["submit"].append({"command": "/usr/share/invirtibuilder/who"})
    system.path(CONFIG).write_text(yaml.safe_dump(value))
    system.sh('install -d -o mail -g mail -m 770 "$1"', SPOOL)


@pytest.fixture
def served(system: Installed) -> Iterator[dict[str, Path]]:
    """All services of a site, each as its unit."""
    with contextlib.ExitStack() as stack:
        logs = {}
        for unit in (
            units()["invirtibuilder-signer.service"],
            units()["invirtibuilder-notifier.service"],
            worker("trusted"),
            worker("untrusted"),
            units()["invirtibuilder.service"],
        ):
            words = service(unit)
            address = words[words.index("--listen") + 1] if "--listen" in words else ""
            logs[unit.name] = stack.enter_context(running(system, unit, address))
        yield logs


@pytest.fixture(scope="module")
def hello(system: Installed) -> Repo:
    """A package that the site has."""
    repo = packages.native(system.disk / "hello", "hello", "1.0")
    system.run("/usr/bin/invirtibuilder", "package", "create", "hello", "--from", repo.path)
    return repo


def as_timer(system: Installed, name: str, *before: str, check: bool = True) -> Done:
    """Run what a timer starts, or what is started when that fails, as its unit."""
    unit = units()[f"invirtibuilder-{name}.service"]
    words = [word.replace("${ADDRESS}", "root") for word in service(unit)]
    return run(as_unit(system, unit, *before, *words), check=check)


def test_a_job_of_each_domain(
    system: Installed, served: dict[str, Path], hello: Repo, web: Web
) -> None:
    """With what fsck and gc do after it, and what each hook makes of its events."""
    jobs = []
    for pocket in ("staging", "dev"):
        words = ("submit", pocket, "hello", hello.commit, "--wait")
        done = system.run("/usr/bin/invirtibuilder", *words, check=False)
        logs = {name: log.read_text()[-3000:] for name, log in served.items()}
        assert done.code == 0, (done, logs)
        jobs.append(done.text.split()[0])
    assert system.run("/usr/bin/invirtibuilder", "cancel", "nonesuch", check=False).code == 66
    events = {f"{job}:{event}" for job in jobs for event in ("submitted", "published")}
    until(lambda: events <= {event["id"] for event in web.got}, "the webhook")
    until(lambda: events <= audited(system), "the audit")
    lines = [f"Message-Id: <{event.replace(':', '.')}@example.org>" for event in events]
    until(lambda: all(line in mailed(system) for line in lines), "the mails")
    told = system.run("/usr/bin/invirtibuilder", "acl", "explain", "dev", "submit", ALICE).text
    assert "/usr/share/invirtibuilder/who" in told
    assert as_timer(system, "fsck").code == 0
    assert "Traceback" not in as_timer(system, "gc").text
    system.sh('install -d -o invirtibuilder "${1%/*}"', METRICS)
    as_timer(system, "metrics")
    outside = system.cli("invirtibuilder", "metrics").text
    assert samples(system.run("cat", METRICS).text) == samples(outside)
    assert "\ninvirtibuilder_healthy 1\n" in outside


def samples(text: str) -> set[str]:
    """What there are values of."""
    return {line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"}


def audited(system: Installed) -> set[str]:
    """The events that the audit's file has."""
    lines = system.run("cat", AUDIT, check=False).text.splitlines()
    return {json.loads(line)["id"] for line in lines}


def mailed(system: Installed) -> str:
    """All mails: of what the mail server has kept, and what it has delivered."""
    both = [system.run("cat", SPOOL / name, check=False).text for name in ("spool", "box")]
    assert both[0] == both[1]
    return both[0]


def test_what_fsck_finds_is_mailed(system: Installed) -> None:
    """By another service, of a file that the manager has made for the first one."""
    shown = f"{SITE}/archive/prod/dists"
    system.run("mv", shown, f"{shown}.away")
    try:
        assert as_timer(system, "fsck", check=False).code == 6
    finally:
        system.run("mv", f"{shown}.away", shown)
    said = system.run("cat", FOUND).text
    assert "\ndrift: " in said
    system.sh(': >"$1/spool"; : >"$1/box"', SPOOL)
    as_timer(system, "fsck-mail", "/usr/bin/env", "MONITOR_EXIT_STATUS=6")
    assert "git and the archive differ" in mailed(system)
    assert said in mailed(system)


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_what_comes_through_remctld(
    system: Installed, served: dict[str, Path], hello: Repo, realm: Realm
) -> None:
    """It authenticates as root, and becomes who asks the daemon and drops files in the queue."""
    unit = units()["invirtibuilder-remctld.service"]
    port = free_port()
    assert served
    until(system.path(f"{SITE}/run/door.json").exists)
    with running(system, unit, str(port), ready="") as log:
        until(lambda: listens(port), unit.name)
        refused = remctl(realm, "bob", port, "build", "submit", "dev", "hello", hello.commit)
        assert (refused.code, refused.err) == (255, b"Access denied\n"), log.read_text()
        done = remctl(realm, "alice", port, "build", "submit", "dev", "hello", hello.commit)
        assert done.code == 0, done
        told = remctl(realm, "alice", port, "build", "log", done.text.split()[0], "follow")
        assert told.code == 0, told
        told = remctl(realm, "alice", port, "build", "status", done.text.split()[0])
        assert "published" in told.text


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
