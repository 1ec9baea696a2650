"""The administrator's guide on an installed system: commands of root, with this system's paths.

There is no systemd: what the guide asks systemctl for is done by plain commands.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from invirtibuilder.run import CLEAN
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.ids import Ids
from tests.support import documents, kdc, packages, sshd
from tests.support.documents import ADMINISTRATOR, INSTALLED, Shell
from tests.support.installed import CONFIG, Installed, installed
from tests.support.repository import TOP

pytestmark = pytest.mark.root

SYSTEMCTL = """\
case $* in
  'start invirtibuilder.service') /usr/share/invirtibuilder/without-systemd start ;;
  'enable --now invirtibuilder-remctld.socket')
    setsid @EXEC@ -S -b 127.0.0.1 -p @REMCTLD@ >/dev/null 2>&1 </dev/null &
    until grep -q "^ *[0-9]*: 0100007F:$(printf %04X @REMCTLD@) 00000000:0000 0A" /proc/net/tcp
    do kill -0 $! && sleep 0.05; done ;;
  'reload ssh.service')
    test ! -e /run/sshd.pid || { kill "$(cat /run/sshd.pid)"; rm /run/sshd.pid; }
    /usr/sbin/sshd -p @SSHD@ -o ListenAddress=127.0.0.1 ;;
  *) echo "systemctl: $* is not known to the tests" >&2; exit 64 ;;
esac"""


@pytest.fixture
def realm() -> Iterator[kdc.Realm]:
    """A realm whose KDC does not know the site's machine yet."""
    with kdc.kdc() as made:
        documents.kadmin(made, "delprinc -force host/localhost")
        yield made


@pytest.fixture
def system(base: Base, ids: Ids) -> Iterator[Installed]:
    """The accounts and files of the package, and no site."""
    with installed(base, ids, begun=False) as made:
        shared = made.path("/usr/share/invirtibuilder")
        for name in ("remctl", "ssh"):
            shutil.copytree(TOP / "conf" / name, shared / name)
        rules = ("make", "-f", TOP / "debian/rules", "execute_after_dh_install")
        made.run(*rules, "SHARE=/usr/share/invirtibuilder")
        made.path("/run/sshd").mkdir(0o755)  # as the unit of sshd does
        yield made


def test_guide(system: Installed, realm: kdc.Realm) -> None:
    folder = system.disk  # which every account can read
    home = folder / "home"
    home.mkdir()
    repo = packages.native(folder / "hello", "hello", "1.0")
    sshd.make_key(home, "alice")
    ports = {"REMCTLD": kdc.free_port(), "SSHD": kdc.free_port()}
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
    shell = Shell(
        folder=folder,
        words={
            "HOST": lambda: "localhost",
            "KEYTAB": lambda: str(folder / "new.keytab"),
            "REPOSITORY": lambda: str(repo.path),
        },
        environment={
            **packages.identity(),
            **realm.of("alice"),
            "HOME": str(home),
            "PATH": f"{path}:{CLEAN['PATH']}",
        },
        instead=(("remote HOST", f"remote --port {ports['REMCTLD']} HOST"),),
        before=system.argv(),
        cwd=home,
    )
    for line in documents.shown(ADMINISTRATOR, INSTALLED):
        shell.type(line)
        if " init " in line:
            name_principals(system.path(CONFIG))


def name_principals(config: Path) -> None:
    """What the administrator does with an editor."""
    value = yaml.safe_load(config.read_text())
    value["pockets"]["dev"]["acl"]["submit"] += ["alice@BUILD.TEST", "alice@ssh"]
    config.write_text(yaml.safe_dump(value, sort_keys=False))
