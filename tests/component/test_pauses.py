"""Pauses: of the queue and of a pocket, who may, what goes on, and what everybody is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder import pauses
from invirtibuilder.jobs import Jobs
from invirtibuilder.spool import Request, Spool
from invirtibuilder.states import State
from tests.support import packages
from tests.support.packages import Repo
from tests.support.place import ME, Place, until
from tests.support.running import ALICE, BOB, Line, door, everybody, gated, published, put

WHY = "a new mirror"


@pytest.fixture
def line() -> Iterator[Line]:
    with everybody() as made:
        place = made[0]
        # In dev, the first of them.
        text = place.config.read_text()
        place.config.write_text(text.replace(f"cancel: [{ME}]", f"cancel: [{BOB}]", 1))
        yield made


def package(place: Place, folder: Path, name: str) -> Repo:
    repo = packages.native(folder / name, name)
    place.package(repo)
    return repo


def why(place: Place, job: str) -> str:
    return {each["job"]: str(each["why"]) for each in place.json("queue")["jobs"]}.get(job, "")


def held(place: Place, job: str) -> str:
    """The reason, once the daemon has looked at the job and left it alone."""
    return str(until(lambda: "paused" in why(place, job) and why(place, job), "it is not held"))


def test_a_paused_pocket_starts_nothing_and_others_go_on(line: Line, tmp_path: Path) -> None:
    place, _ = line
    greet = package(place, tmp_path, "greet")
    with place.daemon():
        said = place.cli("pause", "dev", "--reason", WHY, check=True).text
        assert said.startswith("pocket dev is paused since 20")
        assert said.endswith(f": {WHY}")
        answer = door(place, ALICE, "submit", "dev", "greet", "main")
        assert "accepted: greet 1.0~dev" in answer.err.decode()
        assert f"it waits, as {said}" in answer.err.decode()
        assert place.cli("check", "staging", "greet", "main").text.endswith("may go to staging")
        job = answer.text
        assert said in held(place, job)
        published(place, put(place, "staging", greet))
        assert Jobs(place.site.jobs).get(job).status.state == State.QUEUED
        for heard in (place.cli("queue").text, door(place, BOB, "queue").text):
            assert heard.startswith(said)
        place.cli("resume", "dev", check=True)
        published(place, job)
    assert place.json("queue")["paused"] == []


def test_what_runs_ends_and_is_published(line: Line, tmp_path: Path) -> None:
    place, worker = line
    begun, later = (package(place, tmp_path, name) for name in ("begun", "later"))
    with gated(worker) as gate, place.daemon():
        first = put(place, "staging", begun)
        gate.wait("begun")
        place.cli("pause", check=True)
        second = put(place, "prod", later)
        assert "the queue is paused" in held(place, second)
        gate.open()
        published(place, first)
        assert gate.came == ["begun"]
        # Nor is it forgotten when nobody is there.
    with place.daemon():
        assert "the queue is paused" in held(place, second)
        place.cli("cancel", second, check=True)
        assert place.ended(second).status.state == State.CANCELLED
        place.cli("resume", check=True)


def test_a_job_that_comes_to_its_order_in_a_pause_waits(line: Line, tmp_path: Path) -> None:
    place, worker = line
    greet = package(place, tmp_path, "greet")
    place.hook(
        "touch $0.began; while [ -e $0.hold ]; do sleep 0.05; done",
        events="submitted",
        required=True,
    )
    hold = place.directory / "hook.hold"
    hold.touch()
    with gated(worker, "export") as gate, place.daemon():
        job = put(place, "staging", greet)
        until(lambda: (place.directory / "hook.began").exists())
        place.cli("pause", "staging", check=True)
        hold.unlink()
        assert "pocket staging is paused" in held(place, job)
        until(lambda: Jobs(place.site.jobs).get(job).status.state == State.WAITING)
        assert gate.came == []
        place.cli("resume", "staging", check=True)
        gate.open()
        published(place, job)


def test_a_drained_queue_may_be_paused(line: Line, tmp_path: Path) -> None:
    place, _ = line
    greet = package(place, tmp_path, "greet")
    put(place, "staging", greet)
    Spool(place.site.queue).put(_asked("pause", "*", WHY, who=ME))
    place.cli("daemon", "--drain", check=True)
    assert [str(job.status.state) for job in Jobs(place.site.jobs).all()] == ["queued"]
    assert pauses.load(place.site)["*"].reason == WHY


def _asked(action: str, *words: str, who: str) -> Request:
    return Request.new(action, words, principal=who, via="test")


def test_who_may_pause(line: Line, tmp_path: Path) -> None:
    place, _ = line
    package(place, tmp_path, "greet")
    with place.daemon():
        for words in (["pause", "dev"], ["resume", "dev"], ["pause", "*"], ["pause", "nowhere"]):
            refused = door(place, ALICE, *words, check=False)
            assert (refused.code, b"[not-permitted]" in refused.err) == (77, True), words
        assert door(place, BOB, "pause", "staging", check=False).code == 77
        assert door(place, BOB, "pause", "dev", "a\nline", check=False).code == 65
        door(place, BOB, "pause", "dev", WHY)
        assert pauses.load(place.site)["dev"].by == BOB
        # Past the doors' own look: the daemon's counts.
        spool = Spool(place.site.queue)
        for request in (
            _asked("pause", "*", "", who=BOB),
            _asked("pause", "dev", "", who=ALICE),
            _asked("resume", "dev", who=ALICE),
            _asked("pause", "nowhere", "", who=BOB),
        ):
            spool.put(request)
            assert until(lambda r=request: spool.why_set_aside(r.id))  # type: ignore[misc]
        assert list(pauses.load(place.site)) == ["dev"]
        door(place, BOB, "resume", "dev")
        assert pauses.load(place.site) == {}
    assert place.cli("pause", "nowhere").code == 66


def test_what_cannot_be_read_pauses_all(line: Line, tmp_path: Path) -> None:
    place, _ = line
    for text in ("{", "[]", '{"paused": [{"scope": "dev"}]}', json.dumps({"paused": 1})):
        place.site.pauses.write_text(text)
        found = pauses.of(pauses.load(place.site), "prod")
        assert found, text
        assert "cannot be read" in found.text
    assert pauses.resume(place.site, "*")
    assert pauses.load(place.site) == {}
