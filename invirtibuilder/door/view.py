"""Jobs as a door shows them: read from their public files, without the imports of `jobs`."""

from __future__ import annotations

import _socket  # as in submit
import json
import os
from collections.abc import Callable, Iterator, Sequence

from invirtibuilder import entries, model
from invirtibuilder.errors import Malformed, NotFound, Reason
from invirtibuilder.states import FINAL

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing, too, takes its time to import
    from typing import Any

MAX_BYTES = 4 << 20
MAX_REASON = 64 << 10
RECENT = 20
PART = set("0123456789abcdefT.-")
HEADER = ("JOB", "STATE", "STAGE", "POCKET", "PACKAGE", "VERSION", "PRINCIPAL")


class View:
    """One job, as it was when it was read."""

    def __init__(self, directory: str, alias: dict[str, Any] | None = None) -> None:
        self.directory = directory
        self.alias = alias
        self.id = os.path.basename(directory)
        self.request: dict[str, Any] = _read(os.path.join(directory, "request.json"))
        self.state: dict[str, Any] = _read(os.path.join(directory, "state.json"))
        self.principal = str(self.request["principal"])
        self.pocket = str(entries.pocket(self.request["action"], self.request["args"]))

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state["state"] in FINAL

    @property
    def row(self) -> tuple[str, ...]:
        """Its line in a list of jobs."""
        args = self.request["args"]
        state = self.state
        return (
            self.id,
            state["state"],
            "" if self.final else state["stage"],
            self.pocket,
            args[1] if self.request["action"] == "submit" else self.request["action"],
            state["version"],
            model.printable(self.principal),
        )

    def text(self) -> str:
        """All of it, for a person."""
        state, request = self.state, self.request
        stage = f", stage {state['stage']}" if state["stage"] and not self.final else ""
        blame = f" ({state['blame']})" if state["blame"] else ""
        lines = [
            f"job        {self.id}",
            f"asked      {' '.join((request['action'], *request['args']))}",
            f"by         {model.printable(self.principal)} via {request['via']}"
            f" at {request['time']}",
            f"state      {state['state']}{blame} since {state['since']}{stage}",
        ]
        shown = (("version", "version"), ("commit", "commit"), ("next look", "wake"))
        lines += [f"{name:<10} {state[key]}" for name, key in shown if state[key]]
        if not self.final and os.path.exists(os.path.join(self.directory, "cancel")):
            lines.append("cancel     asked for")
        lines += self.reasons
        if alias := self.alias:
            by = model.printable(alias["request"]["principal"])
            gone = f", withdrawn at {alias['withdrawn']}" if alias["withdrawn"] else ""
            lines.append(f"the same   {self.name} by {by} at {alias['request']['time']}{gone}")
        return "\n".join(lines)

    @property
    def reasons(self) -> list[str]:
        """Why it is where it is, each with its hint."""
        return [str(Reason(**reason)) for reason in self.state["reasons"]]

    @property
    def name(self) -> str:
        """The id by which it was asked for: its own, or an alias."""
        return str(self.alias["request"]["id"]) if self.alias else self.id

    def asked_by(self, principal: str) -> bool:
        """Whether the principal submitted it, or what it is shown for."""
        asked = self.alias["request"]["principal"] if self.alias else ""
        return principal in (self.principal, asked)


class Views:
    """The jobs that the caller may see."""

    def __init__(self, directory: str, visible: Callable[[View], bool], principal: str) -> None:
        self._directory = directory
        self._visible = visible
        self._principal = principal

    def newest(self) -> Iterator[View]:
        """Visible jobs, the latest first; damaged ones are left out."""
        for name in reversed(self._names()):
            if view := self._view(name):
                yield view

    def unfinished(self) -> list[View]:
        """Visible jobs that have not ended, oldest first."""
        return [view for view in self.newest() if not view.final][::-1]

    def get(self, name: str) -> View:
        """The visible job whose id is, or alone contains, `name`. Raises Malformed, NotFound."""
        # No id begins with a hyphen, and options do.
        if not name or len(name) > 30 or not set(name) <= PART or name[0] == "-":
            raise Malformed(f"not a job's id: {model.printable(name)[:80]!r}", code="bad-job")
        names = self._names()
        candidates = [name] if name in names else [n for n in names if name in n]
        found = [view for n in candidates if (view := self._view(n))] or self._aliases(name)
        if len(found) != 1:
            raise NotFound(
                f"{'several jobs match' if found else 'no such job'}: {name}",
                hint="`status` lists jobs",
                code="no-job",
            )
        return found[0]

    def _aliases(self, name: str) -> list[View]:
        """Jobs that are the same as submissions whose ids are, or contain, `name`."""
        folder = os.path.join(self._directory, "aliases")
        found = []
        for file in os.listdir(folder) if os.path.isdir(folder) else ():
            try:
                if name in file.removesuffix(".json") and file.endswith(".json"):
                    alias = _read(os.path.join(folder, file))
                    view = View(os.path.join(self._directory, alias["job"]), alias)
                    if alias["request"]["principal"] == self._principal or self._visible(view):
                        found.append(view)
            except (OSError, ValueError, LookupError, TypeError):
                continue
        return found

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if model.JOB.fullmatch(name))

    def _view(self, name: str) -> View | None:
        try:
            view = View(os.path.join(self._directory, name))
            return view if self._visible(view) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None


class Order:
    """The order in which jobs are taken, as the daemon wrote it last."""

    def __init__(self, file: str | os.PathLike[str], daemon: str | os.PathLike[str]) -> None:
        try:
            value = _read(file)
            lines = [(str(line["job"]), str(line["why"])) for line in value["jobs"]]
            written = str(value["written"])
            paused = dict(value["paused"])
        except (OSError, ValueError, LookupError, TypeError):
            lines, written, paused = [], "", {}
        self.why = dict(lines)
        self.paused: dict[str, str] = paused
        """What is paused (`*`: everything), and why."""
        self._place = {job: place for place, (job, _) in enumerate(lines)}
        self.as_of = "" if _answers(daemon) else written
        """When it was so; nothing while the daemon is up, which keeps it as it is."""

    def place(self, job: str) -> tuple[int, str]:
        """What to sort jobs by; those that it does not know come last, oldest first."""
        return self._place.get(job, len(self._place)), job

    @property
    def warning(self) -> str:
        """What to say before the list when the daemon is down."""
        return f"the daemon does not answer; as of {self.as_of}:" if self.as_of else ""

    def text(self, jobs: list[View]) -> str:
        """These jobs, in order, and why each has its place."""
        if not jobs:
            return "no job is queued or running"
        jobs.sort(key=lambda job: self.place(job.id))
        lines = [self.warning] if self.warning else []
        lines.append(table([HEADER, *(job.row for job in jobs)]))
        whys = ((job.id, self.why.get(job.id)) for job in jobs)
        return "\n".join(
            [*lines, *(f"{name}: {model.printable(why)}" for name, why in whys if why)]
        )


def _answers(daemon: str | os.PathLike[str]) -> bool:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(5)
        connection.connect(os.fspath(daemon))
    except OSError:
        return False
    finally:
        connection.close()
    return True


class Untaken:
    """The caller's requests that are no jobs: not taken up yet, or set aside."""

    def __init__(self, queue: str, principal: str) -> None:
        self._queue = queue
        self._principal = principal

    def waiting(self) -> list[str]:
        """The ids of those that the daemon has not taken up yet, oldest first."""
        names = sorted(os.listdir(os.path.join(self._queue, "new")))
        stems = [n.removesuffix(".json") for n in names if n.endswith(".json")]
        return [stem for stem in stems if self._own("new", stem)]

    def is_waiting(self, name: str) -> bool:
        """Whether this one has not been taken up yet."""
        return self._own("new", name)

    def why_set_aside(self, name: str) -> str:
        """Why the daemon refused this request; nothing when it did not."""
        if not self._own("bad", name):
            return ""
        try:
            path = os.path.join(self._queue, "bad", f"{name}.json.reason")
            with open(path, encoding="utf-8", errors="backslashreplace") as file:
                return model.printable(file.read(MAX_REASON).strip())
        except OSError:
            return "set aside"

    def _own(self, folder: str, name: str) -> bool:
        if not model.JOB.fullmatch(name):
            return False
        try:
            entry = _read(os.path.join(self._queue, folder, f"{name}.json"))
        except (OSError, ValueError, TypeError):
            return False
        return entry.get("principal") == self._principal


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns, as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return dict(json.loads(file.read(MAX_BYTES)))
