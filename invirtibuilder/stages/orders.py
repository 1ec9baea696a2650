"""Giving an order to a worker: attempts, adoption after a restart, and no trust in the result."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import files
from invirtibuilder.engine import Attempt
from invirtibuilder.errors import (
    DISK_FULL,
    Blame,
    Cancelled,
    Fault,
    MachineFault,
    Malformed,
    Reason,
    Unavailable,
)
from invirtibuilder.jobs import Job, bounded
from invirtibuilder.order import Limits, Manifest, Order, Room, read_order, read_result, write_order
from invirtibuilder.run import Killed
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Context, Stopping, Wait

MAX_WORD = 1000
ATTEMPTS = 3
"""A lost attempt (no complete manifest) is tried again, this often in all."""

POLL = 0.1
"""Seconds, at most, between two looks whether a worker has ended."""

GRACE = 30.0
"""Seconds that a worker has to end after a cancel; then it is no longer waited for."""

WORKER_WAIT = timedelta(seconds=15)
ROOM_WAIT = timedelta(minutes=1)

TIGHT = 64 << 20
"""Bytes: with fewer left beside a result it was a full disk that cost it its end."""

PHASES = 12
"""Commands of one order, each of which has the pocket's limit of time for itself."""

SLACK = 64 << 20
"""Bytes that a log and a result have besides: our own lines; headers and the manifest."""

BEFOREHAND = 3
"""How many times its size a file that grows may take on the disk: XFS takes twice as much again."""

BASE_SECONDS = 7200.0
"""What making a base may take besides."""


class Failed(Fault):
    """A worker's verdict, with its own reasons and blame."""

    def __init__(self, manifest: Manifest) -> None:
        reasons = manifest.reasons or (Reason(code="no-reason", message="no reason was given"),)
        super().__init__(reasons[0].message, hint=reasons[0].hint, code=reasons[0].code)
        self._reasons = tuple(bounded(reasons))
        self.blame = manifest.blame

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return tuple(self._reasons)


def carry_out(
    context: Context,
    job: Job,
    pocket: Pocket,
    *,
    kind: str,
    room: Room,
    content: Mapping[str, Any],
    inputs: Mapping[str, Path],
    into: Path,
) -> Manifest:
    """Have an order done and its files copied to the directory `into`; safe to run again.

    A running attempt is adopted, an ended one is read, a lost one is followed by another under
    a new name. Raises what the worker found, Cancelled, Stopping, or MachineFault when three
    attempts were lost. From the start of an attempt the job has a builder's place, which it
    keeps until it leaves it: Wait, when none is free.
    """
    for number in range(1, ATTEMPTS + 1):
        attempt = Attempt(job.directory / "attempts" / f"{kind}-{number}")
        if attempt.given_up:
            continue
        if not attempt.started:
            context.places.enter(job, pocket.domain)
            _prepare(attempt, kind, job, room, content, inputs)
            job.remark(f"{kind}: attempt {number} goes to the worker of {pocket.domain}")
            try:
                context.engines[pocket.domain].start(attempt)
            except Unavailable as fault:
                # No attempt was made; the worker may be about to be started again.
                attempt.lock.unlink(missing_ok=True)
                raise Wait(str(fault), context.clock() + WORKER_WAIT) from fault
        if why := _ended(context, job, attempt, room.limits):
            job.remark(f"{kind}: attempt {number} is lost: its worker {why}")
            attempt.give_up()
            continue
        with attempt.order.open("rb") as stream:
            order = read_order(stream)
        try:
            manifest = _accept(attempt, order, into)
        except Malformed as fault:
            job.remark(f"{kind}: attempt {number} is lost: {fault}")
            status = os.statvfs(attempt.directory)
            if status.f_bavail * status.f_frsize < TIGHT:
                raise _again(context, attempt, "the disk of the jobs is full") from fault
            continue
        if manifest.blame == Blame.MACHINE and Killed.code in {r.code for r in manifest.reasons}:
            job.remark(f"{kind}: attempt {number} is lost: {manifest.reasons[0].message}")
            continue
        if not manifest.ok:
            _wait_for_room(context, attempt, manifest)
            raise Failed(manifest)
        return manifest
    raise MachineFault(
        f"the worker gave no result, {ATTEMPTS} times",
        hint="the logs of the attempts say where it ended",
        code="worker-lost",
    )


def _wait_for_room(context: Context, attempt: Attempt, manifest: Manifest) -> None:
    """Raises Wait when nothing but a full disk of the worker's machine was in the way."""
    for reason in manifest.reasons:
        if manifest.blame == Blame.MACHINE and reason.code == DISK_FULL:
            raise _again(context, attempt, reason.message)


def _again(context: Context, attempt: Attempt, why: str) -> Wait:
    """The job waits, and then the attempt is made as if it had not been."""
    attempt.lock.unlink()
    return Wait(why, context.clock() + ROOM_WAIT)


def _prepare(
    attempt: Attempt,
    kind: str,
    job: Job,
    room: Room,
    content: Mapping[str, Any],
    inputs: Mapping[str, Path],
) -> None:
    files.remove_tree(attempt.directory)
    attempt.directory.mkdir(parents=True)
    order = Order(kind=kind, job=job.id, attempt=attempt.id, room=room, content=content)
    write_order(attempt.order, order, inputs)
    files.sync_directory(attempt.directory)
    files.sync_directory(attempt.directory.parent)


def longest(limits: Limits) -> float:
    """Seconds after which a worker cannot be at work any more: it is frozen, or lies."""
    return limits.seconds * PHASES + BASE_SECONDS


def _ended(context: Context, job: Job, attempt: Attempt, limits: Limits) -> str:
    """Wait for the worker's end; nothing, or why it is no longer waited for.

    One that does not end, not even for a cancel, or writes more than any order can, is told to and
    left behind: whatever it may still give back is of an attempt that nobody asks for.
    """
    began = time.monotonic()
    end = began + longest(limits)
    told = False
    while attempt.running:
        if context.stopping():
            raise Stopping
        if job.cancel_asked and not told:
            attempt.stop()
            told = True
            end = min(end, time.monotonic() + GRACE)
        now = time.monotonic()
        if now > end:
            break
        if _overflowing(attempt, limits):
            attempt.stop()
            break
        # Looking costs little, and waiting adds little, of what the build takes anyway.
        time.sleep(min(POLL, max(0.005, (now - began) / 50)))
    too_much = _overflowing(attempt, limits)
    for path in too_much:
        # It may be open there: this is all that can be taken back.
        os.truncate(path, 0)
    if job.cancel_asked:
        raise Cancelled(f"cancelled by {job.cancel_asked}")
    if too_much:
        return f"writes more than it may: {too_much[0].name}"
    if attempt.running:
        attempt.stop()
        return "does not end"
    return ""


def _overflowing(attempt: Attempt, limits: Limits) -> list[Path]:
    """Which files of the worker's are larger than one that keeps to its limits ever makes them.

    Or take more of the disk: what is allocated beyond a file's end is not in its size.
    """
    found = []
    log_size = None if limits.log_size is None else limits.log_size * PHASES
    for path, most in ((attempt.log, log_size), (attempt.result, limits.result_size)):
        if most is not None and path.exists():
            status = path.stat()
            blocks = status.st_blocks * 512
            if status.st_size > most + SLACK or blocks > (most + SLACK) * BEFOREHAND:
                found.append(path)
    return found


def stop_running(job: Job) -> None:
    """Tell every attempt that still runs to stop, and wait for their end, GRACE at most."""
    found = (Attempt(path) for path in (job.directory / "attempts").glob("*"))
    running = [attempt for attempt in found if attempt.started and attempt.running]
    for attempt in running:
        attempt.stop()
    end = time.monotonic() + GRACE
    while any(attempt.running for attempt in running) and time.monotonic() < end:
        time.sleep(POLL)


def texts(value: object, most: int) -> dict[str, str]:
    """What a report says as a mapping of words to words, whatever it is, within bounds."""
    if not isinstance(value, dict):
        return {}
    return {str(k)[:MAX_WORD]: str(v)[:MAX_WORD] for k, v in list(value.items())[:most]}


def _accept(attempt: Attempt, order: Order, into: Path) -> Manifest:
    """Copy the result while hashing; only the copy is used from here on."""
    beside = into.with_name(f".{into.name}")
    files.remove_tree(beside)
    beside.mkdir()
    manifest = read_result(attempt.result, beside, order)
    if manifest.ok:
        files.remove_tree(into)
        files.sync_directory(beside)
        beside.rename(into)
        files.sync_directory(into.parent)
    else:
        files.remove_tree(beside)
    return manifest
