"""A site whose doors are open: the shipped program behind the real remctld, and on its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from invirtibuilder.jobs import Jobs
from invirtibuilder.model import JOB
from invirtibuilder.run import Done, run
from tests.support import packages
from tests.support import place as places
from tests.support.cannedworker import CannedWorker
from tests.support.kdc import Realm, remctl, remctld
from tests.support.packages import Repo
from tests.support.place import ROOT, Place, until

CONF = ROOT / "conf/remctl"
ALICE, BOB, CAROL = (f"{name}@BUILD.TEST" for name in ("alice", "bob", "carol"))
USER = pwd.getpwuid(os.geteuid()).pw_name


def installed(place: Place, shell: bool = False) -> Path:
    """The shipped command file and program, with this site's paths."""
    folder = place.directory.parent / ("ssh" if shell else "remctl")
    folder.mkdir(exist_ok=True)
    program = (CONF / "build").read_text()
    for name, value in (("CODE", ROOT), ("TABLE", place.directory / "run/door.json")):
        program, count = re.subn(f"(?m)^{name} = .*", f"{name} = {str(value)!r}", program)
        assert count == 1
    (folder / "build").write_text(program)
    (folder / "build").chmod(0o755)
    rules = (CONF / ("invirtibuilder-shell" if shell else "invirtibuilder")).read_text()
    assert ("user=ib-submit" in rules.splitlines()[-1]) is not shell
    user = f"user={USER}" if os.geteuid() == 0 else ""  # only root may change to another
    rules = rules.replace("user=ib-submit", user)
    rules = rules.replace("/etc/invirtibuilder/build", str(folder / "build"))
    rules = rules.replace("/etc/invirtibuilder/submitters", f"{place.directory}/run/submitters")
    (folder / "conf").write_text(rules)
    return folder


def backlog() -> int:
    """How many connections wait, as the shipped socket unit says."""
    unit = (ROOT / "debian/invirtibuilder.invirtibuilder-remctld.socket").read_text()
    assert re.search(r"^NoDelay=true$", unit, re.M), "the tests' socket has it"
    found = re.search(r"^Backlog=(\d+)$", unit, re.M)
    assert found
    return int(found[1])


def prepare(place: Place) -> None:
    """Alice works in dev and staging, bob may do all in dev and administers the site, carol may
    nothing anywhere."""
    place.edit("  name: test\n", f"  name: test\n  doors: [{USER}]\n  administrators: [{BOB}]\n")
    text = place.config.read_text()
    mine = f"submit: [{places.ME}]\n      cancel: [{places.ME}]"
    dev = f"submit: [{ALICE}, {BOB}, {places.ME}]\n      cancel: [{BOB}]"
    text = text.replace(mine, dev, 1).replace(mine, f"submit: [{ALICE}]", 1)
    place.config.write_text(text)


def direct(place: Place, who: str, *args: str, folder: Path | None = None, **env: str) -> Done:
    """The program as remctld starts it, without remctld."""
    program = (folder or installed(place)) / "build"
    environment = {"REMOTE_USER": who, "REMCTL_COMMAND": "build", **env}
    return run([program, *args], env=environment, check=False, timeout=60)


@dataclass(frozen=True, kw_only=True)
class Door:
    """A site whose door is open."""

    place: Place
    worker: CannedWorker
    realm: Realm
    port: int
    log: Path
    repo: Repo

    def call(self, who: str, *command: str | bytes) -> Done:
        """`remctl localhost build …`."""
        return remctl(self.realm, who, self.port, "build", *command)

    def submit(self, who: str = "alice", pocket: str = "dev") -> str:
        """A submission that is accepted; its job."""
        done = self.call(who, "submit", pocket, self.repo.name, "main")
        assert done.code == 0, done.err
        assert JOB.fullmatch(done.text)
        return done.text

    @property
    def known(self) -> list[str]:
        """Everything that was ever accepted."""
        return [*Jobs(self.place.site.jobs).names(), *os.listdir(self.place.site.queue / "new")]


def followers(job: str) -> list[int]:
    """Programs that follow this job now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if job.encode() in words and b"follow" in words and b"-IS" in words:
                found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def door(realm: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A site with a package, a daemon and the real remctld."""
    folder = tmp_path_factory.mktemp("door")
    repo = packages.native(folder / "greet")
    log = folder / "remctld.log"
    with places.canned() as (place, worker):
        prepare(place)
        place.package(repo)
        conf = installed(place) / "conf"
        with place.daemon(), remctld(realm, conf, log) as port:
            until((place.directory / "run/door.json").exists)
            yield Door(place=place, worker=worker, realm=realm, port=port, log=log, repo=repo)
