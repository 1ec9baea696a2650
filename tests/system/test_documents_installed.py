"""The administrator's guide on an installed system: commands of root, with this system's paths.

There is no systemd: what the guide asks systemctl for is done by plain commands.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from invirtibuilder.run import CLEAN
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.ids import Ids
from tests.support import documents, kdc, packages, sshd
from tests.support.documents import ADMINISTRATOR, BACKUP, DOORS, INSTALLED, Shell
from tests.support.installed import ACCOUNTS, CODE, CONFIG, SITE, Installed, installed
from tests.support.place import until
from tests.support.repository import TOP

pytestmark = pytest.mark.root

SYSTEMCTL = """\
case $* in
  'restart invirtibuilder.service')
    /usr/share/invirtibuilder/without-systemd stop daemon
    /usr/share/invirtibuilder/without-systemd start ;; # with whom its unit wants
  'enable --now invirtibuilder-remctld.socket')
    setsid @EXEC@ -S -b 127.0.0.1 -p @REMCTLD@ >/dev/null 2>&1 </dev/null &
    until grep -q "^ *[0-9]*: 0100007F:$(printf %04X @REMCTLD@) 00000000:0000 0A" /proc/net/tcp
    do kill -0 $! && sleep 0.05; done ;;
  'reload ssh.service')
    test ! -e /run/sshd.pid || { kill "$(cat /run/sshd.pid)"; rm /run/sshd.pid; }
    /usr/sbin/sshd -p @SSHD@ -o ListenAddress=127.0.0.1 ;;
  daemon-reload) ;;
  *) echo "systemctl: $* is not known to the tests" >&2; exit 64 ;;
esac"""


@pytest.fixture
def realm() -> Iterator[kdc.Realm]:
    """A realm of this module's own: the guide adds to it."""
    with kdc.kdc() as made:
        yield made


@pytest.fixture
def system(base: Base, ids: Ids) -> Iterator[Installed]:
    """The accounts and files of the package, and no site."""
    with installed(base, ids, begun=False) as made:
        shared = made.path("/usr/share/invirtibuilder")
        for name in ("remctl", "ssh", "fsck"):
            shutil.copytree(TOP / "conf" / name, shared / name)
        shutil.copy(TOP / "conf/subordinate-ids", shared)
        shutil.copytree(TOP / "debian/selinux", shared / "selinux")
        rules = ("make", "-f", TOP / "debian/rules", "execute_after_dh_install")
        made.run(*rules, "SHARE=/usr/share/invirtibuilder")
        made.path("/run/sshd").mkdir(0o755)  # as the unit of sshd does
        yield made


def shell_of(system: Installed, realm: kdc.Realm, **words: str) -> Shell:
    """Root's shell there, with a ticket of alice's, in whose home it begins."""
    folder = system.disk  # which every account can read
    home = folder / "home"
    home.mkdir()
    sshd.make_key(home, "alice")
    ports = {"REMCTLD": kdc.free_port(), "SSHD": kdc.free_port(), "PORT": kdc.free_port()}
    unit = (TOP / "debian/invirtibuilder.invirtibuilder-remctld.service").read_text()
    start = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert start
    systemctl = SYSTEMCTL.replace("@EXEC@", start[1])
    for name, port in ports.items():
        systemctl = systemctl.replace(f"@{name}@", str(port))
    options = f"-p {ports['SSHD']} -i {home}/alice -o UserKnownHostsFile={home}/hosts"
    path = documents.programs(
        folder / "bin",
        {
            "systemctl": systemctl,
            "remctl": f'exec /usr/bin/remctl -p {ports["REMCTLD"]} -s {kdc.SERVICE} "$@"',
            "ssh": f'exec /usr/bin/ssh -F none {options} -o StrictHostKeyChecking=accept-new "$@"',
        },
    )
    values = {"HOST": "localhost", "KEYTAB": str(folder / "new.keytab"), **words}
    values["PORT"] = str(ports["PORT"])
    return Shell(
        folder=folder,
        words={name: partial(str, value) for name, value in values.items()},
        environment={
            **packages.identity(),
            **realm.of("alice"),
            "HOME": str(home),
            "PATH": f"{path}:{CLEAN['PATH']}",
        },
        instead=(
            ("remote HOST", f"remote --port {ports['REMCTLD']} HOST"),
            ("remctld -m -F -S", "remctld -m -F -S -b 127.0.0.1"),
        ),
        ready={"remctld -m": partial(documents.connects, ports["PORT"])},
        before=system.argv(),
        cwd=home,
    )


def test_guide(system: Installed, realm: kdc.Realm) -> None:
    """The KDC does not know the site's machine before the guide says how."""
    documents.kadmin(realm, "delprinc -force host/localhost")
    repo = packages.native(system.disk / "hello", "hello", "1.0")
    words = {"REPOSITORY": str(repo.path), "BACKUPS": str(system.disk / "backups")}
    shell = shell_of(system, realm, **words)
    # A home of builds is on a disk, which /var/lib is not here.
    home = "/var/lib/ib-build-contrib"
    system.sh('mkdir "$1" "$2" && mount --bind "$2" "$1"', home, system.disk / "contrib")
    with shell.opened():
        for line in documents.shown(ADMINISTRATOR, INSTALLED):
            if "restart invirtibuilder" in line:
                name_principals(system.path(CONFIG))
            if "daemon-reload" in line:
                add_domain(system)
            shell.type(line)
    for line in documents.shown(ADMINISTRATOR, [BACKUP])[:2]:
        shell.type(line)
    assert system.run("stat", "-c", "%U", words["BACKUPS"]).text == "invirtibuilder"
    assert (shell.cwd / "selinux/invirtibuilder.pp").stat().st_size > 1000
    found = json.loads(system.cli("root", "self-check", "--json", check=False).out)["findings"]
    states = {each["what"]: each["state"] for each in found}
    assert states["worker (contrib)"] == states["worker (trusted)"]


def test_lines_for_cron(system: Installed) -> None:
    """As cron runs them, with an environment of its own; nobody mails here, as nothing differs."""
    system.run("/usr/bin/invirtibuilder", "init", "--name", "test")
    system.services("start")
    system.services("stop", "daemon")
    lines = documents.cron(ADMINISTRATOR)
    assert len(lines) > 2
    for account, command in lines:
        drop = ("setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups")
        own = (f"HOME={ACCOUNTS[account]}", f"LOGNAME={account}", "PATH=/usr/bin:/bin")
        system.run("env", "-i", *own, *drop, "/bin/sh", "-c", command)
    asked = [json.loads(path.read_text()) for path in system.path(SITE / "queue/new").iterdir()]
    assert {each["action"] for each in asked} == {"base-refresh"}


def test_the_doors_by_hand(system: Installed, realm: kdc.Realm) -> None:
    """Beside a site that runs: what conf/remctl says without the package."""
    repo = packages.native(system.disk / "hello", "hello", "1.0")
    shell = shell_of(system, realm, SITE=str(SITE), CODE=str(CODE))

    def newest() -> str:
        until(lambda: not list(system.path(SITE / "queue/new").iterdir()))
        return max(path.name for path in system.path(SITE / "jobs").iterdir())

    shell.words = {**shell.words, "JOB": newest}
    shutil.copy(realm.keytab, system.path("/etc/krb5.keytab"))
    for line in ("init --name test", f"package create hello --from {repo.path}"):
        shell.type(f"invirtibuilder {line}")
    name_principals(system.path(CONFIG))
    system.services("start")
    shutil.copy(shell.cwd / "alice.pub", system.disk)
    with shell.opened():
        for line in documents.shown(DOORS, documents.elsewhere(DOORS)):
            key = "alice.pub" in line
            shell.cwd = system.disk if key else TOP / "conf/remctl"
            shell.type(line)
            if line.startswith("install -m 755 build "):
                set_paths(system.path("/etc/invirtibuilder/build"))


def name_principals(config: Path) -> None:
    """What the administrator does with an editor."""
    value = yaml.safe_load(config.read_text())
    value["site"]["administrators"] = ["alice@BUILD.TEST"]
    value["pockets"]["dev"]["acl"]["submit"] = ["unix/root", "alice@BUILD.TEST", "alice@ssh"]
    config.write_text(yaml.safe_dump(value, sort_keys=False))


def add_domain(system: Installed) -> None:
    """Likewise; the daemon's unit has been told of it."""
    config = system.path(CONFIG)
    value = yaml.safe_load(config.read_text())
    value["domains"]["contrib"] = {"socket": "/run/invirtibuilder/worker-contrib.sock"}
    config.write_text(yaml.safe_dump(value, sort_keys=False))
    dropped = system.path("/etc/systemd/system/invirtibuilder.service.d/contrib.conf").read_text()
    assert dropped.count("=invirtibuilder-worker@contrib.socket\n") == 2


def set_paths(program: Path) -> None:
    """Likewise, in the program that the doors start."""
    text = program.read_text()
    for name, value in (("CODE", CODE), ("TABLE", SITE / "run/door.json")):
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {str(value)!r}", text, flags=re.M)
        assert count == 1
    program.write_text(text)
