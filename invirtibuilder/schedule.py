"""In which order jobs are taken, and why: priorities, then principals in turn; nothing starves.

Pure: it knows neither disk nor clock. What is done with the order is the runner's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from invirtibuilder.model import printable

RAISE = timedelta(minutes=15)
"""For each time that this has passed since a principal was last served in a pocket, its next job
there counts as one priority higher."""

Served = Mapping[tuple[str, str], datetime]
"""When a principal, in a pocket, was last given a builder."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A job that is not over; `since` is when it was taken up, `priority` that of its pocket."""

    id: str
    pocket: str
    principal: str
    since: datetime
    priority: int


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A job at its place in the order, and why it is there."""

    id: str
    reason: str


def in_order(jobs: Iterable[Pending], served: Served, now: datetime) -> list[Turn]:
    """All jobs, in the order in which they are to be taken.

    Higher priorities come first. Within one, each principal has one job in a round, the one served
    longest ago first. Waiting raises only the oldest job of a principal in a pocket, counted from
    when that principal was last served there: many jobs do not make one of them more urgent.
    """
    raised: dict[str, int] = {}
    heads: set[tuple[str, str]] = set()
    oldest_first = sorted(jobs, key=lambda job: (job.since, job.id))
    for job in oldest_first:
        who = (job.principal, job.pocket)
        if who not in heads:
            heads.add(who)
            waited = now - max(job.since, served.get(who, job.since))
            raised[job.id] = max(0, waited // RAISE)
    last = _last(served)
    rounds: dict[tuple[int, str], int] = {}
    keys: dict[str, tuple[int, int, float]] = {}
    for job in oldest_first:
        level = job.priority + raised.get(job.id, 0)
        number = rounds[level, job.principal] = rounds.get((level, job.principal), 0) + 1
        keys[job.id] = (-level, number, last.get(job.principal, 0.0))
    turns = []
    have: dict[str, int] = {}
    for job in sorted(oldest_first, key=lambda job: keys[job.id]):
        have[job.principal] = have.get(job.principal, 0) + 1
        reason = _reason(job, raised.get(job.id, 0), have[job.principal])
        turns.append(Turn(id=job.id, reason=reason))
    return turns


def _last(served: Served) -> dict[str, float]:
    """When each principal was served last, in any pocket."""
    found: dict[str, float] = {}
    for (principal, _), time in served.items():
        found[principal] = max(found.get(principal, 0.0), time.timestamp())
    return found


def _reason(job: Pending, raised: int, number: int) -> str:
    level = f"priority {job.priority}"
    if raised:
        level += f", by waiting {job.priority + raised}"
    return f"{level}, {printable(job.principal)}'s {ordinal(number)}"


def ordinal(number: int) -> str:
    """The number's place in a row.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 22, 113)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd', '113th']
    """
    teen = 10 < number % 100 < 14
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
