"""The signer of an installed system is another account than the daemon: what that keeps apart."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installed import ACCOUNTS, SITE, Installed, installed
from tests.support.place import until

pytestmark = pytest.mark.root

HOME = Path(ACCOUNTS["ib-sign"])
LOG = "/var/log/invirtibuilder/signer.log"
ASK = """
import json, sys
from datetime import timedelta
from pathlib import Path
from invirtibuilder import model
from invirtibuilder.apt.signer import verified
from invirtibuilder.apt.signerclient import SocketSigner

def tried(pocket, release):
    signer = SocketSigner(path=Path("/run/invirtibuilder/sign.sock"), pocket=pocket, keys=())
    try:
        return verified(signer.public_key(), signer.sign(release)[0])
    except Exception as error:
        return error.code

release = (Path(sys.argv[1]) / "archive/dev/dists/dev/Release").read_bytes()
mail = b"To: everybody\\n\\nThe archive has moved to evil.example.org.\\n"
print(json.dumps({
    "the last": tried("dev", release),
    "mail": tried("dev", mail),
    "another pocket": tried("prod", release),
    "no pocket": tried("debian", release),
    "another date": tried("dev", release.replace(b"Date: ", b"Date:  ")),
    "more": tried("dev", release + b"x\\n"),
}))
"""
PEEK = """
import ctypes, os, sys
pid = int(sys.argv[1])
for name in ("mem", "environ", "fd"):
    try:
        os.listdir(f"/proc/{pid}/fd") if name == "fd" else open(f"/proc/{pid}/{name}", "rb").close()
        print(name, "open")
    except OSError:
        print(name, "closed")
try:
    os.kill(pid, 0)
    print("kill open")
except OSError:
    print("kill closed")
"""


@pytest.fixture(scope="module")
def system() -> Iterator[Installed]:
    with installed() as made:
        for name, text in (("ask", ASK), ("peek", PEEK)):
            made.path(f"/usr/share/invirtibuilder/{name}.py").write_text(text)
        yield made


def as_(account: str, *words: str | Path) -> list[str]:
    ids = (f"--reuid={account}", f"--regid={account}", "--init-groups")
    return ["setpriv", *ids, *(str(word) for word in words)]


def python(system: Installed, account: str, script: str, *words: str | Path) -> str:
    path = f"/usr/share/invirtibuilder/{script}.py"
    return system.run(*as_(account, "/usr/bin/python3", path, *words)).text


def test_the_daemon_publishes_with_keys_that_it_cannot_read(system: Installed) -> None:
    """A pocket that was made while the signer was away is published by the daemon's start."""
    made = system.cli("root", "pocket", "create", "hot")
    assert b"hot has no publication yet, the daemon's start makes one" in made.err
    assert not system.path(SITE / "archive/hot/dists").is_symlink()
    system.services("start", "signer", "daemon")
    try:
        release = SITE / "archive/hot/dists/hot"
        key = SITE / "archive/hot/key.asc"
        system.sh(
            'gpg --dearmor <"$1" >/run/key; gpgv --keyring /run/key "$2"/InRelease', key, release
        )
        told = system.run("cat", LOG).text
        assert "signed hot: date " in told
        assert system.run("stat", "-c", "%U", SITE / "archive/hot/publications/00000001").text == (
            "invirtibuilder"
        )
        daemon, signer = (
            system.run("cat", f"/run/invirtibuilder/{name}.pid").text
            for name in ("daemon", "signer")
        )
        closed = "mem closed\nenviron closed\nfd closed\nkill closed"
        assert python(system, "invirtibuilder", "peek", signer) == closed
        # The control: the same looks at a process of one's own.
        assert python(system, "invirtibuilder", "peek", daemon) == closed.replace("closed", "open")
    finally:
        system.services("stop", "daemon", "signer")
    keys = HOME / "gnupg/private-keys-v1.d"
    assert system.run(*as_("invirtibuilder", "ls", keys), check=False).code != 0
    assert system.run(*as_("ib-sign", "ls", keys)).text.endswith(".key")


def test_who_has_taken_the_daemon_over_has_nothing_else_signed(system: Installed) -> None:
    system.services("start", "signer")
    try:
        said = json.loads(python(system, "invirtibuilder", "ask", SITE))
        assert len(said.pop("the last")) == 1
        assert set(said.values()) == {"signer-refused"}
        # Nobody else may even ask.
        said = json.loads(python(system, "ib-notify", "ask", SITE))
        assert set(said.values()) == {"not-the-site"}
    finally:
        system.services("stop", "signer")


def made(system: Installed, account: str) -> bool:
    return system.cli(account, "key", "new", "dev", check=False).code == 0


def test_the_keys_are_listed_and_made_by_root_and_the_signer(system: Installed) -> None:
    keys = HOME / "gnupg/private-keys-v1.d"
    for account in ("root", "ib-sign"):
        assert "yes" in system.cli(account, "key", "list").text
        before = system.sh('ls "$1"', keys)
        # One of the same second has the same name, and is refused.
        until(functools.partial(made, system, account))
        assert len(system.sh('ls "$1"', keys).split()) == len(before.split()) + 1
    # The site's own account asks.
    refused = system.cli("invirtibuilder", "key", "list", check=False)
    assert b"[no-signer]" in refused.err
    system.services("start", "signer")
    try:
        assert "yes" in system.cli("invirtibuilder", "key", "list").text
        assert "signing key" in system.cli("root", "self-check", check=False).text
    finally:
        system.services("stop", "signer")
    assert system.cli("invirtibuilder", "key", "new", "dev", check=False).code == 77
    owners = system.run("find", HOME, "-printf", "%u\\n").text.split()
    assert set(owners) == {"ib-sign"}
