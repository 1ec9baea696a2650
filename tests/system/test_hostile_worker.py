"""The accounts of an installed system against each other, with one of them in hostile hands."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from inotify_simple import Event, INotify, flags

from invirtibuilder.run import started_group
from tests.support import packages
from tests.support.installed import CODE, CONFIG, SITE, TOP, Installed, installed
from tests.support.place import until

pytestmark = pytest.mark.root

HOSTILE = Path("/run/hostile")
SOCKETS = Path("/run/invirtibuilder")
WORKERS = {"untrusted": "ib-build-untrusted", "trusted": "ib-build"}
PROGRAM = ("/usr/bin/python3", "-m", "tests.support.hostileworker")
SLOT = """
import sys
from pathlib import Path
from invirtibuilder.sandbox.slots import taken
with taken(Path(sys.argv[1]), range(1, 2), stop=lambda: False, waiting=lambda: None):
    pass
"""
"""What a worker does first."""
FLOOD = {"log": "1M", "result": "8M"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """A site whose workers are this program; that of `trusted` is honest for good."""
    with installed() as made:
        value = yaml.safe_load(made.path(CONFIG).read_text())
        for pocket in value["pockets"].values():
            pocket |= {"mirror": "http://mirror.invalid/debian", "limits": FLOOD}
        made.path(CONFIG).write_text(yaml.safe_dump(value))
        shutil.copytree(TOP / "tests/support", made.path(CODE / "tests/support"))
        made.run("mkdir", "-m", "0711", HOSTILE)
        repo = packages.native(
            tmp_path_factory.mktemp("git") / "hello", "hello", "1.0", distribution="bookworm"
        )
        shutil.copytree(repo.path, made.path(HOSTILE / "hello"))
        made.cli("root", "package", "create", "hello", "--from", str(HOSTILE / "hello"))
        for account in WORKERS.values():
            made.sh(
                'setpriv --reuid="$1" --regid="$1" --init-groups python3 -c "$2" "$3"',
                account,
                SLOT,
                f"/var/lib/{account}",
            )
        made.services("start", "signer", "notifier")
        with contextlib.ExitStack() as stack:
            for domain, account in WORKERS.items():
                stack.enter_context(serving(made, domain, account))
            made.services("start", "daemon")
            yield made
            made.services("stop", "daemon", "signer", "notifier")


@contextlib.contextmanager
def serving(system: Installed, domain: str, account: str) -> Iterator[None]:
    """One of them; as with the real one, root puts its socket where the daemon alone connects."""
    folder = HOSTILE / domain
    system.run("install", "-d", "-o", account, "-g", account, "-m", "0700", folder)
    attack(system, "honest", domain)
    argv = system.argv("setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups")
    with started_group([*argv, *PROGRAM, str(folder)]):
        until(lambda: system.path(folder / "socket").exists())
        socket = SOCKETS / f"worker-{domain}.sock"
        system.run("mv", folder / "socket", socket)
        system.run("chown", "root:invirtibuilder", socket)
        system.run("chmod", "0660", socket)
        yield


def attack(system: Installed, name: str, domain: str = "untrusted") -> None:
    """What the worker does from now on."""
    system.path(HOSTILE / domain / "attack").write_text(name)


def submit(system: Installed, pocket: str) -> tuple[int, str]:
    """Submit, and wait for the end; the exit code, and the job's id."""
    done = system.cli("root", "submit", pocket, "hello", "main", "--wait", check=False)
    assert done.code in (0, 4), done.err.decode()
    return done.code, done.text


def told(system: Installed, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(system.cli("root", "status", job, "--json").out)
    return found


def published(system: Installed) -> dict[str, str]:
    """Every published file, and the record."""
    script = 'cd "$1" && find archive/*/pool -type f -exec sha256sum {} + | sort -k2'
    lines = system.sh(
        script + '; git --git-dir="$1/superproject.git" -c safe.directory="*" for-each-ref', SITE
    )
    return {line.split()[-1]: line for line in lines.splitlines()}


MOMENTS = (0, 0.005, 0.01, 0.02, 0.04) * 6
"""Seconds after a result was opened."""
FINAL = {"published", "failed", "refused"}

LOST = (
    *("nothing at all", "a link", "another name of a file", "a device", "a pipe"),
    *("an absolute name", "a name with dots", "a member of a terabyte", "a terabyte"),
    *("another attempt's", "no lock", "a log without an end", "a result without an end"),
)
"""Of these there is no result."""
WRONG = (
    *("another binary package", "another version", "another source package"),
    *("a source of other files", "another tree"),
)
"""These are results that fit no job."""


@pytest.mark.parametrize("name", [*LOST, *WRONG])
def test_what_is_given_back_counts_only_for_its_order(system: Installed, name: str) -> None:
    before = published(system)
    attack(system, name)
    try:
        code, job = submit(system, "dev")
    finally:
        attack(system, "honest")
    assert code == 4
    assert published(system) == before
    codes = {reason["code"] for reason in told(system, job)["reasons"]}
    assert (codes == {"worker-lost"}) == (name in LOST), codes
    assert not system.path(HOSTILE / "written").exists()
    # What was flooded is not kept.
    size = int(system.sh('du -sm "$1" | cut -f1', SITE / "jobs" / job))
    assert size < 200


def test_the_same_worker_is_believed_when_it_is_honest(system: Installed) -> None:
    """The control; and for another domain's pocket it is not asked."""
    attack(system, "nothing at all")
    try:
        assert submit(system, "prod")[0] == 0
    finally:
        attack(system, "honest")
    assert submit(system, "dev")[0] == 0
    assert system.cli("root", "fsck").code == 0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What the kernel says of results: who opens, changes and leaves them."""

    watch: INotify
    seen: list[Event] = field(default_factory=list)

    def of(self, result: int) -> list[int]:
        """What has happened to one, in order."""
        self.seen.extend(self.watch.read(timeout=50))
        return [event.mask for event in self.seen if event.wd == result]


def rewritten(system: Installed, job: str, delay: float, watched: Watched) -> bool:
    """Have the result that is ready rewritten, with the daemon stopped a while after it opened it.

    Whether it was in the midst of the copying.
    """
    folder, daemon = system.path(HOSTILE / "untrusted"), system.process("daemon")
    attempt = (folder / "ready").read_text().rpartition(".")[2]
    (folder / "ready").unlink()
    path = system.path(SITE / "jobs" / job / "attempts" / attempt / "result.tar")
    result = watched.watch.add_watch(str(path), flags.OPEN | flags.MODIFY | flags.CLOSE_NOWRITE)
    (folder / "go").touch()
    until(lambda: watched.of(result))
    time.sleep(delay)
    os.kill(daemon, signal.SIGSTOP)
    try:
        until(lambda: "\nState:\tT" in Path(f"/proc/{daemon}/status").read_text())
        (folder / "now").touch()
        until((folder / "done").exists)
        (folder / "done").unlink()
        events = until(lambda: flags.MODIFY in (found := watched.of(result)) and found)
    finally:
        os.kill(daemon, signal.SIGCONT)
    return flags.CLOSE_NOWRITE not in events[: events.index(flags.MODIFY)]


def changing(system: Installed, moments: Iterator[float]) -> tuple[dict[str, Any], int]:
    """A submission whose results all change; what became of it, and how often in the midst."""
    ready, hits = system.path(HOSTILE / "untrusted/ready"), 0
    attack(system, "a result that changes")
    try:
        job = system.cli("root", "submit", "dev", "hello", "main").text
        with INotify() as watch:
            watched = Watched(watch=watch)
            while until(lambda: ready.exists() or told(system, job)["state"] in FINAL):
                if not ready.exists():
                    break
                hits += rewritten(system, job, next(moments), watched)
            watched.of(0)
            # What was hashed is used: nobody looks a second time.
            opened = Counter(event.wd for event in watched.seen if event.mask & flags.OPEN)
            assert set(opened.values()) == {1}
    finally:
        attack(system, "honest")
    return told(system, job), hits


def test_a_result_that_changes_is_what_was_hashed_or_nothing(system: Installed) -> None:
    """It changes sooner or later in the copying, and afterwards."""
    moments, hits = iter(MOMENTS), 0
    while hits < 3:
        before = published(system)
        status, more = changing(system, moments)
        hits += more
        if status["state"] == "published":
            with tarfile.open(system.path(HOSTILE / "untrusted/honest.tar")) as tar:
                (member,) = (m for m in tar.getmembers() if m.name.endswith(".deb"))
                content = tar.extractfile(member)
                assert content
                digest = hashlib.sha256(content.read()).hexdigest()
            new = [line for name, line in published(system).items() if name not in before]
            debs = [line.split()[0] for line in new if line.endswith(".deb")]
            assert debs == [digest]
        else:
            assert {reason["code"] for reason in status["reasons"]} == {"worker-lost"}
            assert published(system) == before
    assert system.cli("root", "fsck", "--full").code == 0


def test_what_is_handed_over_is_handed_over_for_one_use(system: Installed) -> None:
    attack(system, "grasping")
    try:
        assert submit(system, "dev")[0] == 0
    finally:
        attack(system, "honest")
    found = json.loads(system.path(HOSTILE / "untrusted/findings").read_text())
    # A log can be read, by those who see jobs; here by whoever has been handed it.
    assert {name for name, said in found.items() if said == "done"} == {
        *("read log anew", "read lock anew"),
    }
    assert len(found) == 21


@dataclass(frozen=True, kw_only=True)
class Held:
    """An order of the trusted domain's, at its worker; ids of processes are those in there."""

    job: str
    listener: int
    worker: int
    order: int
    result: int


@pytest.fixture(scope="module")
def held(system: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    folder = system.path(HOSTILE / "trusted")
    path = tmp_path_factory.mktemp("git") / "held"
    repo = packages.native(path, "held", "1.0", distribution="bookworm")
    shutil.copytree(repo.path, system.path(HOSTILE / "held"))
    system.cli("root", "package", "create", "held", "--from", str(HOSTILE / "held"))
    attack(system, "an order that stays open", "trusted")
    try:
        job = system.cli("root", "submit", "prod", "held", "main").text
        until((folder / "held").exists)
    finally:
        attack(system, "honest", "trusted")
    listener, worker, order, result, *_ = json.loads((folder / "held").read_text())
    yield Held(job=job, listener=listener, worker=worker, order=order, result=result)
    (folder / "released").touch()
    until(lambda: told(system, job)["state"] == "published")


def targets(system: Installed, held: Held) -> dict[str, tuple[str, str]]:
    """What only some accounts may do; each with root as its control."""
    orders = list(system.path(SITE / "jobs" / held.job).glob("attempts/export-1/order.tar"))
    assert len(orders) == 1
    site = {
        "keys": ("list", "/var/lib/ib-sign/gnupg"),
        "packages": ("list", f"{SITE}/packages"),
        "a package": ("read", f"{SITE}/packages/hello.git/config"),
        "an order": ("read", f"{SITE}/jobs/{held.job}/attempts/export-1/order.tar"),
        "jobs": ("list", f"{SITE}/jobs"),
        "a job of one's own making": ("make", f"{SITE}/jobs"),
        "requests": ("list", f"{SITE}/queue/new"),
        "a request": ("make", f"{SITE}/queue/new"),
        "refused requests": ("make", f"{SITE}/queue/bad"),
        "databases": ("list", f"{SITE}/archive/dev/private"),
        "an archive": ("make", f"{SITE}/archive/dev"),
        "a pool": ("make", f"{SITE}/archive/dev/pool"),
        "upstream tarballs": ("make", f"{SITE}/origs"),
        "events": ("list", f"{SITE}/events"),
        "an event": ("make", f"{SITE}/events"),
        "the record": ("make", f"{SITE}/superproject.git/refs/heads"),
        "what doors believe": ("write", f"{SITE}/run/door.json"),
        "what hooks of git believe": ("write", f"{SITE}/run/push-rules.json"),
        "the configuration": ("write", str(CONFIG)),
        "the daemon's answers": ("connect", f"{SITE}/run/daemon.sock"),
    }
    sockets = {
        f"socket {name}": ("connect", f"{SOCKETS}/{name}.sock")
        for name in ("sign", "notify", "worker-trusted", "worker-untrusted")
    }
    processes = {
        f"{what} {name}": (what, system.sh(f"cat {SOCKETS}/{name}.pid"))
        for name in ("daemon", "signer", "notifier")
        for what in ("signal", "memory")
    }
    pids = {"listener": str(held.listener), "worker": str(held.worker)}
    processes |= {
        f"{what} trusted {name}": (what, pid)
        for name, pid in pids.items()
        for what in ("signal", "memory")
    }
    open_files = {
        **{f"descriptors trusted {n}": ("list", f"/proc/{pid}/fd") for n, pid in pids.items()},
        "an open order": ("read", f"/proc/{held.worker}/fd/{held.order}"),
        "an open result": ("write", f"/proc/{held.worker}/fd/{held.result}"),
        "the descriptor of an order": ("take", f"{held.worker} {held.order}"),
        "the descriptor of a result": ("take", f"{held.worker} {held.result}"),
    }
    domain = {
        f"{what} trusted {name}": (what, f"/var/lib/ib-build/{name}")
        for name in ("", "slot-1", "slot-1/scratch")
        for what in ("list", "make")
    }
    return {**site, **sockets, **processes, **open_files, **domain}


MAY = {
    "root": None,
    "ib-build-untrusted": {"the daemon's answers"},
    "ib-notify": {"the daemon's answers", "signal notifier", "memory notifier"},
    "ib-git": {"the daemon's answers", "packages", "a package"},
    "ib-sign": {"the daemon's answers", "keys", "signal signer", "memory signer"},
    # Its entries are its own; those of others it neither replaces nor removes.
    "ib-submit": {"the daemon's answers", "jobs", "events", "requests", "a request"},
}


@pytest.mark.parametrize("account", MAY)
def test_what_an_account_may_besides(system: Installed, held: Held, account: str) -> None:
    """Of the other domain: an order that its worker is at, too."""
    words = targets(system, held)
    drop = ("setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups")
    done = system.run(*drop, *PROGRAM, HOSTILE, json.dumps(words))
    found = {name for name, said in json.loads(done.out).items() if said == "done"}
    may = MAY[account]
    assert found == (set(words) if may is None else may)


MAP = """
unshare --user sleep 60 & pid=$!
own=$(readlink /proc/self/ns/user)
until [ "$(readlink /proc/$pid/ns/user)" != "$own" ]; do sleep 0.02; done
code=0
newuidmap $pid 0 "$1" 65536 && newgidmap $pid 0 "$1" 65536 || code=1
kill $pid
exit $code
"""


@pytest.mark.parametrize("account", WORKERS.values())
@pytest.mark.parametrize("owner", WORKERS.values())
def test_whose_ids_a_worker_becomes(system: Installed, account: str, owner: str) -> None:
    """Those of its own account: files of another domain's builds are those of others."""
    first = system.sh('grep "^$1:" /etc/subuid | head -n 1 | cut -d: -f2', owner)
    drop = ("setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups")
    done = system.run(*drop, "sh", "-uc", MAP, "sh", first, check=False)
    assert (done.code == 0) == (account == owner), done.err.decode()
