"""Two submissions of one commit become one job; each keeps an id and a wish of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from invirtibuilder import quotas, submissions
from invirtibuilder.errors import Exit
from invirtibuilder.jobs import Jobs
from invirtibuilder.states import State
from tests.support import packages
from tests.support.packages import Repo
from tests.support.place import ME, ROOT, Place, until
from tests.support.running import ALICE, BOB, Line, door, everybody, gated, published, put


@pytest.fixture
def line() -> Iterator[Line]:
    with everybody() as made:
        yield made


@pytest.fixture
def repo(line: Line, tmp_path: Path) -> Repo:
    made = packages.native(tmp_path / "greet")
    line[0].package(made)
    return made


def jobs(place: Place) -> list[str]:
    return Jobs(place.site.jobs).names()


def taken_up(place: Place) -> bool:
    return not any((place.site.queue / "new").iterdir())


def test_the_answer_names_the_job_that_is_there(line: Line, repo: Repo) -> None:
    place, worker = line
    with gated(worker) as gate, place.daemon():
        first = place.cli("submit", "staging", "greet", "main", check=True).text
        gate.wait("greet")
        again = place.cli("submit", "staging", "greet", repo.commit)
        assert again.text == first
        assert f"nothing new is queued: job {first} of greet 1.0 from".encode() in again.err
        value = place.json("submit", "staging", "greet", "main")
        assert value == {"job": first, "checked": True, "queued": False}
        assert door(place, BOB, "submit", "staging", "greet", "main").text == first
        # Another pocket is another job.
        other = place.cli("submit", "prod", "greet", "main", check=True).text
        assert other != first
        gate.open()
        published(place, first, other)
        assert sorted(jobs(place)) == sorted([first, other])
        # What has ended is no answer to a new one.
        third = place.cli("submit", "dev", "greet", "main", check=True).text
        published(place, third)
        assert place.cli("submit", "dev", "greet", "main", "--wait").code == Exit.OK
    assert len(jobs(place)) == 4


def test_an_alias_works_wherever_a_job_does(line: Line, repo: Repo) -> None:
    place, worker = line
    first, second = put(place, "staging", repo, ALICE), put(place, "staging", repo, BOB)
    # Its own submitter waits for it, not knowing of the other.
    waiting = subprocess.Popen(
        [sys.executable, "-m", "invirtibuilder", "--config", str(place.config)]
        + ["submit", "staging", "greet", "main", "--wait"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert waiting.stdout
    third = waiting.stdout.readline().decode().strip()
    with gated(worker) as gate, place.daemon():
        gate.wait("greet")
        until(lambda: taken_up(place))
        assert jobs(place) == [first]
        for alias, who in ((second, BOB), (third, ME)):
            status = place.json("status", alias)
            assert (status["job"], status["state"]) == (first, "running")
            assert status["alias"]["request"]["principal"] == who
            assert f"the same   {alias} by {who} at 20" in place.cli("status", alias).text
        assert place.json("status", first)["alias"] is None
        assert "build: attempt 1" in place.cli("log", second[-9:]).text
        assert f"the same   {second} by {BOB}" in door(place, BOB, "status", second).text
        assert f"{BOB} asks for the same, as {second}" in door(place, BOB, "log", second[-9:]).text
        assert [job["job"] for job in place.json("queue")["jobs"]] == [first]
        gate.open()
        published(place, first)
        followed = place.cli("log", "--follow", second)
        assert followed.text.startswith(place.cli("log", first).text[:40])
    _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == Exit.OK
    assert f"job {first} does the same already".encode() in said
    assert len(worker.orders) == 2
    assert place.json("status", second)["state"] == "published"


def test_who_asked_later_withdraws_only_that(line: Line, repo: Repo) -> None:
    place, worker = line
    first, second = put(place, "staging", repo, ALICE), put(place, "staging", repo, BOB)
    with gated(worker) as gate, place.daemon():
        gate.wait("greet")
        until(lambda: taken_up(place))
        assert door(place, BOB, "cancel", first, check=False).code == Exit.DENIED
        assert door(place, BOB, "cancel", second).text == f"asked to cancel job {second}"
        alias = until(lambda: Jobs(place.site.jobs).aliases.get(second))
        assert alias.withdrawn
        assert f"withdrawn at {alias.withdrawn}" in door(place, BOB, "status", second).text
        assert f"{BOB} no longer asks for it" in place.cli("log", first).text
        gate.open()
        published(place, first)


def test_the_owners_cancel_ends_it_for_all(line: Line, repo: Repo) -> None:
    place, worker = line
    first, second = put(place, "staging", repo, ALICE), put(place, "staging", repo, BOB)
    with gated(worker) as gate, place.daemon():
        gate.wait("greet")
        until(lambda: taken_up(place))
        # With a cancel that is asked for, it is no longer what others want.
        Jobs(place.site.jobs).get(first).ask_cancel(ALICE)
        third = door(place, BOB, "submit", "staging", "greet", "main").text
        assert third not in (first, second)
        assert place.ended(first).status.state == State.CANCELLED
        assert place.json("status", second)["state"] == "cancelled"
        gate.open()
        # And who asked for it tries again what was another's.
        again = door(place, BOB, "retry", second).text
        published(place, third)
        assert place.ended(again).id in (again, third)


def test_who_may_not_submit_has_no_part_in_it(line: Line, repo: Repo) -> None:
    place, _ = line
    first = put(place, "staging", repo, ALICE)
    stranger = put(place, "staging", repo, "mallory@EXAMPLE.ORG")
    with place.daemon():
        published(place, first)
        assert place.ended(stranger).status.state == State.REFUSED
        assert place.ended(stranger).id == stranger


def test_it_counts_for_the_hour_and_not_as_queued(line: Line, repo: Repo) -> None:
    place, _ = line
    rules = "    allow_backtracking: true\n    max_queued: 1\n    max_hourly: 2\n"
    place.edit("    allow_backtracking: true\n", rules)
    context = place.context
    job = submissions.take_up(context, place.request("dev", repo, who=ALICE))
    assert job
    alias = place.request("dev", repo, commit="main", who=BOB)
    own = packages.upgraded(repo, "1.1")
    place.push(own)
    assert submissions.take_up(context, place.request("dev", own, who=BOB))
    again = place.request("dev", repo, who=BOB)
    assert submissions.take_up(context, again) is None
    assert submissions.take_up(context, again) is None, "taken up twice, it is one"
    codes = [reason.code for reason in quotas.excess(context, BOB, "dev", queued=False)]
    assert codes == ["too-many-submissions"]
    later = context.clock() + timedelta(hours=1, seconds=1)
    assert not list(context.jobs.aliases.since(later - timedelta(hours=1)))
    assert [a.request.id for a in context.jobs.aliases.since(later - timedelta(hours=2))] == [
        again.id
    ]
    assert alias.id not in jobs(place)


def test_a_branch_that_moves_on_changes_nothing(line: Line, repo: Repo) -> None:
    """What was submitted is what the branch had at the take-up."""
    place, _ = line
    job = submissions.take_up(place.context, place.request("staging", repo, commit="main"))
    place.push(packages.upgraded(repo, "1.1"))
    assert job
    with place.daemon():
        published(place, job.id)
    assert place.json("status", job.id)["version"] == "1.0"


KILLS: dict[str, Callable[[Place, str, str], bool]] = {
    "job": lambda place, first, _: (place.site.jobs / first).exists(),
    "alias": lambda place, _, second: bool(Jobs(place.site.jobs).aliases.get(second)),
    "built": lambda place, first, _: (place.site.jobs / first / "build.json").exists(),
}


@pytest.mark.parametrize("point", KILLS)
def test_a_kill_leaves_one_job(line: Line, repo: Repo, point: str) -> None:
    place, _ = line
    first, second = put(place, "staging", repo, ALICE), put(place, "staging", repo, BOB)
    entry = place.site.queue / "new" / f"{second}.json"
    kept = entry.read_bytes()
    with place.daemon(ready=False) as daemon:
        until(lambda: KILLS[point](place, first, second))
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
    if point == "built":
        # As if the kill had come before the entry was removed; the job ends before it is seen.
        entry.write_bytes(kept)
    with place.daemon():
        until(lambda: taken_up(place))
        published(place, first)
    assert jobs(place) == [first]
    assert place.json("status", second)["job"] == first


def test_what_is_not_taken_up_yet_says_so(line: Line, repo: Repo) -> None:
    place, worker = line
    mine, bobs = put(place, "staging", repo), put(place, "dev", repo, BOB)
    (place.site.socket.parent / "door.json").exists() or place.cli("acl", "compile", check=True)
    assert place.json("status", mine) == {"job": mine, "state": "not taken up yet"}
    assert "not taken up yet" in place.cli("status", mine).text
    assert "not taken up yet" in door(place, BOB, "status", bobs).text
    assert door(place, BOB, "status", mine, check=False).code == Exit.NO_INPUT
    done = place.cli("cancel", mine)
    assert done.text == f"asked to cancel job {mine}"
    assert b"is not taken up yet" in done.err
    assert door(place, BOB, "cancel", bobs).text == f"asked to cancel job {bobs}"
    with place.daemon():
        for job in (mine, bobs):
            assert place.ended(job).status.state == State.CANCELLED
    assert not worker.orders
