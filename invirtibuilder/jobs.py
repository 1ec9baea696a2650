"""A job, its facts and its state, in a directory of its own.

jobs/ID/request.json   the submission as it was accepted
jobs/ID/state.json     state, stage, reasons: replaced at each move
jobs/ID/cancel         who asked for a cancel, if anybody did
jobs/ID/part-of        the job that this one is published with, if it is a part of one
jobs/ID/nudge          there while a waiting job is to look again
jobs/ID/journal        one line a move or remark, with UTC time: the short log
jobs/ID/STAGE.json     the facts that a stage wrote; a stage with facts is done
jobs/ID/attempts/      runs of orders, each with its full log
jobs/aliases/          submissions that are the same as a job
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from invirtibuilder import entries, files, model
from invirtibuilder.aliases import Alias, Aliases
from invirtibuilder.errors import Malformed, NotFound, Reason
from invirtibuilder.spool import Request, parse
from invirtibuilder.states import FINAL, State, check_move

Clock = Callable[[], datetime]

MAX_REMARK = 4000
MAX_REASONS = 1 << 20
"""Bytes of JSON of a job's reasons: state.json must stay one that can be read."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a job is and why. Public: anybody who may read the site's state sees it."""

    state: State
    stage: str
    since: str
    reasons: tuple[dict[str, str], ...] = ()
    blame: str = ""
    version: str = ""
    commit: str = ""
    wake: str = ""  # a waiting job is looked at again then
    cancel_by: str = ""

    @property
    def final(self) -> bool:
        return self.state in FINAL


class Job:
    """One job. Only the daemon writes; anybody may read."""

    def __init__(self, directory: Path, clock: Clock = model.utcnow) -> None:
        self.directory = directory
        self.id = directory.name
        self._clock = clock
        self.request: Request = parse(files.read_json(directory / "request.json"))

    @property
    def pocket(self) -> str:
        return entries.pocket(self.request.action, self.request.args)

    @property
    def package(self) -> str:
        return self.request.args[1] if self.request.action == "submit" else ""

    @property
    def committish(self) -> str:
        return self.request.args[2] if self.request.action == "submit" else ""

    @property
    def part_of(self) -> str:
        """The job that this one is a part of, and is published with; or nothing."""
        try:
            return files.read_capped(self.directory / "part-of", limit=4096).decode()
        except FileNotFoundError:
            return ""

    @property
    def status(self) -> Status:
        """The state as it is on disk now."""
        value = files.read_json(self.directory / "state.json")
        value["state"] = State(value["state"])
        value["reasons"] = tuple(value["reasons"])
        if (self.directory / "nudge").exists():
            value["wake"] = ""
        return replace(Status(**value), cancel_by=self.cancel_asked)

    def move(
        self,
        new: State,
        why: str = "",
        *,
        reasons: Sequence[Reason] = (),
        blame: str = "",
        wake: datetime | None = None,
    ) -> None:
        """Go to another state, or raise IllegalMove. Journal first, then the state itself."""
        old = self.status
        check_move(old.state, new)
        if old.state == State.WAITING:
            # Before it looks again: what comes from now on is told by another.
            (self.directory / "nudge").unlink(missing_ok=True)
        self.remark(f"{old.state} -> {new}" + (f": {why}" if why else ""))
        self._write(
            replace(
                old,
                state=new,
                since=model.iso(self._clock()),
                reasons=tuple(r.as_json() for r in bounded(reasons)),
                blame=blame,
                wake=model.iso(wake) if wake else "",
            )
        )

    def note(self, *, stage: str = "", version: str = "", commit: str = "") -> None:
        """Record where the pipeline is, without a move."""
        old = self.status
        new = replace(
            old,
            stage=stage or old.stage,
            version=version or old.version,
            commit=commit or old.commit,
        )
        if new != old:
            self._write(new)

    def remark(self, text: str) -> None:
        """Append one line to the journal."""
        line = f"{model.iso(self._clock())} {model.printable(text[:MAX_REMARK])}\n"
        fd = os.open(
            self.directory / "journal",
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW,
            0o644,
        )
        with os.fdopen(fd, "wb") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def nudge(self) -> None:
        """Have a waiting job look again at once: what it waits for may have come."""
        # A file of its own, as for a cancel.
        files.write_atomic(self.directory / "nudge", "")

    def ask_cancel(self, principal: str) -> None:
        """Record that somebody wants this job to stop; the pipeline looks at every turn."""
        self.remark(f"cancel asked for by {principal}")
        # A file of its own: the line writes the state at the same time.
        files.write_atomic(self.directory / "cancel", principal)

    @property
    def cancel_asked(self) -> str:
        """Who asked for a cancel, or nothing."""
        try:
            return files.read_capped(self.directory / "cancel", limit=4096).decode()
        except FileNotFoundError:
            return ""

    def fact(self, stage: str) -> dict[str, Any] | None:
        """What a stage wrote, or None when it is not done."""
        try:
            value = files.read_json(self.directory / f"{stage}.json", limit=64 << 20)
        except FileNotFoundError:
            return None
        return dict(value)

    def need(self, stage: str) -> dict[str, Any]:
        """The facts of an earlier stage, which must be there."""
        value = self.fact(stage)
        if value is None:
            raise RuntimeError(f"job {self.id}: stage {stage} has left no facts")
        return value

    def write_fact(self, stage: str, value: dict[str, Any]) -> None:
        """Write a stage's facts: from now on the stage is done."""
        files.write_json(self.directory / f"{stage}.json", value)

    def _write(self, status: Status) -> None:
        files.write_json(self.directory / "state.json", asdict(replace(status, cancel_by="")))


def bounded(reasons: Sequence[Reason]) -> list[Reason]:
    """The first reasons, of 1 MiB as JSON in all, and how many more there were."""
    kept: list[Reason] = []
    size = 0
    for reason in reasons:
        size += len(json.dumps(reason.as_json()))
        if kept and size > MAX_REASONS:
            more = f"and {len(reasons) - len(kept)} more reasons"
            return [*kept, Reason(code="more-reasons", message=more)]
        kept.append(reason)
    return kept


class Jobs:
    """All jobs of a site."""

    def __init__(self, directory: Path, clock: Clock = model.utcnow) -> None:
        self.directory = directory
        self._clock = clock
        self._over: set[str] = set()
        self.aliases = Aliases(directory / "aliases")
        self._asked: dict[tuple[str, ...], str] | None = None
        self._lock = threading.Lock()

    def create(self, request: Request, *, part_of: str = "", commit: str = "") -> Job:
        """Make a job of a request, or return it when it exists already.

        One that is `part_of` another job is published with that one. `commit` is what was
        submitted, where that is known already: then it is what the job is of.
        """
        target = self.directory / request.id
        if not target.exists():
            beside = self.directory / f".{request.id}"
            files.remove_tree(beside)
            (beside / "attempts").mkdir(parents=True)
            files.write_json(beside / "request.json", request.as_json())
            since = model.iso(self._clock())
            status = Status(state=State.QUEUED, stage="", since=since, commit=commit)
            files.write_json(beside / "state.json", asdict(status))
            if part_of:
                files.write_atomic(beside / "part-of", part_of)
            beside.rename(target)
            files.sync_directory(self.directory)
            Job(target, self._clock).remark(
                f"queued: {' '.join((request.action, *request.args))}"
                f" by {request.principal} via {request.via}"
            )
        job = Job(target, self._clock)
        if commit and not part_of:
            with self._lock:
                self._known()[*request.args[:2], commit] = job.id
        return job

    def identical(self, pocket: str, package: str, commit: str) -> Job | None:
        """The job that is queued or running for this commit, unless somebody has cancelled it."""
        with self._lock:
            name = self._known().get((pocket, package, commit))
        found = self._read(name) if name else ""
        if isinstance(found, str) or found.status.final or found.cancel_asked:
            return None
        return found

    def _known(self) -> dict[tuple[str, ...], str]:
        """The latest job of each commit that was submitted to a pocket."""
        if self._asked is None:
            self._asked = {
                (job.pocket, job.package, job.status.commit): job.id
                for job in self.unfinished()
                if job.request.action == "submit" and job.status.commit and not job.part_of
            }
        return self._asked

    def names(self) -> list[str]:
        """All ids, in order of arrival."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if model.JOB.fullmatch(name))

    def alias(self, name: str) -> Alias | None:
        """The alias whose id is, or alone contains, `name`; none when a job's does."""
        if exact := self.aliases.get(name):
            return exact
        if not name or any(name in job for job in self.names()):
            return None
        found = [alias for alias in self.aliases.names() if name in alias]
        return self.aliases.get(found[0]) if len(found) == 1 else None

    def get(self, name: str) -> Job:
        """The job whose id, or an alias of it, is or alone contains `name`. Raises NotFound."""
        found = [n for n in self.names() if n == name] or [
            n for n in self.names() if name and name in n
        ]
        if not found and (alias := self.alias(name)):
            found = [alias.job]
        if len(found) != 1:
            many = "several jobs match" if found else "no such job"
            raise NotFound(
                f"{many}: {model.printable(name)[:80]}",
                hint=f"one of {', '.join(found[:5])}"
                if found
                else "`status` lists jobs, `queue` what is not taken up yet",
                code="no-job",
            )
        return Job(self.directory / found[0], self._clock)

    def all(self) -> Iterator[Job]:
        """Every job that can be read, oldest first; `unreadable` has the others."""
        for name in self.names():
            found = self._read(name)
            if isinstance(found, Job):
                yield found

    def unfinished(self) -> list[Job]:
        """Jobs without a final state, oldest first; one that is over is read only once."""
        found = []
        for name in self.names():
            if name in self._over:
                continue
            job = self._read(name)
            if isinstance(job, str):
                continue
            if job.status.final:
                self._over.add(name)
            else:
                found.append(job)
        return found

    def unreadable(self) -> dict[str, str]:
        """Jobs whose request or state is damaged, and why; they must not stop the others."""
        found = {name: self._read(name) for name in self.names()}
        return {name: why for name, why in found.items() if isinstance(why, str)}

    def _read(self, name: str) -> Job | str:
        try:
            job = Job(self.directory / name, self._clock)
            _ = job.status
        except (OSError, Malformed, LookupError, TypeError, ValueError) as error:
            return str(error)
        return job
