"""The daemon: watches the queue directory, takes requests up, and runs the line.

One thread runs the jobs, each in a thread of its own, one delivers events, one answers on the unix
socket, one keeps the doors' table of ACLs, and the main thread watches the queue. All state is on
disk: a daemon that is killed at any instant is replaced by the next one, which adopts builds that
are still running.
"""

from __future__ import annotations

import functools
import os
import pwd
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cached_property

from inotify_simple import INotify, flags

from invirtibuilder import (
    __version__,
    acl,
    acltable,
    acts,
    confine,
    entries,
    files,
    hosting,
    keyring,
    model,
    notifierclient,
    pauses,
    submissions,
)
from invirtibuilder.answers import Answers
from invirtibuilder.engine import ChildEngine, Engine, SocketEngine
from invirtibuilder.errors import ConfigFault, Denied, Fault, MachineFault, Malformed, NotFound
from invirtibuilder.hookcall import call
from invirtibuilder.hooks import Events
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.journal import ERROR, WARNING, Log
from invirtibuilder.notifier import hooks_of
from invirtibuilder.runner import Runner, fields
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.spool import Entry, Request, Spool, local_principal
from invirtibuilder.stages.context import Context, Wait
from invirtibuilder.stages.transaction import recover
from invirtibuilder.stages.validity import ensure_signed, keep_valid
from invirtibuilder.watchdog import Watchdog

ILL = 10.0
"""Seconds until what could not even be written down is tried again."""
LEAVE = 2.0
"""Seconds that an ACL's program may go on when the daemon ends."""
ROUND = 3600.0
"""Seconds that what waits for locks and for programs, each with a deadline, may take in all."""
SCAN = 60.0
"""Seconds after which the queue is looked at even if nothing was reported."""


def make_context(
    site: Site,
    *,
    clock: Callable[[], datetime] = model.utcnow,
    stopping: Callable[[], bool] = lambda: False,
    event_queued: Callable[[], None] = lambda: None,
) -> Context:
    """The adapters of a site, as its configuration says."""
    engines: dict[str, Engine] = {
        domain.name: SocketEngine(domain.socket)
        if domain.socket
        else ChildEngine(domain.directory, slots=domain.slots)
        for domain in site.domains.values()
    }
    told = functools.partial(notifierclient.deliver, site.notifier) if site.notifier else call
    return Context(
        site=site,
        jobs=Jobs(site.jobs, clock),
        events=Events(site.events, hooks_of(site), clock=clock, queued=event_queued, call=told),
        engines=engines,
        clock=clock,
        stopping=stopping,
    )


class Daemon:
    """One site's daemon; only one runs at a time."""

    def __init__(self, site: Site, log: Log, *, drain: bool = False) -> None:
        self.site = site
        self.log = log
        self.drain = drain
        self._stop = threading.Event()
        self._events = threading.Event()
        self._failure: BaseException | None = None
        self._context = make_context(
            site, stopping=self._stop.is_set, event_queued=self._events.set
        )
        self._spool = Spool(site.queue)
        self._watchdog = Watchdog(log=log)
        self._troubles: list[str] = []
        self._configured = acltable.Configured(site)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self._context, self.log, self._events.set, self._watchdog)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or, with `drain`, until nothing is left to do now.

        Raises MachineFault when another daemon runs on this site.
        """
        hosting.ensure_site(self.site)
        try:
            with files.locked(self.site.socket.parent / "daemon.lock", wait=False):
                if self.site.restoring.exists():
                    message = f"{self.site.directory} is not restored whole"
                    raise MachineFault(message, hint="`invirtibuilder restore` goes on")
                self._serve()
        except files.Busy as error:
            raise MachineFault(
                f"another daemon runs on {self.site.directory}", code="second-daemon"
            ) from error

    def _serve(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        self._tell_what_is_weaker()
        for pocket in self.site.pockets.values():
            hosting.ensure_pocket(self._context, pocket)
            if why := recover(self._context, pocket):
                self.log(why, about={"pocket": pocket.name}, priority=WARNING)
            if pocket.archive_keyring and (request := keyring.refresh(self._context, pocket)):
                self._spool.put(request)
        for name, why in self._context.jobs.unreadable().items():
            text = f"job {name} cannot be read: {model.printable(why)[:300]}"
            self.log(text, about={"job": name}, priority=ERROR)
        self._runner.load()
        answers = Answers(self.site.socket, self._context, self.trusted())
        threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in (
                ("jobs", self._run_jobs),
                ("events", self._deliver_events),
                ("answers", lambda: answers.serve(self._stop, self._watchdog.beat)),
            )
        ]
        threads += [
            threading.Thread(
                target=self._guarded,
                args=(functools.partial(self._keep_valid, pocket),),
                name=f"validity of {pocket.name}",
                daemon=True,
            )
            for pocket in self.site.pockets.values()
        ]
        if any(pocket.archive_keyring for pocket in self.site.pockets.values()):
            body = functools.partial(self._guarded, self._keep_keyrings)
            threads.append(threading.Thread(target=body, name="keyrings", daemon=True))
        body = functools.partial(self._guarded, self._keep_table)
        table = threading.Thread(target=body, name="table", daemon=True)
        self._write_table(ask=False)
        # The watch comes first, then the scan: nothing falls between them.
        with INotify() as watch:
            watch.add_watch(self._spool.new, flags.CREATE | flags.MOVED_TO)
            self.take_up()
            for thread in (*threads, table):
                thread.start()
            self._write_alive()
            self.log(f"ready: {self.site.directory}")
            self._watchdog.ready("waits for submissions")
            while not self._stop.is_set():
                select.select([watch.fileno(), self._wake_read], [], [], self._watchdog.nap(SCAN))
                watch.read(timeout=0)  # an overflow, too, only means: scan
                self.take_up()
                self._watchdog.ping()
        self.log("stopping")
        self._watchdog.stopping()
        for thread in threads:
            thread.join()
        table.join(LEAVE)
        self.site.socket.unlink(missing_ok=True)
        if self._failure:
            raise self._failure

    def _write_alive(self) -> None:
        """What `status --site` knows of the daemon; a full disk stops nobody."""
        since = model.iso(self._context.clock())
        with suppress(OSError):
            files.write_json(self.site.alive, {"v": 1, "since": since, "version": __version__})

    def _tell_what_is_weaker(self) -> None:
        """What is promised less of here than could be. Raises a Fault when no order can be done."""
        if os.geteuid() == 0:
            text = "running as root: everything but the sandboxes is this one user's"
            self.log(text, priority=WARNING)
        for warning in self.site.warnings:
            self.log(warning, priority=WARNING)
        if not confine.abi():
            self.log(f"reprepro: {confine.WEAKER}", priority=WARNING)
        for name, engine in self._context.engines.items():
            for weaker in engine.check():
                self.log(f"worker of {name}: {weaker}", priority=WARNING)

    def stop(self) -> None:
        """End soon; running builds go on and are adopted by the next daemon."""
        self._stop.set()
        self._runner.wake()
        self._events.set()
        with suppress(BlockingIOError):
            os.write(self._wake_write, b".")

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            with self._watchdog.watched():
                body()
        except BaseException as error:
            self._failure = error
            self.stop()

    def trusted(self) -> frozenset[int]:
        """The uids of door programs: they say on whose behalf they come."""
        try:
            return frozenset(pwd.getpwnam(name).pw_uid for name in self.site.doors)
        except KeyError as error:
            raise ConfigFault(f"site: doors: {error}") from error

    def take_up(self) -> None:
        """Turn the queue's entries into jobs or acts, in order of arrival."""
        for entry in self._spool.entries(self.trusted()):
            if entry.request is None:
                self.log(
                    f"set aside {entry.path.name}: {entry.problem}",
                    priority=WARNING,
                    about={"code": "set-aside"},
                )
                self._spool.set_aside(entry)
                continue
            try:
                self._act(entry.request)
            except Fault as fault:
                # The one who asked sees it in `status`; the entry is kept with the reason.
                asked = entry.request
                self.log(
                    f"{asked.action} {asked.id}: {fault}",
                    priority=WARNING,
                    about={"principal": asked.principal, "code": fault.code},
                )
                self._spool.set_aside(Entry(path=entry.path, request=None, problem=str(fault)))
                continue
            except OSError as error:
                # A full disk, say: the entries stay, in order, and are tried again.
                text = f"{entry.request.action} {entry.request.id} waits: {error}"
                self.log(text, priority=WARNING, about={"principal": entry.request.principal})
                break
            entry.path.unlink(missing_ok=True)
        self._runner.wake()
        self._events.set()

    def _act(self, request: Request) -> None:
        if request.action == "submit":
            if job := submissions.take_up(self._context, request):
                self._runner.tell(job)
                words = " ".join(request.args)
                self.log(f"job {job.id}: {words} by {request.principal}", fields(job))
        elif request.action in ("promote", "rollback"):
            job = self._context.jobs.create(request)
            self._runner.tell(job)
            words = " ".join((request.action, *request.args))
            self.log(f"job {job.id}: {words[:300]} by {request.principal}", fields(job))
        elif request.action == "cancel":
            self._cancel(request, self._context.jobs.get(request.args[0]))
        elif request.action == "retry":
            self._retry(request, self._context.jobs.get(request.args[0]))
        elif request.action in acts.ACTS:
            self._administers(request)
            for name in acts.pockets(request):
                if name not in self.site.pockets:
                    raise NotFound(f"no such pocket: {name}", code="no-pocket")
            job = self._context.jobs.create(request)
            self._runner.tell(job)
            words = " ".join((request.action, *request.args))
            self.log(f"job {job.id}: {words[:300]} by {request.principal}", fields(job))
        elif request.action in ("pause", "resume"):
            self._pause(request)

    def _pause(self, request: Request) -> None:
        """Pause or resume; a pocket for who has its `cancel`, all for the site's own account."""
        scope, *reason = request.args
        whole = scope == entries.WHOLE
        if not (whole or scope in self.site.pockets):
            raise NotFound(f"no such pocket: {scope}", code="no-pocket")
        if whole or not self._may_cancel(request, scope):
            self._administers(request)
        if request.action == "resume":
            pauses.resume(self.site, scope)
        else:
            now = self._context.clock()
            pauses.pause(self.site, scope, by=request.principal, reason=reason[0], now=now)
        what = " ".join((request.action, *request.args))
        about = {} if whole else {"pocket": scope}
        self.log(f"{what} by {request.principal}", {"principal": request.principal, **about})

    def _may_cancel(self, request: Request, name: str) -> bool:
        pocket = self.site.pockets.get(name)
        if pocket is None:
            return False
        named = pocket.acl["cancel"]
        return acl.allowed(request.principal, named, pocket=name, action="cancel")[0]

    def _administers(self, request: Request) -> None:
        """The site's own account, root, and whom the configuration names. Raises Denied."""
        if request.principal in {local_principal(u) for u in (0, os.geteuid())}:
            return
        named = self.site.administrators
        ok, _ = acl.allowed(request.principal, named, pocket="", action=acltable.ADMINISTER)
        if not ok:
            who = model.printable(request.principal)
            raise Denied(f"{who} does not administer this site", code="not-permitted")

    def _permitted(self, request: Request, job: Job) -> None:
        """A submitter may cancel and retry own jobs; who has the pocket's `cancel`, any."""
        if request.principal == job.request.principal or self._may_cancel(request, job.pocket):
            return
        if job.request.action in entries.OF_THE_SITE:
            self._administers(request)
            return
        raise Denied(f"{model.printable(request.principal)} may not do this to job {job.id}")

    def _cancel(self, request: Request, job: Job) -> None:
        alias = self._context.jobs.aliases.get(request.args[0])
        own = alias and request.principal == alias.request.principal != job.request.principal
        if alias and own:
            submissions.withdraw(self._context, alias, job)
            return
        self._permitted(request, job)
        if not job.status.final:
            job.ask_cancel(request.principal)
            self._runner.tell(job)

    def _retry(self, request: Request, job: Job) -> None:
        alias = self._context.jobs.aliases.get(request.args[0])
        if alias is None or request.principal != alias.request.principal:
            self._permitted(request, job)
        if not job.status.final:
            raise Malformed(f"job {job.id} is not over: nothing to retry", code="not-over")
        again = Request(
            id=request.id,
            action=job.request.action,
            args=(*job.request.args[:2], job.status.commit or job.request.args[2])
            if job.request.action == "submit"
            else job.request.args,
            principal=request.principal,
            via=request.via,
            addr=request.addr,
            time=request.time,
        )
        self._act(again)
        self._context.jobs.get(again.id).remark(f"a retry of job {job.id}")

    def _run_jobs(self) -> None:
        """Jobs, in the schedule's order, until the daemon ends."""
        self._runner.run(self._drained)
        self.stop()

    def _drained(self) -> bool:
        """Whether to end, now that everything that is due has been done."""
        if not self.drain or any(self._spool.new.iterdir()):
            return False
        self._context.events.deliver()
        return True

    def _deliver_events(self) -> None:
        while True:
            # Before the look at what it tells: nobody's word falls between the two.
            self._events.clear()
            if self._stop.is_set():
                return
            seconds = SCAN
            self._watchdog.beat(ROUND)
            try:
                due = self._context.events.deliver()
            except OSError as error:
                self.log(f"events wait: {error}", priority=WARNING)
                due, seconds = None, ILL
            if due is not None:
                seconds = max(0.2, (due - self._context.clock()).total_seconds())
            self._watchdog.beat()
            self._events.wait(self._watchdog.nap(min(seconds, SCAN)))

    def _keep_valid(self, pocket: Pocket) -> None:
        """Sign the pocket's publication again for other keys, and before it runs out, if ever."""
        checked = False
        while not self._stop.is_set():
            self._watchdog.beat(ROUND)
            try:
                if not checked:
                    ensure_signed(self._context, pocket)
                    checked = True
                due = keep_valid(self._context, pocket)
                if due is None:
                    return
            except (Fault, OSError, Wait) as error:
                text = f"pocket {pocket.name} is not signed again: {error}"
                self.log(text, about={"pocket": pocket.name}, priority=WARNING)
                due = ILL
            self._watchdog.beat()
            # Not for long at once: the clock may be set.
            self._stop.wait(self._watchdog.nap(max(0.1, min(due, SCAN))))

    def _keep_keyrings(self) -> None:
        stop, watchdog = self._stop, self._watchdog
        keyring.keep(self._context, self._spool.put, stop=stop, watchdog=watchdog, log=self.log)

    def _keep_table(self) -> None:
        """Compile the ACLs at once, every `acl_refresh`, and when an answer becomes stale."""
        due = 0.0
        while not self._stop.wait(self._watchdog.nap(max(0.0, due - time.monotonic()))):
            self._watchdog.beat()
            if due <= time.monotonic():
                self._watchdog.beat(ROUND)
                due = time.monotonic() + self._write_table()
                self._watchdog.beat()

    def _write_table(self, *, ask: bool = True) -> float:
        """Write the doors' table, and say what is new about it; the seconds until the next."""
        now = self._context.clock()
        try:
            stopping = self._stop.is_set
            # The daemon's start does not wait for programs that somebody else is asking.
            site = self._configured.now(self.log)
            made = acltable.write(site, now, ask=ask, wait=ask, stopping=stopping)
        except (OSError, Fault, files.Busy) as error:
            self.log(f"the doors' table of ACLs waits: {error}", priority=WARNING)
            return min(ILL, self.site.acl_refresh)
        if ask:
            for text in made.troubles:
                if text not in self._troubles:
                    self.log(f"acl: {text}", priority=WARNING)
            self._troubles = made.troubles
        left = (made.expires - now).total_seconds() if made.expires else self.site.acl_refresh
        return max(0.1, min(left, self.site.acl_refresh))
