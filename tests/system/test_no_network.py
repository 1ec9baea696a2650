"""The daemon needs no network: a whole submission without, and what needs one is elsewhere."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder.run import CLEAN, run
from invirtibuilder.sandbox.base import Base
from tests.support import hookscripts, packages
from tests.support.listening import listens
from tests.support.notifying import notifier
from tests.support.place import until
from tests.support.sites import DOMAIN, TOP, TestSite, made_site

pytestmark = pytest.mark.root

OFFLINE = (sys.executable, "-m", "tests.support.offline")
NOWHERE = ("unshare", "--net", "--", *OFFLINE)
"""Before a command: a network namespace whose loopback is down, and no socket to try it with."""
LETS = """#!/usr/bin/python3 -I
import urllib.request
print(urllib.request.urlopen("{url}who", timeout=10).read().decode())
"""


class Web(http.server.BaseHTTPRequestHandler):
    """Takes events, and says who may submit."""

    got: list[str]
    who = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.got.append(f"{body['package']} {body['event']}")
        self._answer("")

    def do_GET(self) -> None:
        self._answer(self.who)

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    Web.got = []
    Web.who = "unix/root"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@contextmanager
def worker(site: TestSite) -> Iterator[None]:
    """The worker's listener, with a network."""
    socket = site.directory / "run/worker.sock"
    directory = site.directory / "work" / DOMAIN
    words = ("worker", "--listen", str(socket), "--directory", str(directory), "--slots", "1")
    with (site.directory / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [*site.python, *words],
            env={**CLEAN, **site.env()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: listens(socket) or process.poll() is not None)
        assert process.poll() is None, (site.directory / "worker.log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def offline(base: Base, layers: Path, web: str) -> Iterator[TestSite]:
    """A site whose daemon runs nowhere; its worker and its notifier do not."""
    domains = {DOMAIN: {"socket": "run/worker.sock"}}
    with made_site(base, layers, domains=domains) as site:
        who = site.directory / "who"
        who.write_text(LETS.format(url=web))
        who.chmod(0o755)
        webhook = {"program": str(TOP / "hooks.d/webhook"), "environment": {"WEBHOOK_URL": web}}
        site.configure(
            site__notifier="run/notify.sock",
            hooks=[{**webhook, "required": True}],
            pockets__dev__acl__submit=[{"command": str(who)}],
            pockets__prod__acl__promote=["unix/root"],
        )
        (site.directory / "run").mkdir(exist_ok=True)
        socket = site.directory / "run/notify.sock"
        nowhere = replace(site, python=[*NOWHERE, *site.python])
        with worker(site), notifier(site.file, socket), nowhere.daemon():
            yield site


def test_whoever_tries_a_network_there_is_killed(web: str) -> None:
    """The positive control: with the same program the same attempt succeeds, without either."""
    python = [sys.executable, "-c", f"import urllib.request as u; u.urlopen('{web}')"]
    assert run(python, check=False).code == 0
    there = {"cwd": TOP, "check": False}
    assert run([*OFFLINE, *python], **there).code == -signal.SIGSYS  # type: ignore[arg-type]
    assert b"unreachable" in run(["unshare", "--net", "--", *python], check=False).err
    event, env = json.dumps(hookscripts.event()).encode(), {"WEBHOOK_URL": web}
    hook = [*OFFLINE, str(TOP / "hooks.d/webhook")]
    done = run(hook, stdin=event, env=env, **there)  # type: ignore[arg-type]
    assert done.code == -signal.SIGSYS
    local = "import socket; socket.socketpair(); socket.socket(socket.AF_UNIX)"
    assert run([*NOWHERE, sys.executable, "-c", local], **there).code == 0  # type: ignore[arg-type]


def test_a_whole_submission(offline: TestSite, web: str, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "remote", "remote", "1.0")
    offline.package("remote", repo.path)
    dev = offline.publish("dev", "remote", repo.commit)
    assert dev["version"].startswith("1.0~dev+")
    said = offline.installs("dev", "remote", "--", "dpkg-query", "-W", "remote")
    assert said.endswith(f"remote\t{dev['version']}")
    told = [f"remote {event}" for event in ("submitted", "started", "published")]
    until(lambda: Web.got == told, f"{Web.got}")
    # The ACL's answer is the program's, which needs a network too.
    Web.who = "unix/nobody"
    done, _ = offline.submit("dev", "remote", repo.commit)
    assert done.code == 3
    assert b"not-permitted" in done.err
    Web.who = "unix/root"


def test_what_a_site_does_besides(offline: TestSite, tmp_path: Path) -> None:
    """A failed build; a promotion, which asks APT for the mirror's versions."""
    broken = packages.failing(tmp_path / "broken")
    offline.package("broken", broken.path)
    done, job = offline.submit("dev", "broken", broken.commit)
    assert (done.code, job["blame"]) == (4, "package")
    until(lambda: "broken failed" in Web.got)

    library = packages.library(tmp_path / "library")
    user = packages.native(tmp_path / "user", "user", "1.0", depends="libgreet-data")
    for repo in (library, user):
        offline.package(repo.name, repo.path)
        offline.publish("staging", repo.name, repo.commit)
    done = offline.cli("promote", "staging", "prod", "user", "--wait", check=False)
    assert b"dependency-broken" in done.err
    offline.cli("promote", "staging", "prod", "user", "libgreet-data", "--wait")


def test_commands_of_the_daemons_account(offline: TestSite) -> None:
    nowhere = replace(offline, python=[*NOWHERE, *offline.python])
    nowhere.cli("fsck")
    nowhere.cli("gc", "--dry-run")
    nowhere.cli("acl", "compile")
