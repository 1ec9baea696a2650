"""Aliases: submissions that ask for what a job does already; each keeps its own id for ever.

jobs/aliases/ID.json    the submission, and the job that it is the same as

The first submitter owns the job. Who asked for the same later can withdraw that wish; the job goes
on. Door programs read the files without this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from invirtibuilder import files, model
from invirtibuilder.errors import Malformed
from invirtibuilder.spool import Request, parse


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A submission that is the same as a job; `withdrawn` is when, or nothing."""

    job: str
    request: Request
    taken_up: str
    withdrawn: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "v": 1,
            "job": self.job,
            "request": self.request.as_json(),
            "taken_up": self.taken_up,
            "withdrawn": self.withdrawn,
        }


class Aliases:
    """All aliases of a site. Only the daemon writes; anybody may read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, request: Request, job: str, now: datetime) -> Alias:
        """Write down that a submission is the same as a job, which it is from now on."""
        alias = Alias(job=job, request=request, taken_up=model.iso(now))
        self._directory.mkdir(exist_ok=True)
        self._write(alias)
        return alias

    def withdraw(self, alias: Alias, now: datetime) -> None:
        """Write down that its submitter no longer wants it."""
        self._write(replace(alias, withdrawn=model.iso(now)))

    def get(self, name: str) -> Alias | None:
        """The alias with this id, or None."""
        if not model.JOB.fullmatch(name):
            return None
        try:
            value = files.read_json(self._directory / f"{name}.json")
            return Alias(
                job=model.job_id(value["job"]),
                request=parse(value["request"]),
                taken_up=str(value["taken_up"]),
                withdrawn=str(value["withdrawn"]),
            )
        except (OSError, Malformed, LookupError, TypeError):
            return None

    def names(self) -> list[str]:
        """All ids, in order of arrival."""
        try:
            found = [path.stem for path in self._directory.iterdir() if path.suffix == ".json"]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if model.JOB.fullmatch(name))

    def since(self, moment: datetime) -> Iterator[Alias]:
        """Those that were taken up after a moment, by the daemon's clock."""
        for name in self.names():
            try:
                # None is written before it is taken up.
                old = (self._directory / f"{name}.json").stat().st_mtime <= moment.timestamp()
            except FileNotFoundError:
                continue
            alias = None if old else self.get(name)
            if alias and datetime.fromisoformat(alias.taken_up) > moment:
                yield alias

    def _write(self, alias: Alias) -> None:
        files.write_json(self._directory / f"{alias.request.id}.json", alias.as_json())
