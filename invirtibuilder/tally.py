"""How many jobs have ended how, without reading all of them again and again.

What was counted is kept in `run/tally.json`, which is a cache: a job that has ended stays as it is.
Where it is not there, damaged or of other jobs, everything is counted anew.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from invirtibuilder import entries, files, model
from invirtibuilder.errors import Malformed
from invirtibuilder.jobs import Jobs
from invirtibuilder.settings import Site
from invirtibuilder.states import FINAL

VERSION = 1
LIMIT = 64 << 20
DAMAGED = (OSError, Malformed, LookupError, TypeError, ValueError, AttributeError)


@dataclass
class Count:
    """Jobs of one pocket and action that have ended in one state, and the seconds they took."""

    pocket: str
    action: str
    state: str
    jobs: int = 0
    seconds: float = 0.0


@dataclass
class Tally:
    """What is known of the jobs up to the id `mark`: `counted` of them, those that have not ended
    in `open`, and per pocket the digest of the latest base with the time of its first use."""

    mark: str = ""
    counted: int = 0
    open: list[str] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=dict)
    bases: dict[str, list[str]] = field(default_factory=dict)
    read: int = 0

    def add(self, directory: Path) -> bool:
        """Count a job, if it has ended. Raises what is in DAMAGED."""
        self.read += 1
        state = files.read_json(directory / "state.json")
        if state["state"] not in FINAL:
            return False
        asked = files.read_json(directory / "request.json")
        pocket = str(entries.pocket(asked["action"], asked["args"]))
        key = f"{pocket} {asked['action']} {state['state']}"
        new = Count(pocket=pocket, action=str(asked["action"]), state=str(state["state"]))
        count = self.counts.setdefault(key, new)
        began, ended = (datetime.fromisoformat(t) for t in (asked["time"], state["since"]))
        count.jobs += 1
        count.seconds += max(0.0, (ended - began).total_seconds())
        if digest := _base(directory):
            before = self.bases.get(pocket)
            if before is None or before[0] != digest:
                self.bases[pocket] = [digest, str(state["since"])]
        return True

    def as_json(self) -> dict[str, Any]:
        return {"v": VERSION, **asdict(self), "read": 0}


def _base(directory: Path) -> str:
    """The digest of the base that a job made, or was built in; nothing when it had none."""
    found: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("base.json", lambda fact: fact["digest"]),
        ("build.json", lambda fact: fact["environment"]["base"]),
    )
    for name, digest in found:
        try:
            return str(digest(files.read_json(directory / name, limit=LIMIT)))
        except DAMAGED:
            continue
    return ""


def file(site: Site) -> Path:
    """Where what was counted is kept."""
    return site.socket.parent / "tally.json"


def take(jobs: Jobs, file: Path) -> Tally:
    """Count what has come since the last time; kept in `file`, for who may write it."""
    names = jobs.names()
    tally = _load(file)
    known = bisect.bisect_right(names, tally.mark) if tally.mark else 0
    if known != tally.counted or not set(names).issuperset(tally.open):
        # Jobs have come with ids of before, or have gone.
        tally, known = Tally(), 0
    before = tally.as_json()
    todo = [*tally.open, *names[known:]]
    tally.open = []
    for name in todo:
        try:
            ended = tally.add(jobs.directory / name)
        except DAMAGED:
            # Nobody knows; it is looked at again.
            ended = False
        if not ended:
            tally.open.append(name)
    tally.mark, tally.counted = names[-1] if names else "", len(names)
    if tally.as_json() != before:
        try:
            files.write_json(file, tally.as_json())
        except OSError:
            # Somebody else's, or a full disk: it is only slower.
            return tally
    return tally


def _load(file: Path) -> Tally:
    try:
        value = files.read_json(file, limit=LIMIT)
        if value.pop("v") != VERSION:
            return Tally()
        tally = Tally(**value)
        tally.counts = {str(k): Count(**v) for k, v in value["counts"].items()}
        tally.bases = {str(p): [str(d), model.iso(_time(t))] for p, (d, t) in tally.bases.items()}
        tally.open = [model.job_id(name) for name in tally.open]
        tally.counted = int(tally.counted)
    except DAMAGED:
        return Tally()
    return tally


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
