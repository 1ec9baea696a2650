"""How much one principal may ask of a pocket: at once, in an hour, and what a refusal says."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from invirtibuilder import model, quotas
from invirtibuilder.jobs import Job
from invirtibuilder.spool import Request, Spool
from invirtibuilder.states import State
from tests.support import packages, place
from tests.support.cannedworker import CannedWorker
from tests.support.packages import Repo
from tests.support.place import ME, Place, until


@pytest.fixture
def line() -> Iterator[tuple[Place, CannedWorker]]:
    with place.canned() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Place]:
    with place.place() as made:
        yield made


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    return packages.native(tmp_path_factory.mktemp("repo") / "greet")


def limit(place: Place, rule: str) -> None:
    """Give dev, the backtracking pocket, a limit."""
    place.edit("    allow_backtracking: true\n", f"    allow_backtracking: true\n    {rule}\n")


def codes(place: Place, who: str = ME, pocket: str = "dev", but: str = "") -> list[str]:
    return [reason.code for reason in quotas.excess(place.context, who, pocket, but=but)]


def over(job: Job) -> None:
    job.move(State.RUNNING)
    job.move(State.FAILED)


def taken_up(job: Job, ago: timedelta) -> datetime:
    """As if the daemon had taken it up that long ago."""
    moment = time.time() - ago.total_seconds()
    os.utime(job.directory / "request.json", (moment, moment))
    return datetime.fromtimestamp(moment, UTC)


def test_nothing_is_limited_unless_it_says_so(own: Place, repo: Repo) -> None:
    for _ in range(3):
        own.job("dev", repo)
    assert codes(own) == []
    assert codes(own, pocket="nonesuch") == []


def test_jobs_that_are_not_over(own: Place, repo: Repo) -> None:
    limit(own, "max_queued: 2")
    first = own.job("dev", repo)
    # Of others, and elsewhere.
    own.job("dev", repo, who="alice@R")
    own.job("prod", repo)
    assert codes(own) == []
    second = own.job("dev", repo)
    assert codes(own) == ["too-many-queued"]
    assert codes(own, but=second.id) == codes(own, "alice@R") == codes(own, pocket="prod") == []
    (reason,) = quotas.excess(own.context, ME, "dev")
    assert reason.message == (
        f"{ME} has 2 jobs in dev that are not over, of at most 2; come back when {first.id} has"
        " ended"
    )
    over(first)
    assert codes(own) == []


def test_submissions_of_an_hour(own: Place, repo: Repo) -> None:
    limit(own, "max_hourly: 2")
    jobs = [own.job("dev", repo) for _ in range(4)]
    for job in jobs:
        over(job)
    own.job("dev", repo, who="alice@R")
    ages = [timedelta(minutes=m) for m in (61, 50, 40, 30)]
    times = [taken_up(job, age) for job, age in zip(jobs, ages, strict=True)]
    (reason,) = quotas.excess(own.context, ME, "dev")
    assert reason.code == "too-many-submissions"
    # The second last must have left the hour before there is room for one more.
    back = model.iso(times[2] + timedelta(hours=1))
    assert reason.message == (
        f"{ME} has submitted 3 times to dev in an hour, of at most 2; come back at {back}"
    )
    taken_up(jobs[1], timedelta(minutes=61))
    assert codes(own) == ["too-many-submissions"]
    assert codes(own, but=jobs[3].id) == []
    (own.site.jobs / "20260101T000000.000000-0000").mkdir()
    (own.site.jobs / "20260101T000000.000000-0000/request.json").write_text("{")
    assert codes(own) == ["too-many-submissions"]
    taken_up(jobs[2], timedelta(minutes=61))
    assert codes(own) == []


def test_an_id_of_another_time_does_not_help(own: Place, repo: Repo) -> None:
    """An entry's id and time are its writer's word."""
    limit(own, "max_hourly: 1")
    value = own.request("dev", repo).as_json()
    value["id"] = "2001" + value["id"][4:]
    request = Request(**{k: v for k, v in value.items() if k != "v"})
    over(own.context.jobs.create(request))
    assert codes(own) == ["too-many-submissions"]


def test_the_daemon_refuses_before_and_at_take_up(
    line: tuple[Place, CannedWorker], tmp_path: Path
) -> None:
    place, worker = line
    limit(place, "max_queued: 1\n    max_hourly: 2")
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    newer = packages.upgraded(repo, "1.1")
    place.push(newer)
    # Without a daemon to ask, everything is accepted.
    early = [
        place.json("submit", "dev", "greet", commit)["job"]
        for commit in (repo.commit, newer.commit)
    ]
    with worker.held("export") as held, place.daemon():
        held.wait()
        until(lambda: not any((place.site.queue / "new").iterdir()))
        status = place.cli("status", early[1])
        assert status.code == 77
        assert b"come back when " + early[0].encode() in status.err
        waited = place.cli("submit", "dev", "greet", "nonesuch")
        assert waited.code == 3
        found = re.findall(rb"\[([a-z-]+)\]", waited.err)
        assert found == [b"commit-unknown", b"too-many-queued"], "all reasons at once"
        held.released.set()
        assert place.ended(early[0]).status.state == State.PUBLISHED
        again = place.cli("retry", early[0])
        assert again.code == 0
        assert place.ended(again.text).status.state == State.PUBLISHED
        third = place.cli("retry", early[0])
        assert third.code == 77
        assert b"come back at 20" in third.err
        assert place.cli("check", "dev", "greet", "main").code == 3
        assert place.cli("check", "staging", "greet", "main").code == 0
    assert len(place.context.jobs.names()) == 2


def test_a_daemon_that_was_cut_off_finds_its_own_job(
    line: tuple[Place, CannedWorker], tmp_path: Path
) -> None:
    """A job was made of the entry, which is still there: that is one submission, not two."""
    place, _ = line
    limit(place, "max_queued: 1\n    max_hourly: 1")
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    request = place.request("dev", repo)
    place.context.jobs.create(request)
    Spool(place.site.queue).put(request)
    with place.daemon():
        assert place.ended(request.id).status.state == State.PUBLISHED
    assert not any((place.site.queue / "bad").iterdir())
