"""How a site is: what `status --site` and `metrics` tell, beside the daemon or without one.

It only reads, as whoever asks. What that account may not see is named, and is no trouble.
"""

from __future__ import annotations

import functools
import json
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from invirtibuilder import (
    __version__,
    acltable,
    files,
    keyring,
    maintenance,
    model,
    pauses,
    tally,
)
from invirtibuilder.apt.publickeys import expiries
from invirtibuilder.engine import older_bases, room_of
from invirtibuilder.errors import Fault, Reason
from invirtibuilder.hooks import Delivery
from invirtibuilder.jobs import Jobs
from invirtibuilder.pauses import Pause
from invirtibuilder.settings import Domain, Pocket, Site
from invirtibuilder.stages.context import public_key
from invirtibuilder.states import State

NIGHTLY = timedelta(days=3)
"""After which something that a timer does each night was not done."""
BASE_AGE = timedelta(days=30)
KEY_LEFT = timedelta(days=30)
UNTAKEN = timedelta(minutes=2)
SECONDS = 5.0
"""In which somebody at a socket answers."""
START = "`systemctl start {}`, or /usr/share/invirtibuilder/without-systemd start"
T = TypeVar("T")


@dataclass(kw_only=True)
class Worker:
    """The worker of a trust domain; `busy` and `answers` are None when that is not known."""

    domain: str
    jobs: int
    busy: int | None = None
    answers: bool | None = None
    slots: int | None = None  # blocks of ids for orders at once, as it says
    child: bool = False


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A file system of the site, by the first place there that matters."""

    path: str
    free: int
    size: int
    reserve: int


@dataclass(kw_only=True)
class PocketHealth:
    """A pocket: times are ISO 8601, in UTC."""

    name: str
    base: str = ""  # since when it is built in, as far as jobs tell
    fsck: dict[str, Any] = field(default_factory=dict)
    gc: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # fingerprint: its end, or nothing
    acl: list[str] = field(default_factory=list)  # troubles


@dataclass(kw_only=True)
class HookHealth:
    """A hook with events that it has not accepted yet."""

    name: str
    waiting: int = 0
    failing: int = 0
    why: str = ""


@dataclass(kw_only=True)
class Health:
    """All of it; `unseen` is what could not be looked at."""

    site: str
    time: str
    up: bool = False
    since: str = ""
    version: str = ""
    states: dict[str, int] = field(default_factory=dict)
    untaken: int = 0
    oldest: dict[str, str] = field(default_factory=dict)  # job, since, why
    paused: list[Pause] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    services: dict[str, bool | None] = field(default_factory=dict)
    disks: list[Disk] = field(default_factory=list)
    pockets: list[PocketHealth] = field(default_factory=list)
    hooks: list[HookHealth] = field(default_factory=list)
    acl_written: str = ""
    counts: list[tally.Count] = field(default_factory=list)
    troubles: list[Reason] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        troubles = [trouble.as_json() for trouble in self.troubles]
        value = {k: v for k, v in vars(self).items() if k != "troubles"}
        plain = json.loads(json.dumps(value, default=asdict))
        return {"healthy": not troubles, **plain, "troubles": troubles}


def look(site: Site, events: Callable[[], Iterable[Delivery]], now: datetime) -> Health:
    """Look at a site now; `events` are those that hooks have not accepted yet."""
    health = Health(site=site.name, time=model.iso(now))
    looker = _Looker(site, health, now)
    looker.daemon()
    looker.queue()
    looker.workers()
    looker.disks()
    for pocket in site.pockets.values():
        looker.pocket(pocket)
    looker.hooks(events)
    looker.table()
    return health


class _Looker:
    """Fills in a Health, part by part; what goes wrong in one does not stop the others."""

    def __init__(self, site: Site, health: Health, now: datetime) -> None:
        self.site = site
        self.health = health
        self.now = now
        self.notes = maintenance.notes(site)
        self.bases: dict[str, list[str]] = {}
        self.busy: dict[str, int] = {}
        self.coming: set[tuple[str, str]] = set()
        self.reserve = max(p.limits.reserve or 0 for p in site.pockets.values())

    def trouble(self, code: str, message: str, hint: str) -> None:
        self.health.troubles.append(Reason(code=code, message=message, hint=hint))

    def seen(self, what: str, see: Callable[[], T]) -> T | None:
        """What there is; None where there is nothing, or, which is noted, it cannot be seen."""
        try:
            return see()
        except PermissionError:
            self.health.unseen.append(what)
        except FileNotFoundError:
            pass
        except (OSError, Fault, LookupError, TypeError, ValueError, AttributeError) as error:
            self.health.unseen.append(f"{what} ({model.printable(str(error))[:200]})")
        return None

    def old(self, time: str, most: timedelta) -> bool:
        return self.now - datetime.fromisoformat(time) > most

    def answers(self, what: str, path: Path) -> bool | None:
        """Whether somebody listens there; None for who may not know."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(SECONDS)
                connection.connect(str(path))
        except PermissionError:
            self.health.unseen.append(f"{what} at {path}")
            return None
        except OSError:
            return False
        return True

    def daemon(self) -> None:
        health = self.health
        health.up = bool(self.answers("the daemon", self.site.socket))
        alive = self.seen("run/daemon.json", lambda: files.read_json(self.site.alive)) or {}
        health.since, health.version = str(alive.get("since", "")), str(alive.get("version", ""))
        if not health.up:
            hint = START.format("invirtibuilder") + "; its log says why it ended"
            self.trouble("daemon-down", "the daemon does not answer", hint)
        elif health.version != __version__:
            message = f"the daemon that runs is version {health.version}, not {__version__}"
            self.trouble("daemon-old", message, "`systemctl restart invirtibuilder`; builds go on")

    def queue(self) -> None:
        health = self.health
        jobs = Jobs(self.site.jobs)
        counted = (
            self.seen("jobs", lambda: tally.take(jobs, tally.file(self.site))) or tally.Tally()
        )
        health.counts = list(counted.counts.values())
        self.bases = counted.bases
        health.paused = list(pauses.load(self.site).values())
        shown = self.seen("run/queue.json", lambda: files.read_json(self.site.queue_view)) or {}
        whys = {line["job"]: str(line["why"]) for line in shown.get("jobs", ())}
        health.states = dict.fromkeys(("queued", "running", "waiting"), 0)
        for name in counted.open:
            self.seen(f"job {name}", functools.partial(self._open_job, jobs, name, whys))
        new = self.site.queue / "new"
        untaken = self.seen("queue/new", lambda: [p.stat().st_mtime for p in new.iterdir()]) or []
        health.untaken = len(untaken)
        waited = self.now.timestamp() - min(untaken, default=self.now.timestamp())
        if health.up and waited > UNTAKEN.total_seconds():
            message = f"{len(untaken)} requests are not taken up"
            self.trouble("not-taken-up", message, "the daemon's log says what it waits for")
        self.busy = {str(k): int(v) for k, v in dict(shown.get("busy", {})).items()}

    def _open_job(self, jobs: Jobs, name: str, whys: dict[str, str]) -> None:
        job = jobs.get(name)
        status = job.status
        if status.final:
            return
        self.health.states[status.state] += 1
        self.coming.add((job.pocket, job.package))
        oldest = self.health.oldest
        if status.state != State.RUNNING and (not oldest or job.request.time < oldest["since"]):
            reason = status.reasons[0]["message"] if status.reasons else ""
            why = whys.get(name) or reason
            self.health.oldest = {"job": name, "since": job.request.time, "why": why}

    def workers(self) -> None:
        for domain in self.site.domains.values():
            worker = Worker(domain=domain.name, jobs=domain.jobs, child=domain.socket is None)
            worker.busy = self.busy.get(domain.name) if self.health.up else None
            what = f"the worker of {domain.name}"
            if worker.child:
                bases = self.seen(what, functools.partial(older_bases, domain.directory)) or 0
                self.bases_of(what, domain, bases)
            if domain.socket:
                worker.answers = self.worker(what, domain, domain.socket, worker)
                if worker.answers is False:
                    unit = f"invirtibuilder-worker@{domain.name}.socket"
                    message = f"{what} does not answer at {domain.socket}"
                    self.trouble("worker-down", message, START.format(unit))
            self.health.workers.append(worker)
        for name, path in (("signer", self.site.signer), ("notifier", self.site.notifier)):
            if path:
                answers = self.health.services[name] = self.answers(f"the {name}", path)
                if answers is False:
                    hint = START.format(f"invirtibuilder-{name}.socket")
                    self.trouble(f"{name}-down", f"the {name} does not answer at {path}", hint)

    def worker(self, what: str, domain: Domain, path: Path, worker: Worker) -> bool | None:
        """Whether a worker answers, and what it has; None for who may not know."""
        try:
            room = room_of(path, seconds=SECONDS)
        except PermissionError:
            self.health.unseen.append(f"{what} at {path}")
            return None
        except OSError:
            return False
        if room:
            worker.slots = room.slots
            disk = f"{room.directory} of {what}"
            self.health.disks.append(
                Disk(path=disk, free=room.free, size=room.size, reserve=self.reserve)
            )
            if room.slots < worker.jobs:
                message = f"{what} has blocks of ids for {room.slots} orders, not {worker.jobs}"
                hint = "/usr/share/invirtibuilder/subordinate-ids ACCOUNT NUMBER, and restart it"
                self.trouble("few-slots", message, hint)
            self.bases_of(what, domain, room.bases)
        return True

    def bases_of(self, what: str, domain: Domain, size: int) -> None:
        """What is needed stays, so that somebody has to say when it is much."""
        if size > domain.bases_size:
            most = _gib(domain.bases_size)
            message = f"{what} has {_gib(size)} of older bases in a slot; bases_size is {most}"
            hint = "a larger `bases_size`, or a shorter `retention`: then gc, and the next base"
            self.trouble("bases-large", message, hint)

    def disks(self) -> None:
        site, reserve = self.site, self.reserve
        places = [site.directory, site.jobs, site.archive, site.packages, site.queue]
        places += [d.directory for d in site.domains.values() if d.socket is None]
        devices: dict[int, Disk] = {}
        for place in places:
            if found := self.seen(str(place), functools.partial(_disk, place, reserve)):
                devices.setdefault(*found)
        self.health.disks[:0] = devices.values()
        for disk in self.health.disks:
            if disk.free < reserve:
                message = f"{disk.path} has {_gib(disk.free)} free; {_gib(reserve)} are to stay"
                hint = "`invirtibuilder gc`, a shorter `retention`, or a larger disk: jobs wait"
                self.trouble("disk-low", message, hint)

    def pocket(self, pocket: Pocket) -> None:
        name = pocket.name
        told = PocketHealth(name=name, base=self.bases.get(name, ["", ""])[1])
        told.fsck, told.gc = (self.notes[what].get(name, {}) for what in ("fsck", "gc"))
        self.health.pockets.append(told)
        key = public_key(self.site, pocket)
        found = self.seen(f"the keys of {name}", lambda: expiries(key.read_bytes())) or {}
        told.keys = {k: model.iso(end) if end else "" for k, end in found.items()}
        made = self.seen(f"the keys of {name}", lambda: key.stat().st_mtime)
        for what, last in (("fsck", told.fsck), ("gc", told.gc)):
            age = self.now.timestamp() - (made or self.now.timestamp())
            never = not last and age > NIGHTLY.total_seconds()
            if never or (last and self.old(last["time"], NIGHTLY)):
                since = f"since {last['time']}" if last else "at all"
                hint = f"`systemctl enable --now invirtibuilder-{what}.timer`"
                self.trouble(f"{what}-old", f"{name}: {what} did not run {since}", hint)
        if told.fsck.get("drift"):
            message = f"{name}: fsck has found {told.fsck['drift']} differences"
            self.trouble("drift", message, f"`invirtibuilder fsck {name}` names them")
        if told.base and self.old(told.base, BASE_AGE):
            message = f"{name}: its base is in use since {told.base}"
            self.trouble("base-old", message, f"`invirtibuilder base refresh {name}`")
        if pocket.archive_keyring and (name, pocket.keyring) not in self.coming:
            missing = functools.partial(keyring.missing, self.site, pocket)
            if self.seen(f"the keyring of {name}", missing):
                message = f"{name}: {pocket.keyring} is not there with the keys of now"
                hint = "`invirtibuilder status` says why its last job failed; it is tried again"
                self.trouble("keyring-missing", message, hint)
        for finger, end in told.keys.items():
            if end and self.old(end, -KEY_LEFT):
                verb = "has expired" if self.old(end, timedelta()) else "expires"
                message = f"{name}: the key {finger} {verb} at {end}"
                self.trouble("key-expires", message, "give it more time, or change it: see key(1)")

    def hooks(self, events: Callable[[], Iterable[Delivery]]) -> None:
        found: dict[str, HookHealth] = {}
        for delivery in self.seen("events", lambda: list(events())) or []:
            hook = found.setdefault(delivery.hook, HookHealth(name=delivery.hook))
            hook.waiting += 1
            if delivery.attempts:
                hook.failing += 1
                hook.why = delivery.why
        self.health.hooks = list(found.values())
        for hook in self.health.hooks:
            if hook.failing:
                message = f"the hook {hook.name} fails with {hook.failing} events: {hook.why}"
                hint = "it is tried again; `invirtibuilder status JOB` tells of each"
                self.trouble("hook-failing", message, hint)

    def table(self) -> None:
        path, limit = acltable.table_file(self.site), acltable.MAX_TABLE
        table = self.seen("run/door.json", lambda: files.read_json(path, limit=limit)) or {}
        self.health.acl_written = str(table.get("written", ""))
        most = timedelta(seconds=2 * self.site.acl_refresh + 60)
        if self.health.up and self.health.acl_written and self.old(self.health.acl_written, most):
            message = f"the doors' table of ACLs is of {self.health.acl_written}"
            self.trouble("acl-old", message, "`invirtibuilder acl compile`; the daemon's log")
        hint = "`invirtibuilder acl show` tells more"
        for text in table.get("troubles", ()):
            self.trouble(
                "acl", f"administrators: {text}", "`invirtibuilder acl compile` says so, too"
            )
        for told in self.health.pockets:
            known = dict(table.get("pockets", {})).get(told.name, {})
            told.acl = [str(text) for text in known.get("troubles", ())]
            for text in told.acl:
                self.trouble("acl", f"{told.name}: {text}", hint)


def _disk(path: Path, reserve: int) -> tuple[int, Disk]:
    usage = shutil.disk_usage(path)
    disk = Disk(path=str(path), free=usage.free, size=usage.total, reserve=reserve)
    return path.stat().st_dev, disk


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def lines(health: Health) -> Iterator[str]:
    """One screen for a person."""
    count = len(health.troubles)
    number = f"{count} trouble{'s' if count > 1 else ''}" if count else "healthy"
    yield f"site     {health.site}: {number}"
    since = f" since {health.since}, version {health.version}" if health.since else ""
    yield f"daemon   {'up' + since if health.up else 'down'}"
    states = ", ".join(f"{number} {state}" for state, number in health.states.items())
    yield f"queue    {states}, {health.untaken} not taken up"
    if oldest := health.oldest:
        yield f"         oldest {oldest['job']}: {model.printable(oldest['why']) or 'no reason'}"
    yield from (f"paused   {pause.text}" for pause in health.paused)
    for worker in health.workers:
        busy = "?" if worker.busy is None else worker.busy
        how = "a child of the daemon" if worker.child else _answer(worker.answers)
        yield f"worker   {worker.domain}: {busy} of {worker.jobs} at work, {how}"
    yield from (f"service  {name}: {_answer(it)}" for name, it in health.services.items())
    for disk in health.disks:
        free = f"{_gib(disk.free)} of {_gib(disk.size)} free"
        yield f"disk     {disk.path}: {free}, {_gib(disk.reserve)} in reserve"
    for pocket in health.pockets:
        fsck = f"fsck {pocket.fsck['time']}" if pocket.fsck else "fsck never"
        clean = ("drift" if pocket.fsck["drift"] else "clean") if pocket.fsck else ""
        gc = f"gc {pocket.gc['time']}" if pocket.gc else "gc never"
        base = f"base since {pocket.base}" if pocket.base else "base not used yet"
        ends = min(filter(None, pocket.keys.values()), default="never")
        key = f"key expires {ends}" if pocket.keys else "no key yet"
        done = f"{fsck} {clean}".strip()
        yield f"pocket   {pocket.name}: {done}; {gc}; {base}; {key}"
    for hook in health.hooks:
        why = f", {hook.failing} after failures: {hook.why}" if hook.failing else ""
        yield f"hook     {hook.name}: {hook.waiting} events wait{why}"
    yield f"acl      table of {health.acl_written or 'no time'}"
    yield from (f"not seen {what}" for what in dict.fromkeys(health.unseen))
    for trouble in health.troubles:
        yield f"trouble: {model.printable(trouble.message)} [{trouble.code}]"
        yield f"  hint: {trouble.hint}"


def _answer(answers: bool | None) -> str:
    return "not seen from here" if answers is None else "answers" if answers else "does not answer"
