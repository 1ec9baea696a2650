"""The notifier of an installed system is another account than the daemon: what that keeps apart."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support import hookscripts
from tests.support.documents import ADMINISTRATOR
from tests.support.installed import CONFIG, TOP, Installed, installed
from tests.support.units import units

pytestmark = pytest.mark.root

SOCKET = "/run/invirtibuilder/notify.sock"
SECRET = "/var/lib/invirtibuilder/jobs/secret"
SHARED = "/usr/share/invirtibuilder"
# What the site's own account, or anybody, asks; `here` runs the hook in that process.
ASK = """\
import json, sys
from pathlib import Path
from invirtibuilder import hookcall, notifierclient
from invirtibuilder.errors import Fault
hook = hookcall.Hook(name=sys.argv[2], program=Path("/usr/share/invirtibuilder/look"),
                     events=frozenset({"submitted"}))
event = sys.stdin.buffer.read()
try:
    if sys.argv[1] == "here":
        code, said = hookcall.call(hook, event)
    else:
        code, said = notifierclient.deliver(Path("/run/invirtibuilder/notify.sock"), hook, event)
    print(json.dumps({"code": code, "said": said.split()}))
except Fault as fault:
    print(json.dumps({"fault": fault.code, "message": str(fault)}))
"""
LOOK = f"""#!/bin/sh
id -un
cat {SECRET} 2>&1 || echo unreadable
touch /var/lib/invirtibuilder/jobs/written 2>/dev/null && echo written
echo "sendmail would be $({SHARED}/setuid-id -un)"
"""


def audit_of_the_guide() -> dict[str, Any]:
    """How the guide has hooks.d/audit configured."""
    found = re.search(r"\n( +)- program: \S*/hooks.d/audit\n(\1 .*\n)+", ADMINISTRATOR.read_text())
    assert found
    (hook,) = yaml.safe_load(textwrap.dedent(found[0]))
    return dict(hook)


@pytest.fixture(scope="module")
def system() -> Iterator[Installed]:
    with installed() as made:
        value = yaml.safe_load(made.path(CONFIG).read_text())
        value["site"]["notifier"] = SOCKET
        value["hooks"] = [{"name": "look", "program": f"{SHARED}/look"}, audit_of_the_guide()]
        made.path(f"{SHARED}/hooks.d").mkdir()
        shutil.copy(TOP / "hooks.d/audit", made.path(f"{SHARED}/hooks.d"))
        dev = value["pockets"]["dev"]
        dev["acl"] = {**dev.get("acl", {}), "read": [{"command": f"{SHARED}/who"}]}
        made.path(CONFIG).write_text(yaml.safe_dump(value))
        for name, script in (("look", LOOK), ("who", '#!/bin/sh\necho "unix/$(id -un)"\n')):
            path = made.path(f"{SHARED}/{name}")
            path.write_text(script)
            path.chmod(0o755)
        made.path(f"{SHARED}/ask.py").write_text(ASK)
        made.sh(f"echo hidden > {SECRET}; chown invirtibuilder {SECRET}; chmod 600 {SECRET}")
        made.sh(f"install -m 4755 /usr/bin/id {SHARED}/setuid-id")
        made.services("start", "notifier")
        yield made
        made.services("stop", "notifier")


def ask(
    system: Installed, account: str, where: str = "there", hook: str = "look"
) -> dict[str, Any]:
    """What this account gets from a delivery."""
    drop = ("setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups")
    words = (*drop, "/usr/bin/python3", f"{SHARED}/ask.py", where, hook)
    event = json.dumps(hookscripts.event("submitted")).encode()
    return dict(json.loads(system.run(*words, stdin=event).out))


def test_a_hook_is_not_the_daemon(system: Installed) -> None:
    found = ask(system, "invirtibuilder")
    assert found["code"] == 0
    assert found["said"][0] == "ib-notify"
    assert "unreadable" in found["said"]
    assert "written" not in found["said"]


def test_a_hook_in_the_daemons_process_is(system: Installed) -> None:
    """The positive control."""
    said = ask(system, "invirtibuilder", "here")["said"]
    assert said[:3] == ["invirtibuilder", "hidden", "written"]


def test_a_mail_servers_setuid_program_works_in_a_hook(system: Installed) -> None:
    said = ask(system, "invirtibuilder")["said"]
    assert " ".join(said).endswith("sendmail would be root")


def test_the_audit_is_written_where_the_guide_has_it(system: Installed) -> None:
    assert ask(system, "invirtibuilder", hook="audit")["code"] == 0
    path = audit_of_the_guide()["environment"]["AUDIT_FILE"]
    assert system.run("stat", "-c", "%U %a", path).text == "ib-notify 640"
    # Of what is beside it nobody but root may take anything away, nor may others read it.
    assert system.run("stat", "-c", "%U %a", "/var/log/invirtibuilder").text == "root 2751"
    log = "/var/log/invirtibuilder/notifier.log"
    assert system.run("stat", "-c", "%U:%G %a", log).text == "root:adm 640"
    # Where systemd makes the directory, it is the same one.
    (made,) = units()["invirtibuilder-notifier.service"].settings["Service.LogsDirectory"]
    assert path.rpartition("/")[0] == f"/var/log/{made}"


def test_only_the_site_and_root_may_ask(system: Installed) -> None:
    assert ask(system, "root")["said"][0] == "ib-notify"
    for account in ("ib-submit", "ib-git", "ib-sign", "ib-build"):
        assert ask(system, account)["fault"] == "not-the-site"
    # Where the socket's permissions would let them, they are known by who they are.
    system.sh(f"chmod 666 {SOCKET}")
    try:
        for account in ("ib-submit", "ib-sign", "ib-build-untrusted", "ib-notify"):
            found = ask(system, account)
            assert found["fault"] == "not-run"
            assert "neither the site's own account nor root" in found["message"]
        assert ask(system, "invirtibuilder")["code"] == 0
    finally:
        system.sh(f"chmod 660 {SOCKET}")


def test_a_program_of_an_acl_is_not_the_daemon_either(system: Installed) -> None:
    for account in ("root", "invirtibuilder"):
        done = system.cli(account, "acl", "explain", "dev", "read", "unix/ib-notify", check=False)
        assert done.code == 0, done.err
        done = system.cli(account, "acl", "explain", "dev", "read", f"unix/{account}", check=False)
        assert done.code == 77
    done = system.cli("ib-submit", "acl", "show", "dev")
    assert b"ib-notify" not in done.out
    assert b"only the site's own account and root may ask the notifier" in done.err


def test_the_programs_are_out_of_the_daemons_hands(system: Installed) -> None:
    """A daemon that is taken over has a word with the notifier, and no more than that."""
    for path in (SOCKET, str(CONFIG), f"{SHARED}/look", "/run/invirtibuilder"):
        script = f'test -w "{path}" && echo may || true'
        drop = ("setpriv", "--reuid=invirtibuilder", "--regid=invirtibuilder", "--init-groups")
        said = system.run(*drop, "sh", "-c", script).text
        assert said == ("may" if path == SOCKET else ""), path
