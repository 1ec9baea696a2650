"""What a worker takes of the daemon's disk by what it was handed for its result and its log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder.engine import Attempt
from invirtibuilder.pipeline import advance
from invirtibuilder.run import run
from invirtibuilder.stages import orders
from invirtibuilder.stages.context import Stopping
from invirtibuilder.states import State
from tests.support import cannedworker, packages
from tests.support import place as places
from tests.support.cannedworker import Answer, CannedWorker, Work
from tests.support.packages import Repo
from tests.support.place import Place, until

Line = tuple[Place, CannedWorker]
RESULT = 1 << 20
LOG = 100 << 10
MOST = {"result.tar": RESULT, "log": LOG * orders.PHASES}


def most(name: str) -> int:
    """Bytes of the disk that a file of a worker's may take."""
    return (MOST[name] + orders.SLACK) * orders.BEFOREHAND


@pytest.fixture
def line() -> Iterator[Line]:
    with places.canned() as made:
        made[0].edit("    trust_domain:", "    limits: {result: 1M, log: 100K}\n    trust_domain:")
        yield made


@pytest.fixture
def repo(line: Line, tmp_path: Path) -> Repo:
    repo = packages.native(tmp_path / "greet")
    line[0].package(repo)
    return repo


def attempt(place: Place, work: Work) -> Attempt:
    job, _, name = work.order.attempt.rpartition(".")
    return Attempt(place.site.jobs / job / "attempts" / name)


def take(path: Path, size: int) -> None:
    """Blocks beyond the end of a file, which keeps its size."""
    run(["fallocate", "--keep-size", "--length", str(size), path])


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("name", MOST)
def test_room_that_is_taken_without_a_size_is_given_back(line: Line, repo: Repo, name: str) -> None:
    """While the worker runs; and the order goes to the next attempt."""
    place, worker = line
    seen: list[Path] = []

    def build(work: Work) -> Answer:
        if not seen:
            seen.append(attempt(place, work).directory / name)
            take(seen[0], most(name) + 1)
            assert until(work.stopped)
            raise cannedworker.Lost
        return cannedworker.build(work)

    worker.answers["build"] = build
    job = place.submitted("staging", repo)
    assert job.status.state == State.PUBLISHED
    assert job.need("build")["attempt"].endswith("build-2")
    assert f"writes more than it may: {name}" in (job.directory / "journal").read_text()
    assert taken(seen[0]) < RESULT


def test_it_is_given_back_as_well_when_the_worker_has_ended(line: Line, repo: Repo) -> None:
    """Nobody has looked in between; and a whole result does not count then."""
    place, worker = line
    seen: list[Path] = []

    def build(work: Work) -> Answer:
        if not seen:
            seen.append(attempt(place, work).result)
            take(seen[0], most("result.tar") + 1)
        return cannedworker.build(work)

    job = place.job("staging", repo)
    worker.answers["build"] = build
    with worker.held("build") as held:
        with pytest.raises(Stopping):
            advance(replace(place.context, stopping=held.reached.is_set), job)
        held.released.set()
        until(lambda: seen and not Attempt(seen[0].parent).running)
    advance(place.context, job)
    assert job.status.state == State.PUBLISHED
    assert job.need("build")["attempt"].endswith("build-2")
    assert taken(seen[0]) < RESULT


def test_what_a_file_system_takes_beforehand_is_no_fault(line: Line, repo: Repo) -> None:
    """XFS: twice of what is there already."""
    place, worker = line

    def build(work: Work) -> Answer:
        path = attempt(place, work).result
        take(path, most("result.tar") - RESULT)
        assert taken(path) > most("result.tar") // 2
        return cannedworker.build(work)

    worker.answers["build"] = build
    assert place.submitted("staging", repo).need("build")["attempt"].endswith("build-1")
