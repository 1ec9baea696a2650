"""The boundaries with real accounts: submitter, daemon and worker are three users."""

from __future__ import annotations

import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import inotify_simple
import pytest

from invirtibuilder.accounts import as_account
from invirtibuilder.run import CLEAN, run
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.ids import Ids
from tests.support import packages
from tests.support.accounts import Accounts, made_accounts
from tests.support.listening import listens
from tests.support.place import remove
from tests.support.sites import TOP, TestSite

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def accounts(ids: Ids) -> Iterator[Accounts]:
    with made_accounts(ids) as made:
        yield made


@pytest.fixture(scope="module")
def place(accounts: Accounts, base: Base, layers: Path) -> Iterator[TestSite]:
    """A site of the daemon's account, with the code where all accounts can read it."""
    directory = Path(tempfile.mkdtemp(prefix="invirtibuilder-accounts-", dir="/var/tmp"))
    directory.chmod(0o755)
    code = directory / "code"
    shutil.copytree(TOP / "invirtibuilder", code / "invirtibuilder")
    shutil.copy(inotify_simple.__file__, code / "inotify_simple.py")
    home = directory / "site"
    work = directory / "work"
    for path, owner in ((home, accounts.daemon), (work, accounts.worker)):
        path.mkdir()
        shutil.chown(path, owner, accounts.worker_group)
    work.chmod(0o711)
    (work / "slot-1").mkdir()
    shutil.chown(work / "slot-1", accounts.worker, accounts.worker_group)
    (work / "slot-1/bases").symlink_to(base.directory.parents[1])
    python = [*as_account(accounts.daemon), "/usr/bin/python3", "-m", "invirtibuilder"]
    site = TestSite(home, python, {"PYTHONPATH": str(code)})
    try:
        site.cli("init", str(home))
        site.configure(
            site__queue_group=accounts.queue_group,
            domains={
                "far": {"socket": str(directory / "sockets" / "worker"), "directory": str(work)}
            },
        )
        site.configure(
            **{f"pockets__{name}__trust_domain": "far" for name in ("dev", "staging", "prod")},
            pockets__dev__acl={"submit": [f"unix/{accounts.submitter}"]},
        )
        (directory / "sockets").mkdir()
        shutil.chown(directory / "sockets", accounts.worker, accounts.worker_group)
        # The socket gets this directory's group; newuidmap wants the account's own to run with.
        (directory / "sockets").chmod(0o2750)
        yield site
    finally:
        home_gpg = str(home / "gnupg")
        run(
            [*as_account(accounts.daemon), "gpgconf", "--homedir", home_gpg, "--kill", "all"],
            check=False,
        )
        _clear(site, work)
        remove(directory)


def _clear(site: TestSite, work: Path) -> None:
    """Layers belong to the worker's subordinate ids: the worker's own code removes them."""
    program = (
        "import sys; from pathlib import Path; from invirtibuilder.sandbox import layers, ids;"
        "[layers.discard(p, ids.Ids.of_user()) for p in Path(sys.argv[1]).glob('*')]"
    )
    argv = [
        *as_account(_owner(work)),
        "/usr/bin/python3",
        "-c",
        program,
        str(work / "slot-1/layers"),
    ]
    run(argv, env=site.env())


def _owner(path: Path) -> str:
    return pwd.getpwuid(path.stat().st_uid).pw_name


@contextmanager
def listening(site: TestSite, accounts: Accounts) -> Iterator[None]:
    """The worker's listener, as its own account."""
    directory = site.directory.parent
    socket = directory / "sockets" / "worker"
    argv = [
        *as_account(accounts.worker),
        *("/usr/bin/python3", "-m", "invirtibuilder", "worker", "--listen", str(socket)),
        *("--directory", str(directory / "work")),
    ]
    with (directory / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            argv, env={**CLEAN, **site.env()}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 60
        while not listens(socket):
            assert process.poll() is None, (directory / "worker.log").read_text()
            assert time.monotonic() < until, "the worker does not listen"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_three_accounts(place: TestSite, accounts: Accounts, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "apart", "apart", "1.0")
    kept = place.directory.parent / "apart"
    shutil.copytree(repo.path, kept)
    place.package("apart", kept)
    submitter = replace_account(place, accounts.submitter)
    with listening(place, accounts), place.daemon():
        job = submitter.publish("dev", "apart", repo.commit)
        assert job["principal"] == f"unix/{accounts.submitter}"
        # The worker's account can make no control groups: it says so when it starts, and in the
        # log of each build, once.
        weaker = "the limit on memory is enforced of each process by itself only (RLIMIT_AS)"
        told = (place.directory.parent / "worker.log").read_text()
        log = place.directory / "jobs" / job["job"] / "attempts" / "build-1" / "log"
        assert [told.count(weaker), log.read_text().count(weaker)] == [1, 1]
        assert submitter.json("status", job["job"])["state"] == "published"
        stranger = replace_account(place, accounts.stranger)
        done, _ = stranger.submit("dev", "apart", repo.commit)
        assert done.code == 3
        assert b"not-permitted" in done.err
        # What belongs to the daemon is out of the worker's and the submitter's reach.
        for account in (accounts.worker, accounts.submitter):
            for secret in ("gnupg", "archive/dev/private"):
                path = str(place.directory / secret)
                assert run([*as_account(account), "ls", path], check=False).code != 0
            argv = [*as_account(account), "touch", str(place.directory / "jobs" / "x")]
            assert run(argv, check=False).code != 0
    assert _owner(place.directory / "jobs" / job["job"]) == accounts.daemon


def test_nobody_speaks_for_another(place: TestSite, accounts: Accounts, tmp_path: Path) -> None:
    """A submitter who writes a request in another's name finds it set aside."""
    program = (
        "import sys; from pathlib import Path; from invirtibuilder.spool import Spool, Request;"
        "request = Request.new('submit', ['dev', 'apart', 'master'], principal=sys.argv[2],"
        " via='forged'); Spool(Path(sys.argv[1])).put(request); print(request.id)"
    )
    argv = [
        *as_account(accounts.stranger),
        *("/usr/bin/python3", "-c", program, str(place.directory / "queue")),
        f"unix/{accounts.submitter}",
    ]
    forged = run(argv, env=place.env()).text
    with place.daemon():
        bad = place.directory / "queue" / "bad" / f"{forged}.json.reason"
        until = time.monotonic() + 60
        while not bad.exists() and time.monotonic() < until:
            time.sleep(0.05)
    assert "may not speak for" in bad.read_text()
    assert not (place.directory / "jobs" / forged).exists()


def test_a_build_outlives_the_daemon(place: TestSite, accounts: Accounts, tmp_path: Path) -> None:
    """SIGKILL for the daemon while the worker builds: the next one adopts the attempt."""
    repo = packages.native(tmp_path / "slow", "slow", "1.0", build="\tsleep 6\n")
    kept = place.directory.parent / "slow"
    shutil.copytree(repo.path, kept)
    place.package("slow", kept)
    submitter = replace_account(place, accounts.submitter)
    with listening(place, accounts):
        with place.daemon() as process:
            job = submitter.cli("submit", "dev", "slow", repo.commit).text
            log = place.directory / "jobs" / job / "attempts" / "build-1" / "log"
            until = time.monotonic() + 60
            while not (log.exists() and b"sleep 6" in log.read_bytes()):
                assert time.monotonic() < until
                time.sleep(0.05)
            process.kill()
            process.wait()
        (place.directory / "run" / "daemon.sock").unlink()
        with place.daemon():
            while (status := place.json("status", job))["state"] in ("running", "queued"):
                time.sleep(0.1)
    assert status["state"] == "published"
    assert sorted(p.name for p in (place.directory / "jobs" / job / "attempts").iterdir()) == [
        "build-1",
        "export-1",
    ]


def replace_account(site: TestSite, account: str) -> TestSite:
    """The same site, used by another account."""
    python = [*as_account(account), "/usr/bin/python3", "-m", "invirtibuilder"]
    return replace(site, python=python)
