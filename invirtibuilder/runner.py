"""The runner: each running job in a thread of its own, taken in the schedule's order.

A job runs until it ends or has to wait; a waiting one has no thread. Orders need a builder's place
of the pocket's trust domain: a job without one waits like for anything else, and is begun again
when it has got one. What needs no builder is never held up by that. Jobs of one package in one
pocket go one after another, so that a later commit is judged by what the earlier one has made.
All of it is made anew from the jobs on disk when the daemon starts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from invirtibuilder import acts, entries, files, model, pauses
from invirtibuilder.engine import Attempt
from invirtibuilder.errors import Fault
from invirtibuilder.jobs import Job, Jobs, Status
from invirtibuilder.journal import ERROR, INFO, WARNING, Log
from invirtibuilder.pipeline import advance
from invirtibuilder.schedule import Pending, Turn, in_order
from invirtibuilder.settings import Site
from invirtibuilder.stages.context import Context, Stopping, Wait
from invirtibuilder.stages.finish import COMMITTED
from invirtibuilder.states import State
from invirtibuilder.watchdog import Watchdog

ILL = 10.0
"""Seconds until what could not even be written down is tried again."""
LONGEST = timedelta(hours=2)
"""No job waits for longer than this without being looked at."""
AHEAD = 4
"""Jobs of one pocket that are admitted and announced at once."""
GRACE = 2.0
"""Seconds that a free builder waits, at most, for a job with a better place that is just being
admitted."""
LOOK = 0.2
REMEMBERED = 500
"""Jobs, at most, of which the next daemon finds out who was served lately."""


class NoPlace(Wait):
    """All builders of a trust domain are busy; the job goes on when it is given a place."""


@dataclass
class _Held:
    """A job that is not over, as the runner knows it."""

    job: Job
    status: Status
    since: datetime
    whole: str  # the job that it is a part of
    thread: threading.Thread | None = None
    started: float = 0.0
    ahead: bool = False  # it runs, and has not come to a builder yet
    wants: str = ""  # the domain whose builder it waits for
    has: str = ""  # the domain whose builder it has
    ill: float = 0.0  # when it may be tried again after it could not be written

    @property
    def chains(self) -> set[tuple[str, str]]:
        """Of what it has to be the first, to run: packages of a pocket, or its base."""
        action = self.job.request.action
        words, _ = entries.split(action, self.job.request.args)
        of = {"submit": words[1:2], "promote": words[2:], "rollback": words[2:]}
        names = of.get(action, [""])
        return {(self.job.pocket, name) for name in names}


def take(context: Context, job: Job) -> None:
    """Take a job of any kind as far as it goes now. Raises Stopping, OSError."""
    if job.request.action in acts.ACTS:
        acts.act(context, job)
    else:
        advance(context, job)


def fields(job: Job) -> dict[str, str]:
    """What a line of the log is about."""
    return {
        "job": job.id,
        "pocket": job.pocket,
        "package": job.package,
        "principal": job.request.principal,
    }


def _served(jobs: Jobs) -> dict[tuple[str, str], datetime]:
    """When each principal last had a builder in a pocket, by the orders of the latest jobs."""
    found: dict[tuple[str, str], datetime] = {}
    for name in jobs.names()[-REMEMBERED:]:
        with suppress(OSError, Fault, LookupError, TypeError, ValueError):
            job = Job(jobs.directory / name)
            who = (job.request.principal, job.pocket)
            for order in (job.directory / "attempts").glob("*/order.tar"):
                time = datetime.fromtimestamp(order.stat().st_mtime, UTC)
                found[who] = max(time, found.get(who, time))
    return found


class Runner:
    """Runs the jobs of a site; also hands out the builders' places."""

    def __init__(
        self,
        context: Context,
        log: Log,
        ended: Callable[[], None],
        watchdog: Watchdog | None = None,
    ) -> None:
        self._context = replace(context, places=self, tell=self.tell)
        self._log = log
        self._ended = ended
        self._watchdog = watchdog or Watchdog({})
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._held: dict[str, _Held] = {}
        self._rank: dict[str, int] = {}
        self._served: dict[tuple[str, str], datetime] = {}
        self._shown: Any = None
        self._failure: BaseException | None = None

    @property
    def site(self) -> Site:
        return self._context.site

    def load(self) -> None:
        """Take over all jobs that are not over; a running attempt keeps its builder."""
        for job in self._context.jobs.unfinished():
            held = self._add(job)
            attempts = (Attempt(path) for path in (job.directory / "attempts").glob("*"))
            pocket = self.site.pockets.get(job.pocket)
            if pocket and any(a.started and a.running for a in attempts):
                held.has = pocket.domain
        self._served = _served(self._context.jobs)

    def tell(self, job: Job) -> None:
        """Learn of a job, or that something about it is new: somebody wants it to stop, say."""
        with self._lock:
            held = self._add(job)
            held.status = job.status
        self.wake()

    def _add(self, job: Job) -> _Held:
        taken_up = (job.directory / "request.json").stat().st_mtime  # an id is its writer's word
        held = _Held(
            job=job,
            status=job.status,
            since=datetime.fromtimestamp(taken_up, UTC),
            whole=job.part_of,
        )
        return self._held.setdefault(job.id, held)

    def wake(self) -> None:
        """Look at all jobs soon."""
        self._wake.set()

    def run(self, idle: Callable[[], bool]) -> None:
        """Run jobs until the daemon stops; `idle` is told when nothing is left to do now.

        Raises whatever a job's thread has failed with.
        """
        try:
            while True:
                # Before the look at what it tells: nobody's word falls between the two.
                self._wake.clear()
                self._watchdog.beat()
                if self._context.stopping() or self._failure:
                    break
                pause, busy = self._look()
                if not busy and pause is None and idle():
                    return
                self._wake.wait(self._watchdog.nap(min(pause or LONGEST.total_seconds(), 60)))
        finally:
            with self._lock:
                threads = [held.thread for held in self._held.values() if held.thread]
            for thread in threads:
                thread.join()
        if self._failure:
            raise self._failure

    # Places.

    def enter(self, job: Job, domain: str) -> None:
        """Give the job a builder's place, or raise NoPlace: it goes on when it is its turn."""
        pause = pauses.of(pauses.load(self.site), job.pocket)
        with self._lock:
            held = self._held[job.id]
            held.ahead = False
            if held.has:
                return
            if pause:
                held.wants = domain
                raise NoPlace(pause.text, None)
            if self._free(domain) > 0 and not self._others_first(held, domain):
                self._give(held, domain)
                return
            held.wants = domain
            why = self._full(domain)
        self.wake()
        raise NoPlace(why, None)

    def leave(self, job: Job) -> None:
        """Give the place back."""
        with self._lock:
            self._held[job.id].has = ""
        self.wake()

    def _free(self, domain: str) -> int:
        busy = sum(held.has == domain for held in self._held.values())
        return self.site.domains[domain].jobs - busy

    def _full(self, domain: str) -> str:
        jobs = self.site.domains[domain].jobs
        return f"waits for a place in domain {domain}: {jobs - self._free(domain)} of {jobs} busy"

    def _give(self, held: _Held, domain: str) -> None:
        held.has, held.wants = domain, ""
        self._served[held.job.request.principal, held.job.pocket] = self._context.clock()

    def _others_first(self, held: _Held, domain: str) -> bool:
        """Whether a job with a better place in the order is about to want this domain's builder."""
        rank = self._rank.get(held.job.id, len(self._rank))
        now = time.monotonic()
        return any(
            self._rank.get(other.job.id, rank) < rank
            and (
                other.wants == domain
                or (self._coming(other) == domain and now < other.started + GRACE)
            )
            for other in self._held.values()
        )

    def _coming(self, held: _Held) -> str:
        """The domain whose builder a running job has not come to yet."""
        pocket = self.site.pockets.get(held.job.pocket)
        comes = held.ahead and held.job.request.action in ("submit", "base-refresh")
        return pocket.domain if pocket and comes else ""

    # Looking.

    def _look(self) -> tuple[float | None, bool]:
        """Start what can be started; the seconds until the next look, and whether anything runs."""
        now = self._context.clock()
        paused = pauses.load(self.site)
        with self._lock:
            turns = in_order(self._pending(), self._served, now)
            self._rank = {turn.id: n for n, turn in enumerate(turns)}
            first = self._first_of_each()
            pause: float | None = None
            lines: list[dict[str, Any]] = []
            for turn in turns:
                held = self._held[turn.id]
                why, seconds = self._hold(held, now, first, paused)
                if seconds is not None:
                    pause = seconds if pause is None else min(pause, seconds)
                if held.thread is None and not why:
                    self._start(held)
                lines.append(self._line(held, turn, why))
            busy = any(
                held.thread or (held.wants and not pauses.of(paused, held.job.pocket))
                for held in self._held.values()
            )
            places = {name: d.jobs - self._free(name) for name, d in self.site.domains.items()}
        running = sum(line["running"] for line in lines)
        self._watchdog.status(f"{running} jobs run, {len(lines) - running} wait")
        pauses_shown = {name: pause.text for name, pause in paused.items()}
        self._show({"jobs": lines, "paused": pauses_shown, "busy": places})
        return pause, busy

    def _pending(self) -> list[Pending]:
        found = []
        for held in self._held.values():
            pocket = self.site.pockets.get(held.job.pocket)
            found.append(
                Pending(
                    id=held.job.id,
                    pocket=held.job.pocket,
                    principal=held.job.request.principal,
                    since=held.since,
                    priority=pocket.priority if pocket else 0,
                )
            )
        return found

    def _first_of_each(self) -> dict[tuple[str, str], str]:
        """The one job of each package in a pocket that may run."""
        first: dict[tuple[str, str], str] = {}
        for held in sorted(self._held.values(), key=lambda h: (not h.thread, h.since, h.job.id)):
            for chain in held.chains:
                first.setdefault(chain, held.job.id)
        return first

    def _hold(
        self,
        held: _Held,
        now: datetime,
        first: dict[tuple[str, str], str],
        paused: dict[str, pauses.Pause],
    ) -> tuple[str, float | None]:
        """Why the job cannot go on now (nothing: it can, or does), and seconds until it may."""
        status = held.status
        if held.thread:
            return "", None
        if held.ill > time.monotonic():
            return "could not be written down; tried again soon", held.ill - time.monotonic()
        if held.has or status.cancel_by:
            return "", None
        pause = pauses.of(paused, held.job.pocket)
        # What stands in the superproject already is finished all the same.
        if pause and held.job.fact(COMMITTED) is None:
            return pause.text, None
        # A part of a promotion goes with the whole, which is there before it.
        before = {first[chain] for chain in held.chains} - {held.job.id, held.whole}
        if before:
            return f"after job {min(before)} of the same package", None
        if status.state == State.WAITING and status.wake:
            wake = datetime.fromisoformat(status.wake)
            # One further away than anything waits for was set before the clock went back.
            if now < wake <= now + LONGEST:
                message = status.reasons[0]["message"] if status.reasons else "no reason given"
                return f"waits until {status.wake}: {message}", (wake - now).total_seconds()
        if held.wants:
            domain = held.wants
            if self._free(domain) <= 0:
                return self._full(domain), None
            if self._others_first(held, domain):
                return f"waits for a place in domain {domain}: others come first", LOOK
            self._give(held, domain)
        elif self._ahead(held.job.pocket) >= AHEAD:
            return f"{AHEAD} jobs of {held.job.pocket} are being admitted", None
        return "", None

    def _ahead(self, pocket: str) -> int:
        return sum(held.ahead and held.job.pocket == pocket for held in self._held.values())

    def _line(self, held: _Held, turn: Turn, why: str) -> dict[str, Any]:
        running = bool(held.thread)
        told = f"{turn.reason}; {why}" if why else turn.reason
        wake = held.status.wake if why and not held.wants else ""
        return {"job": held.job.id, "running": running, "why": told, "wake": wake}

    def _show(self, shown: dict[str, Any]) -> None:
        """Write down what `queue` shows, here and at the doors, when it has changed."""
        shown["jobs"].sort(key=lambda line: (not line["running"], line["wake"]))
        if shown == self._shown:
            return
        value = {"v": 1, "written": model.iso(self._context.clock()), **shown}
        try:
            files.write_json(self.site.queue_view, value)
            self._shown = shown
        except OSError as error:
            self._log(f"{self.site.queue_view} waits: {error}", priority=WARNING)

    # Running.

    def _start(self, held: _Held) -> None:
        held.started = time.monotonic()
        held.ahead = not (held.has or (held.job.directory / "build.json").exists())
        held.thread = threading.Thread(target=self._run, args=(held,), name=f"job {held.job.id}")
        held.thread.start()

    def _run(self, held: _Held) -> None:
        job = held.job
        try:
            about = fields(job)
            self._log(f"job {job.id}: {job.status.state}", about)
            take(self._context, job)
            status = job.status
            reason = status.reasons[0]["message"][:300] if status.reasons else ""
            why = f": {model.printable(reason)}" if reason else ""
            code = status.reasons[0]["code"] if status.reasons else ""
            priority = WARNING if status.state in (State.REFUSED, State.FAILED) else INFO
            text = f"job {job.id}: {status.state}{why}"
            self._log(text, {**about, "code": code}, priority=priority)
        except Stopping:
            pass
        except OSError as error:
            # Not even the job's state could be written.
            self._log(f"job {job.id} waits: {error}", priority=WARNING, about={"job": job.id})
            held.ill = time.monotonic() + ILL
        except BaseException as error:
            self._failure = error
        finally:
            self._over(held)

    def _over(self, held: _Held) -> None:
        """The thread has done what there was to do."""
        status: Status | None = None
        try:
            status = held.job.status
        except (OSError, Fault, LookupError, TypeError, ValueError) as error:
            text = f"job {held.job.id} cannot be read: {model.printable(str(error))[:300]}"
            self._log(text, priority=ERROR, about={"job": held.job.id})
        with self._lock:
            held.has, held.ahead, held.thread = "", False, None
            if status is None or status.final:
                del self._held[held.job.id]
            else:
                held.status = status
        self._ended()
        self.wake()
