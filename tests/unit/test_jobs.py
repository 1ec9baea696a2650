"""A job in its directory: moves, facts, and what two writers do to each other."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from invirtibuilder.errors import Malformed, NotFound, Reason
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.spool import Request
from invirtibuilder.states import IllegalMove, State

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    (tmp_path / "jobs").mkdir()
    return Jobs(tmp_path / "jobs", lambda: NOW)


def request(now: datetime | None = None) -> Request:
    args = ["staging", "greet", "main"]
    return Request.new("submit", args, principal="alice@EXAMPLE.ORG", via="test", now=now)


def test_a_new_job(jobs: Jobs) -> None:
    asked = request()
    job = jobs.create(asked)
    assert job.request == asked
    assert (job.pocket, job.package, job.committish) == ("staging", "greet", "main")
    assert (job.status.state, job.status.final) == (State.QUEUED, False)
    job.move(State.RUNNING)
    # Once more is the same job, as it is.
    assert jobs.create(asked).status.state == State.RUNNING
    assert jobs.names() == [asked.id]


def test_a_half_made_job_is_none(jobs: Jobs) -> None:
    asked = request()
    half = jobs.directory / f".{asked.id}"
    (half / "attempts").mkdir(parents=True)
    (half / "junk").touch()
    assert jobs.names() == []
    job = jobs.create(asked)
    assert not half.exists()
    assert not (job.directory / "junk").exists()


def test_moves_are_the_tables_and_are_written_down(jobs: Jobs) -> None:
    job = jobs.create(request())
    with pytest.raises(IllegalMove):
        job.move(State.PUBLISHED)
    job.move(State.RUNNING)
    job.note(stage="build", version="1.0")
    job.move(State.WAITING, "line\nbreak", reasons=[Reason(code="c", message="m")], wake=NOW)
    status = Jobs(jobs.directory).get(job.id).status
    assert (status.state, status.stage, status.version) == (State.WAITING, "build", "1.0")
    assert status.reasons == ({"code": "c", "message": "m", "hint": ""},)
    assert status.wake == status.since == "2026-01-02T03:04:05.000Z"
    job.move(State.RUNNING)
    assert (job.status.reasons, job.status.wake) == ((), "")
    job.move(State.FAILED, blame="package")
    assert job.status.final
    for state in State:
        with pytest.raises(IllegalMove):
            job.move(state)
    lines = (job.directory / "journal").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines[1:]] == [
        "queued -> running",
        "running -> waiting: line\\nbreak",
        "waiting -> running",
        "running -> failed",
    ]


def test_facts(jobs: Jobs) -> None:
    job = jobs.create(request())
    assert job.fact("admit") is None
    with pytest.raises(RuntimeError, match="admit"):
        job.need("admit")
    job.write_fact("admit", {"a": [1]})
    assert job.need("admit") == {"a": [1]}


def test_a_cancel_is_not_lost_and_takes_nothing_back(jobs: Jobs) -> None:
    for _ in range(20):
        job = jobs.create(request())
        job.move(State.RUNNING)
        same = Job(job.directory)
        asking = threading.Thread(target=same.ask_cancel, args=("bob@EXAMPLE.ORG",))
        asking.start()
        for number in range(10):
            job.note(stage=f"stage{number}")
        job.move(State.PUBLISHED)
        asking.join()
        assert job.status.state == State.PUBLISHED
        assert job.status.stage == "stage9"
        assert job.cancel_asked == job.status.cancel_by == "bob@EXAMPLE.ORG"


def test_finding_a_job(jobs: Jobs) -> None:
    first, second = (jobs.create(request(NOW.replace(second=s))) for s in (1, 2))
    (jobs.directory / "other").mkdir()
    assert [job.id for job in jobs.all()] == [first.id, second.id]
    assert jobs.get(first.id).id == first.id
    assert jobs.get("030401").id == first.id
    for name in ("", "nonesuch", "20260102", "../jobs", ".", "*", "a\nb" * 100):
        with pytest.raises(NotFound) as caught:
            jobs.get(name)
        assert str(caught.value).isprintable()
    second.move(State.CANCELLED)
    assert [job.id for job in jobs.unfinished()] == [first.id]
    assert Jobs(jobs.directory / "nowhere").names() == []


def test_a_damaged_job_does_not_stop_the_others(jobs: Jobs) -> None:
    good, bad = (jobs.create(request(NOW.replace(second=s))) for s in (1, 2))
    (bad.directory / "state.json").write_text('{"state": "ru')
    assert [job.id for job in jobs.unfinished()] == [good.id]
    assert list(jobs.unreadable()) == [bad.id]
    (bad.directory / "request.json").write_text("[]")
    with pytest.raises(Malformed):
        jobs.get(bad.id)
