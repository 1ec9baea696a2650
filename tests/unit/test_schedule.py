"""The order in which jobs are taken, and what is said of each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from invirtibuilder.schedule import RAISE, Pending, in_order

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def job(
    name: str, who: str, pocket: str = "dev", *, ago: timedelta = SECOND, priority: int = 0
) -> Pending:
    return Pending(id=name, pocket=pocket, principal=who, since=NOW - ago, priority=priority)


def order(*jobs: Pending, served: Mapping[tuple[str, str], timedelta] | None = None) -> str:
    times = {who: NOW - ago for who, ago in (served or {}).items()}
    return " ".join(turn.id for turn in in_order(jobs, times, NOW))


def reasons(*jobs: Pending) -> dict[str, str]:
    return {turn.id: turn.reason for turn in in_order(jobs, {}, NOW)}


def test_nothing_is_an_order_too() -> None:
    assert in_order([], {}, NOW) == []


def test_first_come_first_served() -> None:
    assert order(job("b", "x", ago=2 * SECOND), job("a", "y"), job("c", "z")) == "b a c"


def test_principals_take_turns() -> None:
    """One who submits ten times delays another's one by one job."""
    flood = [job(f"a{n}", "alice", ago=(20 - n) * SECOND) for n in range(10)]
    assert order(*flood, job("b0", "bob"), job("c0", "carol")).split()[:5] == [
        *("a0", "b0", "c0", "a1", "a2")
    ]


def test_whoever_was_served_longest_ago_begins_the_round() -> None:
    jobs = [job("a", "alice", ago=3 * SECOND), job("b", "bob"), job("c", "carol", ago=2 * SECOND)]
    served = {("alice", "dev"): SECOND, ("bob", "prod"): 9 * SECOND, ("bob", "dev"): 5 * SECOND}
    assert order(*jobs, served=served) == "c b a"


def test_a_higher_priority_goes_first_whoever_asks() -> None:
    jobs = [job("a", "alice", ago=9 * SECOND), job("b", "alice", "prod", priority=2)]
    assert order(*jobs, job("c", "bob", "low", priority=-1, ago=20 * SECOND)) == "b a c"


def test_waiting_raises_the_priority() -> None:
    old = job("old", "alice", ago=3 * RAISE)
    assert order(old, job("new", "bob", "prod", priority=2)) == "old new"
    assert order(old, job("new", "bob", "prod", priority=4)) == "new old"


def test_nothing_starves() -> None:
    """Whatever priority is ahead, and however often it is served, there is an end to waiting."""
    old = job("old", "alice", ago=101 * RAISE)
    served = {("bob", "prod"): SECOND, ("alice", "prod"): SECOND}
    jobs = [job(f"n{n}", "bob", "prod", priority=100) for n in range(50)]
    assert order(old, *jobs, served=served).startswith("old ")


def test_a_flood_does_not_become_urgent_by_waiting() -> None:
    """Only the next one of each rises, and falls back when its principal was served."""
    flood = [job(f"a{n}", "alice", ago=2 * RAISE - n * SECOND) for n in range(5)]
    late = job("b", "bob", ago=RAISE)
    assert order(*flood, late, served={("alice", "dev"): SECOND}).startswith("b a0")
    assert order(*flood, late).startswith("a0 b a1")


def test_each_has_a_reason_in_words() -> None:
    found = reasons(
        job("a", "alice@R", ago=40 * timedelta(minutes=1)),
        job("b", "alice@R"),
        job("c", "alice@R"),
        job("d", "bo\nb@R", "prod", priority=3),
    )
    assert found == {
        "a": "priority 0, by waiting 2, alice@R's 1st",
        "b": "priority 0, alice@R's 2nd",
        "c": "priority 0, alice@R's 3rd",
        "d": "priority 3, bo\\nb@R's 1st",
    }


def test_a_clock_that_went_back_harms_nobody() -> None:
    future = job("f", "alice", ago=-timedelta(days=1))
    assert order(future, job("n", "bob"), served={("bob", "dev"): -timedelta(days=2)}) == "f n"
