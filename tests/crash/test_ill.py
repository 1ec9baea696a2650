"""A full disk, a clock that goes back, a key that is away, no mirror, frozen workers."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from invirtibuilder.errors import Blame
from invirtibuilder.jobs import Job, Status
from invirtibuilder.pipeline import advance
from invirtibuilder.run import run
from invirtibuilder.states import State
from tests.support import cannedworker, packages
from tests.support import place as places
from tests.support.aptclient import AptClient, file_uri
from tests.support.crashsite import CrashSite, crash_site, until


def job_of(site: CrashSite, job_id: str) -> Job:
    return site.jobs()[job_id]


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_frozen_worker_says_when_it_wakes_up_is_not_heard(restarted: bool) -> None:
    """Its order was given to another: that one's result counts, whenever the other comes."""
    frozen = 2 if restarted else 1
    with crash_site("frozen", names=("alpha",), freeze=frozen) as site:
        site.place.edit("    trust_domain:", "    limits: {time: 0.1}\n    trust_domain:")
        room = site.place.log.parent / "canned"
        job_id = site.submit("staging", "alpha", 0).id
        settings = {"stages.orders.BASE_SECONDS": 10.0}
        pid = site.start(settings=settings)
        until((room / f"frozen-{frozen - 1}").exists, site.told())
        first = int((room / "frozen-0").read_text())
        folder = job_of(site, job_id).directory / "attempts"
        if restarted:
            # The second one is at work when the daemon dies, and the first one ends then.
            os.kill(pid, signal.SIGKILL)
            site.wait()
            os.kill(first, signal.SIGCONT)
            until(lambda: (folder / "build-1/result.tar").stat().st_size > 5000)
            site.start(settings={"stages.orders.BASE_SECONDS": 600.0})
            os.kill(int((room / "frozen-1").read_text()), signal.SIGCONT)
        assert site.wait() == 0, site.told()
        fact = job_of(site, job_id).need("build")
        assert fact["attempt"] == f"{job_id}.build-2"
        before = site.check()
        if not restarted:
            os.kill(first, signal.SIGCONT)
            until(lambda: (folder / "build-1/result.tar").stat().st_size > 5000)
            site.finish()
            assert job_of(site, job_id).need("build") == fact
        assert site.check() == before == {"published": 1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB on which sites of this test are."""
    places.template()  # as tests' own folder, not there
    folder = Path(tempfile.mkdtemp(prefix="ib-"))
    run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", folder])
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        run(["umount", "-l", folder])
        folder.rmdir()


@contextmanager
def full(disk: Path, left: int) -> Iterator[None]:
    """Only so many KiB are free there meanwhile."""
    usage = os.statvfs(disk)
    free = usage.f_bavail * usage.f_frsize
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, free - (left << 10)))
    try:
        yield
    finally:
        (disk / "ballast").unlink()


@pytest.mark.root
def test_a_full_disk_fails_no_job_wherever_it_is_met(small_disk: Path, tmp_path: Path) -> None:
    """What is left decides how far the line comes; each tool has its own words for that."""
    with places.canned() as (place, worker):
        repo = packages.native(tmp_path / "greet")
        place.package(repo)
        met: Counter[str] = Counter()
        for turn, left in enumerate((*range(0, 120, 12), *range(120, 920, 40))):
            repo = packages.upgraded(repo, f"1.{turn}")
            place.push(repo)
            job = place.job("staging", repo)
            context = place.context
            with full(small_disk, left):
                try:
                    advance(context, job)
                    met[f"{job.status.stage} {job.status.state}"] += 1
                except OSError as error:  # not even that could be written down: the runner waits
                    assert error.errno == errno.ENOSPC
                    met[f"{job.status.stage} unwritten"] += 1
                assert job.status.state != State.FAILED, (left, job.status)
            for _ in range(5):
                if not job.status.final:
                    advance(context, job)
            assert job.status.state == State.PUBLISHED, (left, job.status)
        assert met["publish waiting"] > 3, met
        assert {name.split()[0] for name in met} >= {"announce", "export", "publish", "notify"}, met
        assert place.cli("fsck", "--full").code == 0
        # Where the canned worker itself had no room, for its result say: it is another's disk.
        worker.errors.clear()


@pytest.mark.root
def test_jobs_wait_for_room_beside_a_daemon_that_is_killed(small_disk: Path) -> None:
    names = ("alpha", "beta")
    with crash_site("full", names=names, versions=2) as site:
        for turn, left in enumerate((0, 80, 250)):
            job_id = site.submit("staging", names[turn % 2], turn // 2).id
            with full(small_disk, left):
                code = site.live(after=2.5, drain=False)
            assert code in (71, -signal.SIGKILL), site.told()
            job = site.jobs().get(job_id)
            assert job is None or job.status.state != State.FAILED, (left, job.status, site.told())
            site.finish()
            assert site.check()["failed"] == 0
        assert site.check() == {"published": 3}


def test_a_clock_that_goes_back(tmp_path: Path) -> None:
    """Dates rise all the same, clients see what is new, versions of a commit rise."""
    with crash_site("clock", names=("alpha",), versions=3) as site:
        place = site.place
        pocket = place.site.pockets["staging"]
        publications = place.context.archive(pocket).publications
        apt = AptClient(folder=tmp_path)
        apt.configure(
            f"Types: deb\nURIs: {file_uri(publications.root)}\nSuites: staging\n"
            f"Components: main\nSigned-By: {publications.root}/key.asc\n"
        )
        versions = []
        for number, clock in enumerate((0, -3600, -7200)):
            site.submit("staging", "alpha", number)
            dev = site.submit("dev", "alpha", 0)
            assert site.live(clock=clock) == 0, site.told()
            versions.append(job_of(site, dev.id).status.version)
            apt.update()
            assert apt.candidate("alpha") == f"1.{number}"
        assert site.check() == {"published": 6}
        dates = [publications.date(number) for number in publications.numbers()]
        assert dates == sorted(set(dates))
        for lower, higher in itertools.pairwise(versions):
            run(["dpkg", "--compare-versions", lower, "lt", higher])


def waited(site: CrashSite, job: Job) -> Status:
    """The job's status as it was seen waiting: not for long, the next look may find it running."""

    def waiting() -> Status | None:
        status = job.status
        return status if status.state == State.WAITING else None

    found: Status = until(waiting, site.told())
    return found


def test_a_key_that_is_away_for_a_while() -> None:
    """What was built waits for it, and is not built again."""
    with crash_site("key", names=("alpha",)) as site:
        gnupg = site.place.directory / "gnupg"
        kept = gnupg / "private-keys-v1.d"
        kept.rename(gnupg / "away")
        run(["gpgconf", "--homedir", gnupg, "--kill", "gpg-agent"])
        job_id = site.submit("staging", "alpha", 0).id
        pid = site.start(drain=False)
        job = until(lambda: site.jobs().get(job_id))

        status = waited(site, job)
        assert "is not in" in status.reasons[0]["message"]
        assert status.stage == "publish"
        shutil.rmtree(kept, ignore_errors=True)
        (gnupg / "away").rename(kept)
        run(["gpgconf", "--homedir", gnupg, "--kill", "gpg-agent"])
        until(lambda: job.status.final, site.told())
        os.kill(pid, signal.SIGTERM)
        assert site.wait() == 0
        assert site.check() == {"published": 1}
        assert sorted(p.name for p in (job.directory / "attempts").iterdir()) == [
            "build-1",
            "export-1",
        ]


def test_a_key_that_is_locked_is_waited_for() -> None:
    """Until the administrator has given another, say; what was built is published with that."""
    with crash_site("locked", names=("alpha",)) as site:
        place = site.place
        gnupg, before = place.directory / "gnupg", place.config.read_text()
        gpg: list[str | Path] = ["gpg", "--homedir", gnupg, "--batch", "--status-fd", "1"]
        asked = ("--quick-generate-key", "Locked <locked@example.org>", "ed25519", "sign", "never")
        made = run([*gpg, "--pinentry-mode", "loopback", "--passphrase", "secret", *asked]).text
        run(["gpgconf", "--homedir", gnupg, "--kill", "gpg-agent"])
        place.edit(place.site.signing.key, made.split("KEY_CREATED P ")[1][:40])
        job_id = site.submit("staging", "alpha", 0).id
        pid = site.start(drain=False)
        job = until(lambda: site.jobs().get(job_id))

        status = waited(site, job)
        assert (status.stage, status.reasons[0]["code"]) == ("publish", "key-locked")
        os.kill(pid, signal.SIGTERM)
        assert site.wait() == 0
        place.config.write_text(before)
        run(["gpgconf", "--homedir", gnupg, "--kill", "gpg-agent"])
        site.finish()
        assert site.check() == {"published": 1}
        assert len(list((job.directory / "attempts").iterdir())) == 2


def test_a_mirror_that_is_gone_fails_the_job_and_nothing_else(tmp_path: Path) -> None:
    with places.canned() as (place, worker):
        repo = packages.native(tmp_path / "greet")
        place.package(repo)
        answer = cannedworker.failing("base-failed", "the mirror does not answer", Blame.ROOM)
        good = worker.answers["build"]
        worker.answers["build"] = answer
        failed = place.submitted("staging", repo)
        assert (failed.status.state, failed.status.blame) == (State.FAILED, "room")
        worker.answers["build"] = good
        assert place.submitted("staging", repo).status.state == State.PUBLISHED
        assert place.cli("fsck").code == 0
