"""Every command that README.rst and the guides show is run, in order, as it is written.

Most of them on a site whose worker answers with canned results, with a daemon, a realm, remctld and
two sshds; the quickstart with a real build.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from invirtibuilder.jobs import Jobs
from invirtibuilder.run import CLEAN, run
from invirtibuilder.sandbox.base import Base
from invirtibuilder.spool import Spool
from tests.support import documents, doors, kdc, packages, sites, sources, sshd
from tests.support import place as places
from tests.support.cannedworker import Answer
from tests.support.documents import (
    ADMINISTRATOR,
    CLEAN_MACHINE,
    CLONE,
    DOCUMENTS,
    FIRST,
    README,
    SUBMITTER,
    Shell,
    connects,
    elsewhere,
    programs,
    shown,
)
from tests.support.place import ME, Place, until
from tests.support.repository import TOP

ALICE = "alice@BUILD.TEST"
RIGHTS = ("submit", "cancel", "promote", "rollback", "read")
SERVICES = ("ib-notify", "ib-sign")
SUDO = 'exec "$@"'
PATH = CLEAN["PATH"]


def shims(folder: Path, door: sshd.Sshd, pushes: sshd.Sshd, port: int) -> Path:
    """Programs that find the tests' ports and keys: as a client's own configuration would say."""
    blocks = []
    for host, server in (("ib-submit", door), ("localhost", pushes)):
        options = [f"  {word[2:].replace('=', ' ', 1)}" for word in server.argv("client")[3:]]
        blocks += [f"Host {host}", "  HostName localhost", f"  Port {server.port}", *options]
        blocks += [f"  User {server.user}"]
    lines = {
        "ssh": f'exec /usr/bin/ssh -F {folder}/ssh_config "$@"',
        "remctl": f'exec /usr/bin/remctl -p {port} -s {kdc.SERVICE} "$@"',
        "sudo": SUDO,
    }
    programs(folder, lines)
    (folder / "ssh_config").write_text("\n".join([*blocks, ""]))
    return folder


class Site:
    """A site with open doors, two packages of a maintainer's, and a shell."""

    def __init__(self, place: Place, folder: Path, realm: kdc.Realm) -> None:
        self.place, self.folder, self.realm = place, folder, realm
        self.home = folder / "home"
        self.repos = {
            name: packages.native(self.home / name, name, "1.0") for name in ("hello", "htop")
        }
        self._daemon = contextlib.ExitStack()
        self.earlier = "prod~1"
        value = yaml.safe_load(place.config.read_text())
        value["site"]["doors"] = [doors.USER]
        value["site"]["administrators"] = [ME, ALICE]
        for pocket in value["pockets"].values():
            pocket["acl"] = {right: [ME, ALICE, "alice@EXAMPLE.ORG"] for right in RIGHTS}
        place.config.write_text(yaml.safe_dump(value, sort_keys=False))

    def start(self) -> None:
        """A daemon, whose table the doors read."""
        self._daemon.enter_context(self.place.daemon())
        until((self.place.directory / "run/door.json").exists)

    def stop(self) -> None:
        self._daemon.close()

    def lose(self) -> None:
        """What a new machine has: the configuration and the keys."""
        site = self.place.site
        for path in (site.jobs, site.archive, site.queue, site.events, site.packages, site.origs):
            shutil.rmtree(path)
        shutil.rmtree(site.superproject)

    def type(self, shell: Shell, lines: Sequence[str]) -> None:
        """Commands, each when the jobs of earlier ones are over."""
        for line in lines:
            alone = any(word in line for word in (" daemon", "rebuild-state", " restore "))
            if alone:
                self.stop()
            if " restore " in line:
                self.lose()
            shell.type(line)
            if not alone:
                until(lambda: not list(Spool(self.place.site.queue).new.iterdir()))
            for job in Jobs(self.place.site.jobs).names():
                self.place.ended(job)
            if alone:
                self.start()

    def job(self) -> str:
        return Jobs(self.place.site.jobs).names()[-1]

    def when(self) -> str:
        repository = self.place.directory / "superproject.git"
        return run(["git", "-C", repository, "rev-parse", self.earlier]).text

    def expectations(self) -> str:
        path = self.folder / "expectations.yaml"
        path.write_text(f"- {{pocket: dev, action: submit, principal: {ALICE}, allowed: true}}\n")
        return str(path)

    def words(self) -> dict[str, Callable[[], str]]:
        return {
            "DIR": lambda: str(self.place.directory),
            "HOST": lambda: "localhost",
            "JOB": self.job,
            "WHEN": self.when,
            "FILE": self.expectations,
            "BACKUPS": lambda: str(self.folder / "backups"),
            "TIME": lambda: max(path.name for path in (self.folder / "backups").iterdir()),
            "KEYTAB": lambda: str(self.folder / "new.keytab"),
            "DSC": self.from_debian,
            "TARBALL": lambda: self.upstream("1.1"),
            "DIRECTORY": self.of_a_worker,
        }

    def upstream(self, version: str) -> str:
        """A tarball of upstream's."""
        name = f"tidy_{version}.orig.tar.gz"
        sources.tarball(self.folder, name, f"tidy-{version}", {"greeting": f"{version}\n"})
        return str(self.folder / name)

    def from_debian(self) -> str:
        """A source package with it."""
        self.upstream("1.0")
        tree = self.folder / "tidy-1.0"
        packages.write(
            tree,
            {"greeting": "1.0\n", **packages.debian("tidy", "1.0-1", source_format="3.0 (quilt)")},
        )
        run(["dpkg-source", "-b", tree], cwd=self.folder, env=packages.identity())
        return str(self.folder / "tidy_1.0-1.dsc")

    def of_a_worker(self) -> str:
        """A directory that a build has written in."""
        path = self.folder / "slot-1"
        script = 'mkdir "$1" && chown 7 "$1" && touch "$1/file"'
        run(["unshare", "--map-auto", "--map-root-user", "sh", "-euc", script, "sh", path])
        return str(path)


@pytest.fixture
def realm() -> Iterator[kdc.Realm]:
    """A realm of this module's own: the administrator's guide adds to it."""
    with kdc.kdc() as made:
        yield made


@pytest.fixture
def at(realm: kdc.Realm, tmp_path: Path) -> Iterator[tuple[Site, Shell]]:
    """The site, and a shell of somebody with a ticket of alice's."""
    with contextlib.ExitStack() as stack:
        place, worker = stack.enter_context(places.canned())
        worker.answers["base"] = lambda _: Answer()
        site = Site(place, tmp_path, realm)
        site.start()
        stack.callback(site.stop)
        conf = doors.installed(place) / "conf"
        port = stack.enter_context(kdc.remctld(realm, conf))
        over = doors.installed(place, shell=True)
        shell_of = f"exec /usr/sbin/remctl-shell -f {over}/conf {ALICE}"
        door = stack.enter_context(sshd.running(tmp_path / "door", shell_of))
        pushes = stack.enter_context(
            sshd.running(tmp_path / "pushes", 'exec sh -c "$SSH_ORIGINAL_COMMAND"')
        )
        path = shims(tmp_path / "bin", door, pushes, port)
        web, worker_at = kdc.free_port(), tmp_path / "worker"
        environment = {
            **packages.identity(),
            **realm.of("alice"),
            "HOME": str(site.home),
            "PATH": f"{path}:{TOP}/.venv/bin:{PATH}",
            "INVIRTIBUILDER_CONFIG": str(place.config),
        }
        shell = Shell(
            folder=tmp_path,
            words=site.words(),
            environment=environment,
            instead=(
                ("ib-submit@HOST", "ib-submit"),
                ("-o invirtibuilder", f"-o {doors.USER}"),
                ("ssh://ib-git@HOST/", "ssh://HOST/DIR/"),
                ("remote HOST", f"remote --port {port} HOST"),
                ("host/HOST", "host/new.localhost"),
                ("kinit alice", f"kinit -k -t {realm.directory}/alice.keytab alice"),
                ("/run/ib-build/worker", f"{worker_at}.sock"),
                ("/var/lib/ib-build", str(worker_at)),
                *((f"/run/{name}/socket", f"{tmp_path}/{name}.sock") for name in SERVICES),
                (" 8000 ", f" {web} "),
            ),
            codes={"self-check": 71},  # its mirror does not exist
            ready={
                "worker --listen": Path(f"{worker_at}.sock").exists,
                "notifier --listen": (tmp_path / "ib-notify.sock").exists,
                "signer --listen": (tmp_path / "ib-sign.sock").exists,
                "http.server": lambda: connects(web),
            },
        )
        yield site, stack.enter_context(shell.opened())


def test_readme(at: tuple[Site, Shell]) -> None:
    site, shell = at
    site.type(shell, shown(README, elsewhere(README)))
    assert not fsck_finds(site)
    there = packages.git(site.place.directory / "packages/tidy.git", "tag", "--list")
    assert {"upstream/1.0", "upstream/1.1"} <= set(there.split())


def test_submitter(at: tuple[Site, Shell]) -> None:
    """With a package that the administrator has made, and an older version in prod."""
    site, shell = at
    repo = site.repos["hello"]
    site.place.cli("package", "create", "hello", "--from", repo.path, check=True)
    for words in (("submit", "staging", "hello", "main"), ("promote", "staging", "prod", "hello")):
        site.place.cli(*words, "--wait", check=True)
    site.earlier = "prod"
    site.earlier = site.when()
    packages.upgraded(repo, "1.1")
    site.type(shell, shown(SUBMITTER, elsewhere(SUBMITTER)))
    assert not fsck_finds(site)


def test_administrator(at: tuple[Site, Shell]) -> None:
    site, shell = at
    shell.cwd = site.home
    site.type(shell, shown(ADMINISTRATOR, elsewhere(ADMINISTRATOR)))
    assert not fsck_finds(site)
    assert not (site.folder / "slot-1").exists()


def fsck_finds(site: Site) -> list[object]:
    return list(site.place.json("fsck")["findings"])


def test_a_clone(tmp_path: Path) -> None:
    """A site of its own, in a new directory."""
    path = programs(tmp_path / "bin", {"sudo": SUDO})
    environment = {"PATH": f"{path}:{PATH}"}
    site = tmp_path / "site"
    shell = Shell(folder=tmp_path, words={"DIR": lambda: str(site)}, environment=environment)
    for line in shown(ADMINISTRATOR, [CLONE]):
        shell.type(line)
    assert (site / "superproject.git").is_dir()


def test_the_two_commands(base: Base, layers: Path, tmp_path: Path) -> None:
    """With a base that is there already; the example is built, published and installed."""
    path = programs(tmp_path / "bin", {"sudo": SUDO})
    environment = {"PATH": f"{path}:{PATH}"}
    with sites.made_site(base, layers) as site:
        words = {
            "DIR": lambda: str(site.directory),
            "PYTEST-ARGS": lambda: "-n 0 tests/unit/test_states.py",
        }
        shell = Shell(folder=tmp_path, words=words, environment=environment)
        try:
            for line in shown(README, [FIRST]):
                shell.type(line)
            assert "hello-pocket" in site.cli("package", "list").text
        finally:
            pid = int((site.directory / "run/daemon.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{pid}").exists())


def test_nothing_is_left_out_in_silence() -> None:
    marked = {block.mark for path in DOCUMENTS for block in documents.blocks(path)} - {""}
    assert marked == {CLEAN_MACHINE}
    assert not [line for path in DOCUMENTS for line in documents.hidden(path)]


def test_a_command_in_disguise_is_found(tmp_path: Path) -> None:
    code = ".. code:: text\n\n    git push x\n\n.. code:: sh\n\n    frob\n\n"
    text = f"{code}.. not run: too slow\n\n::\n\n    git pull\n"
    (tmp_path / "it.rst").write_text("It\n==\n\n" + text)
    assert documents.hidden(tmp_path / "it.rst") == ["git push x", "frob"]
    (block,) = documents.blocks(tmp_path / "it.rst")
    assert (block.section, block.lines, block.mark) == ("It", ("git pull",), "too slow")


@pytest.mark.parametrize("line", ["frobnicate dev", "invirtibuilder log THING"])
def test_what_nobody_knows_fails(line: str, tmp_path: Path) -> None:
    shell = Shell(folder=tmp_path, words={}, environment={})
    with pytest.raises(AssertionError, match="say in"):
        shell.type(line)


def test_a_command_that_fails_is_shown(tmp_path: Path) -> None:
    shell = Shell(folder=tmp_path, words={}, environment={})
    with pytest.raises(AssertionError, match="exit code 64"):
        shell.type("export PATH=" + str(TOP / ".venv/bin") + ":$PATH; invirtibuilder nothing")
