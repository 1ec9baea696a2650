"""Events of jobs, delivered to hooks at least once each; hooks.d/README.rst is the contract.

A directory has `JOB/NN-EVENT.json` (what hooks get on standard input, written once, numbered in
order), beside it `NN-EVENT.HOOK.json` (how far its delivery is), and `pending/JOB` as long as
anything of that job is to be delivered, so that finished jobs cost nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import files, model, run
from invirtibuilder.errors import Malformed

EVENTS = ("submitted", "started", "failed", "published")
"""All events; `failed` is also that of a refused and of a cancelled job, see the field `state`."""

TEMPORARY = 75
"""The exit code (EX_TEMPFAIL of sysexits.h) with which a hook says: try again later."""

BACK_OFF = (5, 30, 120, 600, 3600)
"""Seconds to wait after the first, second ... failure; the last one goes on."""

GIVE_UP = timedelta(hours=24)
"""How long a hook that is not required is tried."""

MAX_OUTPUT = 4096
"""Bytes kept from the end of a hook's output."""

MAX_TAIL = 64 << 10
"""Characters kept from the end of a payload's `log_tail`."""

VARIABLES = (
    *("event", "id", "job", "pocket", "package"),
    *("version", "commit", "principal", "state"),
)
"""Fields of the payload that are in the environment as well."""

_HOOK = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EVENT_FILE = re.compile(r"[0-9]{2}-([a-z]+)\.json")


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A program to be told of events; `timeout` in seconds. Raises Malformed."""

    name: str
    program: Path
    events: frozenset[str]
    required: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60

    def __post_init__(self) -> None:
        model.matching(_HOOK, self.name, "hook", "a-z, 0-9, - and _")
        if not self.program.is_absolute() or "\0" in str(self.program):
            raise Malformed(f"hook {self.name}: not an absolute path: {str(self.program)!r}")
        if unknown := sorted(self.events - set(EVENTS)):
            raise Malformed(
                f"hook {self.name}: no such event: {model.printable(', '.join(unknown))}",
                hint=f"events are {', '.join(EVENTS)}",
            )
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or "\0" in value:
                raise Malformed(f"hook {self.name}: not an environment variable: {name!r}")


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
    directory cannot be written; then no hook is run, since its answer could not be kept.
    """

    def __init__(
        self,
        directory: Path,
        hooks: Sequence[Hook],
        *,
        clock: Callable[[], datetime] = model.utcnow,
        queued: Callable[[], None] = lambda: None,
    ) -> None:
        if len({hook.name for hook in hooks}) != len(hooks):
            raise Malformed("two hooks have the same name")
        self._directory = directory
        self._pending = directory / "pending"
        self._hooks = tuple(sorted(hooks, key=lambda hook: not hook.required))
        self._clock = clock
        self._queued = queued

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
            code, said = _call(hook, event.path)
        except TimeoutError as error:
            stuck.add(hook.name)
            return self._write(event, hook, _failed(old, hook, self._now(now), str(error)))
        except (Malformed, run.ProcessFault) as error:
            return self._write(event, hook, _failed(old, hook, self._now(now), str(error)))
        if code != 0:
            why = f"{_exit(code)}: {said}" if said else _exit(code)
            return self._write(event, hook, _failed(old, hook, self._now(now), why))
        accepted = replace(
            old, attempts=old.attempts + 1, accepted=self._now(now), next=None, why=_shown(said)
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


def variables(hook: Hook, payload: Mapping[str, Any]) -> dict[str, str]:
    """What a hook gets in its environment besides `run.CLEAN`; a field that is missing is empty.

    Values are one line of printable characters, whatever the payload has.
    """
    told = {
        f"INVIRTIBUILDER_{'EVENT_ID' if name == 'id' else name.upper()}": _shown(payload.get(name))
        for name in VARIABLES
    }
    return {**hook.environment, **told}


def _shown(value: object) -> str:
    return "" if value is None else model.printable(str(value))[:1000]


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()


def _exit(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    return "try again later" if code == TEMPORARY else f"exit code {code}"


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
        why=_shown(why),
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


def _call(hook: Hook, event: Path) -> tuple[int, str]:
    """Run the hook on an event; its exit code and the end of its output.

    Raises TimeoutError when it has not ended after its time-out, ProcessFault when it cannot be
    started, Malformed when the event cannot be read.
    """
    payload = files.read_json(event)
    with contextlib.ExitStack() as stack:
        # A file, not a pipe: a hook may close its standard input unread.
        stdin = stack.enter_context(event.open("rb"))
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        try:
            process = stack.enter_context(
                run.started_group(
                    [str(hook.program)],
                    env=variables(hook, payload),
                    stdin=stdin,
                    stdout=writer,
                    stderr=writer,
                )
            )
        finally:
            os.close(writer)
        output = _listen(process.pid, reader, hook.timeout)
        code = process.wait()
    return code, _text(output)


def _listen(pid: int, reader: int, timeout: float) -> bytes:
    """Read until the process ends, keeping the last MAX_OUTPUT bytes. Raises TimeoutError."""
    tail = b""
    deadline = time.monotonic() + timeout
    os.set_blocking(reader, False)
    # The end of the process counts, not that of its output: a descendant may keep that open.
    ended = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while True:
                ready = {
                    key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))
                }
                with contextlib.suppress(BlockingIOError):
                    chunk = os.read(reader, 64 << 10)
                    tail = (tail + chunk)[-MAX_OUTPUT:]
                    if not chunk and reader in ready:
                        selector.unregister(reader)
                if ended in ready:
                    return tail
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"no end after {timeout:g} s: {_text(tail)}")
    finally:
        os.close(ended)
