"""Events of jobs, delivered to hooks at least once each; hooks.d/README.rst is the contract.

A directory has `JOB/NN-EVENT.json` (what hooks get on standard input, written once, numbered in
order), beside it `NN-EVENT.HOOK.json` (how far its delivery is), and `pending/JOB` as long as
anything of that job is to be delivered, so that finished jobs cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import files, model
from invirtibuilder.errors import Fault, Malformed, Unavailable
from invirtibuilder.hookcall import EVENTS, MAX_EVENT, Hook, call, ended, shown

BACK_OFF = (5, 30, 120, 600, 3600)
"""Seconds to wait after the first, second ... failure; the last one goes on."""

GIVE_UP = timedelta(hours=24)
"""How long a hook that is not required is tried."""

NOBODY = timedelta(seconds=5)
"""When is tried again what no program could be started for."""

MAX_TAIL = 64 << 10
"""Characters kept from the end of a payload's `log_tail`."""

_EVENT_FILE = re.compile(r"[0-9]{2}-([a-z]+)\.json")


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How far the delivery of one event to one hook is; `next` is when it is tried again."""

    job: str
    event: str
    hook: str
    required: bool
    accepted: datetime | None = None
    attempts: int = 0
    first: datetime | None = None
    last: datetime | None = None
    next: datetime | None = None
    why: str = ""
    gave_up: bool = False

    @property
    def settled(self) -> bool:
        """Nothing will be tried any more."""
        return self.accepted is not None or self.gave_up

    def as_json(self) -> dict[str, Any]:
        """For `status --json`."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {k: model.iso(v) if isinstance(v, datetime) else v for k, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class _Event:
    """An event on disk."""

    job: str
    name: str
    path: Path

    def state(self, hook: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{hook}.json")


class Events:
    """Queues events durably and delivers them; safe when killed at any instant.

    Any number of threads and processes may use one directory at once. Raises OSError when the
    directory cannot be written; then no hook is run, since its answer could not be kept. `call`
    runs a hook, here or elsewhere; while it raises Unavailable, events wait for as long as it
    takes.
    """

    def __init__(
        self,
        directory: Path,
        hooks: Sequence[Hook],
        *,
        clock: Callable[[], datetime] = model.utcnow,
        queued: Callable[[], None] = lambda: None,
        call: Callable[[Hook, bytes], tuple[int, str]] = call,
    ) -> None:
        if len({hook.name for hook in hooks}) != len(hooks):
            raise Malformed("two hooks have the same name")
        self._directory = directory
        self._pending = directory / "pending"
        self._hooks = tuple(sorted(hooks, key=lambda hook: not hook.required))
        self._clock = clock
        self._queued = queued
        self._call = call

    def queue(self, job: str, event: str, payload: Mapping[str, Any]) -> None:
        """Make the event durable, once: a second call with the same job and event does nothing.

        The payload gets the fields `v`, `id`, `event`, `job`; its `log_tail` is cut to the last
        MAX_TAIL characters. Raises Malformed for an unknown event or a malformed job id.
        """
        model.job_id(job)
        if event not in EVENTS:
            raise Malformed(f"no such event: {model.printable(event)}")
        content = {**payload, "v": 1, "id": f"{job}:{event}", "event": event, "job": job}
        if isinstance(content.get("log_tail"), str):
            content["log_tail"] = content["log_tail"][-MAX_TAIL:]
        folder = self._folder(job)
        self._pending.mkdir(parents=True, exist_ok=True)
        with files.locked(self._directory / ".lock"):
            known = self._events(job)
            if any(old.name == event for old in known):
                files.sync_directory(folder)
                return
            # The mark comes first: without an event it is harmless, an event without it is lost.
            (self._pending / job).touch()
            files.sync_directory(self._pending)
            folder.mkdir(exist_ok=True)
            files.sync_directory(self._directory)
            files.write_json(folder / f"{len(known):02}-{event}.json", content)
        self._queued()

    def deliver(self, now: datetime | None = None) -> datetime | None:
        """Run every due hook once for each due event, in order; returns when the next is due.

        A hook gets a later event of a job only after its earlier ones. A hook that ran into its
        deadline is not started again in the same call, so that it delays the others once only.
        None means that nothing is left to do until an event is queued.
        """
        due: list[datetime] = []
        stuck: set[str] = set()
        for job in self._jobs():
            for hook in self._hooks:
                if hook.name in stuck:
                    due.append(self._now(now))
                elif when := self._deliver(job, hook, now, stuck, wait=False):
                    due.append(when)
            self._settle(job)
        return min(due, default=None)

    def deliver_job(self, job: str, now: datetime | None = None) -> list[Delivery]:
        """Run one job's required hooks as far as they are due; returns `waiting_for(job)`.

        Waits for an attempt that another process is making.
        """
        for hook in self._hooks:
            if hook.required:
                self._deliver(job, hook, now, set(), wait=True)
        return self.waiting_for(job)

    def waiting_for(self, job: str, event: str = "submitted") -> list[Delivery]:
        """Required hooks that have not accepted this event, also when it is not queued yet."""
        known = {each.hook: each for each in self.deliveries(job) if each.event == event}
        required = [
            known.get(hook.name, Delivery(job=job, event=event, hook=hook.name, required=True))
            for hook in self._hooks
            if hook.required and event in hook.events
        ]
        return [delivery for delivery in required if not delivery.accepted]

    def deliveries(self, job: str) -> list[Delivery]:
        """Each queued event of the job with each configured hook that is to be told of it."""
        return [
            self._read(event, hook)
            for event in self._events(job)
            for hook in self._hooks
            if event.name in hook.events
        ]

    def undelivered(self) -> Iterator[Delivery]:
        """Every delivery that is still to be made, the oldest job's first."""
        for job in self._jobs():
            yield from (each for each in self.deliveries(job) if not each.settled)

    def _now(self, now: datetime | None) -> datetime:
        return now or self._clock()

    def _folder(self, job: str) -> Path:
        return files.contained(self._directory, model.job_id(job))

    def _jobs(self) -> list[str]:
        """Jobs with something to deliver, oldest first."""
        try:
            return sorted(
                path.name for path in self._pending.iterdir() if model.JOB.fullmatch(path.name)
            )
        except FileNotFoundError:
            return []

    def _events(self, job: str) -> list[_Event]:
        """The job's queued events in order."""
        try:
            paths = sorted(self._folder(job).iterdir())
        except FileNotFoundError:
            return []
        return [
            _Event(job=job, name=match[1], path=path)
            for path in paths
            if (match := _EVENT_FILE.fullmatch(path.name))
        ]

    def _settle(self, job: str) -> None:
        """Forget a job with nothing left to deliver; `queue` takes it up again."""
        with files.locked(self._directory / ".lock"):
            if all(delivery.settled for delivery in self.deliveries(job)):
                (self._pending / job).unlink(missing_ok=True)

    def _read(self, event: _Event, hook: Hook) -> Delivery:
        new = Delivery(job=event.job, event=event.name, hook=hook.name, required=hook.required)
        try:
            return _delivery(new, files.read_json(event.state(hook.name)))
        except FileNotFoundError:
            return new
        except (Malformed, LookupError, TypeError, ValueError, AttributeError):
            # Damaged: telling it twice is allowed, not telling it is not.
            return new

    def _deliver(
        self, job: str, hook: Hook, now: datetime | None, stuck: set[str], *, wait: bool
    ) -> datetime | None:
        """One hook, one job: every due event in order until one fails; returns the next time."""
        events = [event for event in self._events(job) if event.name in hook.events]
        if all(self._read(event, hook).settled for event in events):
            return None
        try:
            with files.locked(self._folder(job) / f".{hook.name}.lock", wait=wait):
                for event in events:
                    delivery = self._read(event, hook)
                    if delivery.next and delivery.next > self._now(now):
                        return delivery.next
                    if not delivery.settled:
                        delivery = self._attempt(event, hook, delivery, now, stuck)
                    if not delivery.settled:
                        return delivery.next
        except files.Busy:
            return self._now(now) + timedelta(seconds=1)
        return None

    def _attempt(
        self, event: _Event, hook: Hook, old: Delivery, now: datetime | None, stuck: set[str]
    ) -> Delivery:
        """Run the hook once and write down what came of it."""
        # Written before as well: an attempt whose end cannot be written (killed, disk full)
        # counts, so nobody gets the same mail every second.
        self._write(event, hook, _failed(old, hook, self._now(now), "the attempt was interrupted"))
        try:
            code, said = self._call(hook, files.read_capped(event.path, limit=MAX_EVENT))
        except Unavailable as error:
            # The hook is not to blame, and is not given up for this.
            stuck.add(hook.name)
            when = self._now(now)
            why = shown(error)
            return self._write(event, hook, replace(old, last=when, next=when + NOBODY, why=why))
        except TimeoutError as error:
            stuck.add(hook.name)
            return self._write(event, hook, _failed(old, hook, self._now(now), str(error)))
        except Fault as error:
            return self._write(event, hook, _failed(old, hook, self._now(now), str(error)))
        if code != 0:
            why = f"{ended(code)}: {said}" if said else ended(code)
            return self._write(event, hook, _failed(old, hook, self._now(now), why))
        accepted = replace(
            old, attempts=old.attempts + 1, accepted=self._now(now), next=None, why=shown(said)
        )
        return self._write(event, hook, accepted)

    def _write(self, event: _Event, hook: Hook, delivery: Delivery) -> Delivery:
        files.write_json(event.state(hook.name), delivery.as_json())
        return delivery


def back_off(attempts: int) -> timedelta:
    """How long to wait after this many failures.

    >>> back_off(1).seconds, back_off(3).seconds, back_off(99).seconds
    (5, 120, 3600)
    """
    return timedelta(seconds=BACK_OFF[min(attempts, len(BACK_OFF)) - 1])


def _failed(old: Delivery, hook: Hook, now: datetime, why: str) -> Delivery:
    """The delivery after one more failed attempt."""
    first = old.first or now
    gave_up = not hook.required and now - first >= GIVE_UP
    return replace(
        old,
        attempts=old.attempts + 1,
        first=first,
        last=now,
        next=None if gave_up else now + back_off(old.attempts + 1),
        why=shown(why),
        gave_up=gave_up,
    )


def _delivery(new: Delivery, value: dict[str, Any]) -> Delivery:
    """The delivery as written by `Delivery.as_json`; who and what is the caller's knowledge."""

    def when(name: str) -> datetime | None:
        return datetime.fromisoformat(value[name]) if value.get(name) else None

    return replace(
        new,
        accepted=when("accepted"),
        first=when("first"),
        last=when("last"),
        next=when("next"),
        attempts=int(value["attempts"]),
        why=str(value["why"]),
        # A hook that is required by now is tried again, whatever it was before.
        gave_up=bool(value["gave_up"]) and not new.required,
    )
