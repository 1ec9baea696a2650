"""Jobs at once: who waits for whom, in which order, and what is said of it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.jobs import Jobs
from invirtibuilder.states import State
from tests.support import packages
from tests.support.packages import Repo
from tests.support.place import ME, Place, until
from tests.support.running import (
    ALICE,
    BOB,
    Line,
    door,
    everybody,
    gated,
    published,
    put,
)


@pytest.fixture
def line() -> Iterator[Line]:
    with everybody() as made:
        yield made


def configure(place: Place, *, jobs: int, **priorities: int) -> None:
    """So many orders at once in each domain; priorities by pocket."""
    place.edit("run/worker.sock}", f"run/worker.sock, jobs: {jobs}}}")
    place.config.write_text(
        place.config.read_text().replace(
            "untrusted: {}", f"untrusted: {{socket: run/worker.sock, jobs: {jobs}}}"
        )
    )
    for pocket, priority in priorities.items():
        place.edit(f"  {pocket}:\n", f"  {pocket}:\n    priority: {priority}\n")


def made(place: Place, folder: Path, *names: str) -> list[Repo]:
    found = [packages.native(folder / name, name) for name in names]
    for repo in found:
        place.package(repo)
    return found


def queue(place: Place) -> list[dict[str, Any]]:
    return list(place.json("queue")["jobs"])


def test_a_slow_domain_delays_no_other(line: Line, tmp_path: Path) -> None:
    place, worker = line
    configure(place, jobs=1)
    slow, quick = made(place, tmp_path, "slow", "quick")
    with gated(worker) as gate, place.daemon():
        first = put(place, "dev", slow)
        gate.wait("slow")
        gate.open("quick")
        published(place, put(place, "staging", quick))
        assert place.context.jobs.get(first).status.state == State.RUNNING
        gate.open()
        published(place, first)


def test_a_domain_does_as_many_orders_at_once_as_it_says(line: Line, tmp_path: Path) -> None:
    place, worker = line
    configure(place, jobs=2)
    repos = made(place, tmp_path, "one", "two", "three")
    with gated(worker) as gate, place.daemon():
        jobs = [put(place, "dev", repo) for repo in repos[:2]]
        gate.wait("one", "two")
        jobs.append(put(place, "dev", repos[2]))
        # The state comes first; why is told when the runner has looked at all jobs again.
        waiting = until(lambda: [j for j in queue(place) if "busy" in j["why"]])
        assert [job["job"] for job in waiting] == jobs[2:]
        assert waiting[0]["state"] == "waiting"
        assert waiting[0]["why"] == (
            f"priority 0, {ME}'s 3rd; waits for a place in domain untrusted: 2 of 2 busy"
        )
        assert waiting[0]["stage"] == "export"
        status = place.cli("status", jobs[2]).text
        assert "waits for a place in domain untrusted: 2 of 2 busy [waiting]" in status
        assert "three" not in gate.came
        gate.open("one")
        gate.wait("three")
        gate.open()
        published(place, *jobs)
    assert len(worker.orders) == 6


def test_principals_take_turns_and_priorities_go_first(line: Line, tmp_path: Path) -> None:
    place, worker = line
    configure(place, jobs=1, prod=5)
    names = ("first", "a1", "a2", "b1", "urgent")
    repos = dict(zip(names, made(place, tmp_path, *names), strict=True))
    with gated(worker) as gate, place.daemon():
        jobs = [put(place, "staging", repos["first"], ALICE)]
        gate.wait("first")
        jobs += [put(place, "staging", repos[name], ALICE) for name in ("a1", "a2")]
        jobs.append(put(place, "staging", repos["b1"], BOB))
        jobs.append(put(place, "prod", repos["urgent"], ALICE))
        wanted = [jobs[n] for n in (0, 4, 3, 1, 2)]
        until(lambda: [j["job"] for j in queue(place) if "busy" in j["why"]] == wanted[1:])
        found = queue(place)
        assert [job["job"] for job in found] == wanted
        assert [job["why"].split(";")[0] for job in found[1:]] == [
            f"priority 5, {ALICE}'s 1st",
            f"priority 0, {BOB}'s 1st",
            f"priority 0, {ALICE}'s 3rd",
            f"priority 0, {ALICE}'s 4th",
        ]
        text = place.cli("queue").text
        assert [text.index(f"\n{job}: priority") for job in wanted] == sorted(
            text.index(f"\n{job}: priority") for job in wanted
        )
        gate.open()
        published(place, *jobs)
        assert gate.came == ["first", "urgent", "b1", "a1", "a2"]


def test_what_needs_no_builder_waits_for_none(line: Line, tmp_path: Path) -> None:
    place, worker = line
    configure(place, jobs=1)
    busy, other = made(place, tmp_path, "busy", "other")
    with gated(worker) as gate, place.daemon():
        first = put(place, "staging", busy)
        gate.wait("busy")
        stranger = put(place, "staging", other, "mallory@EXAMPLE.ORG")
        assert place.ended(stranger).status.state == State.REFUSED
        # Nor does a cancel.
        second = put(place, "staging", other)
        until(lambda: any("busy" in job["why"] for job in queue(place)))
        assert place.cli("cancel", second).code == 0
        assert place.ended(second).status.state == State.CANCELLED
        gate.open()
        published(place, first)
    assert {order.job for order in worker.orders} == {first}


def test_who_waits_for_a_hook_holds_no_place(line: Line, tmp_path: Path) -> None:
    place, worker = line
    configure(place, jobs=1)
    script = f'test "$INVIRTIBUILDER_PACKAGE" != held || test -e {tmp_path}/open'
    place.hook(script, required=True)
    held, other = made(place, tmp_path, "held", "other")
    with place.daemon():
        first = put(place, "staging", held)
        waiting = until(lambda: [j for j in queue(place) if j["why"].count("waits until")])
        assert "the required hook has not accepted" in waiting[0]["why"]
        second = put(place, "staging", other)
        published(place, second)
        (tmp_path / "open").touch()
        published(place, first)
    assert [order.job for order in worker.orders] == [second, second, first, first]


def test_jobs_of_one_package_go_one_after_another(line: Line, tmp_path: Path) -> None:
    """The second commit descends from the first: judged before, it would be overtaken."""
    place, worker = line
    configure(place, jobs=2)
    (first,) = made(place, tmp_path, "greet")
    second = packages.upgraded(first, "1.1")
    place.push(second)
    with gated(worker) as gate, place.daemon():
        jobs = [put(place, "staging", first)]
        gate.wait("greet")
        jobs.append(put(place, "staging", second))
        after = until(lambda: [j for j in queue(place) if "of the same package" in j["why"]])
        assert after[0]["why"].endswith(f"; after job {jobs[0]} of the same package")
        assert after[0]["state"] == "queued"
        gate.open()
        published(place, *jobs)
    assert [order.job for order in worker.orders] == [j for j in jobs for _ in range(2)]


def test_one_version_in_two_pockets_at_once(line: Line, tmp_path: Path) -> None:
    """Both tag it, and neither waits for ever for the other's tag."""
    place, worker = line
    configure(place, jobs=4)
    repos = made(place, tmp_path, "one", "two")
    with gated(worker) as gate, place.daemon():
        jobs = [put(place, pocket, repo) for repo in repos for pocket in ("staging", "prod")]
        until(lambda: sorted(gate.came) == ["one", "one", "two", "two"])
        gate.open()
        published(place, *jobs)
    for pocket, own in (("staging", jobs[::2]), ("prod", jobs[1::2])):
        archive = place.context.archive(place.site.pockets[pocket])
        facts = [Jobs(place.site.jobs).get(job).need("publish") for job in own]
        numbers = sorted({fact["publication"] for fact in facts})
        # Those that are ready together share one.
        assert numbers in ([2], [2, 3])
        assert archive.publications.current() == numbers[-1]
        assert not (archive.reprepro.private / "intent.json").exists()


def test_running_builds_are_let_in_after_a_kill(line: Line, tmp_path: Path) -> None:
    place, worker = line
    configure(place, jobs=2)
    repos = made(place, tmp_path, "one", "two", "three")
    with gated(worker) as gate:
        with place.daemon() as daemon:
            jobs = [put(place, "staging", repo) for repo in repos]
            until(lambda: len(gate.came) == 2)
            until(lambda: any("busy" in job["why"] for job in queue(place)))
            os.kill(daemon.pid, signal.SIGKILL)
            daemon.wait()
        before = place.cli("queue").text
        assert re.match(r"the daemon does not answer; as of 20\S+Z:\nJOB ", before)
        place.edit(
            "trusted: {socket: run/worker.sock, jobs: 2}", "trusted: {socket: run/worker.sock}"
        )
        with place.daemon():
            waiting = until(lambda: [j for j in queue(place) if "2 of 1 busy" in j["why"]])
            assert len(waiting) == 1
            assert place.json("queue")["as_of"] is None
            gate.open(gate.came[0])
            # One of the two is still running: no place is free yet.
            until(lambda: [j for j in queue(place) if "1 of 1 busy" in j["why"]])
            gate.open()
            published(place, *jobs)
    assert len(worker.orders) == 6


def test_a_door_shows_the_order_of_what_its_caller_may_see(line: Line, tmp_path: Path) -> None:
    place, worker = line
    configure(place, jobs=1)
    place.edit(
        f"submit: [{ME}, {ALICE}, {BOB}]\n      cancel: [{ME}]\n  prod",
        f"submit: [{ME}, {ALICE}]\n      cancel: [{ME}]\n  prod",
    )
    busy, two, three = made(place, tmp_path, "busy", "two", "three")
    with gated(worker) as gate, place.daemon():
        jobs = [put(place, "staging", busy), put(place, "staging", two, ALICE)]
        gate.wait("busy")
        jobs.append(put(place, "prod", three, BOB))
        until(lambda: sum("busy" in job["why"] for job in queue(place)) == 2)
        seen = door(place, BOB, "queue").text
        assert (
            f"\n{jobs[2]}: priority 0, {BOB}'s 1st; waits for a place in domain trusted: 1 of"
            in seen
        )
        assert not any(job in seen for job in jobs[:2])
        seen = door(place, ALICE, "queue").text
        assert [seen.index(f"\n{job}: ") for job in jobs] == sorted(
            seen.index(f"\n{job}: ") for job in jobs
        )
        gate.open()
        published(place, *jobs)
    assert door(place, ALICE, "queue").text == "no job is queued or running"
