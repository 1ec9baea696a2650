"""The queue directory: one JSON file a request, whole or not at all, taken in order of arrival."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from invirtibuilder import entries, files, model
from invirtibuilder.entries import new_id
from invirtibuilder.errors import Malformed

MAX_BYTES = 64 << 10
MAX_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Request:
    """What somebody asks for: an entry of the queue."""

    id: str
    action: str
    args: tuple[str, ...]
    principal: str
    via: str
    addr: str
    time: str

    @classmethod
    def new(
        cls,
        action: str,
        args: Sequence[str],
        *,
        principal: str,
        via: str,
        addr: str = "",
        now: datetime | None = None,
    ) -> Request:
        """A checked request with an id of its own. Raises Malformed."""
        return parse(entries.new(action, args, principal=principal, via=via, addr=addr, now=now))

    def as_json(self) -> dict[str, Any]:
        return {"v": entries.VERSION, **asdict(self)}


def parse(value: object) -> Request:
    """Check a request's schema and every argument. Raises Malformed."""
    fields = entries.checked(value)
    return Request(
        id=fields["id"],
        action=fields["action"],
        args=tuple(fields["args"]),
        principal=fields["principal"],
        via=fields["via"],
        addr=fields["addr"],
        time=fields["time"],
    )


def local_principal(uid: int) -> str:
    """How a local account is named: unix/NAME. It has no realm, so no Kerberos name equals it."""
    try:
        return f"unix/{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"unix/{uid}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file found in the queue: a request, or what is wrong with it."""

    path: Path
    request: Request | None
    problem: str = ""


class Spool:
    """The queue directory with `tmp/` (being written), `new/` and `bad/` (set aside)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.new = directory / "new"

    def create(self, group: str = "") -> None:
        """Make the directories; no error when they exist.

        Members of `group` may put entries in, and take nobody else's away.
        """
        for name in ("tmp", "new", "bad"):
            path = self.directory / name
            path.mkdir(parents=True, exist_ok=True)
            if group and name != "bad":
                shutil.chown(path, group=group)
                path.chmod(0o1770)

    def put(self, request: Request) -> None:
        """Accept a request: after this returns it survives a power cut.

        Raises Denied and Unavailable.
        """
        entries.put(self.directory, request.as_json())

    def entries(self, trusted: frozenset[int]) -> Iterator[Entry]:
        """What is in `new/`, oldest first.

        Only an account in `trusted` (uids of doors) may name any principal; others' entries
        must name their own local account.
        """
        for name in sorted(os.listdir(self.new)):
            path = self.new / name
            try:
                yield Entry(path=path, request=_read(path, trusted))
            except FileNotFoundError:
                continue
            except (Malformed, OSError) as error:
                yield Entry(path=path, request=None, problem=str(error))

    def has(self, request_id: str) -> bool:
        """Whether this request is there, not taken up yet."""
        return bool(model.JOB.fullmatch(request_id)) and (self.new / f"{request_id}.json").exists()

    def why_set_aside(self, request_id: str) -> str:
        """Why this request was set aside, or nothing."""
        entry = self.directory / "bad" / f"{request_id}.json"
        if not entry.exists():
            return ""
        try:
            return entry.with_name(entry.name + ".reason").read_text().strip()
        except FileNotFoundError:
            return "set aside; the daemon's log says why"

    def set_aside(self, entry: Entry) -> None:
        """Move a bad entry to `bad/`, with the reason beside it; nothing is thrown away."""
        name = entry.path.name
        target = self.directory / "bad" / name
        if os.path.lexists(target) or len(os.fsencode(name)) > MAX_NAME:
            target = target.with_name(f"{name[:40]}.{new_id(model.utcnow())}")
        # What cannot be moved (another account's directory, a full disk) stays where it is.
        with suppress(OSError):
            # The reason first: who finds the entry there finds why, too.
            problem = model.printable(entry.problem) + "\n"
            files.write_atomic(target.with_name(target.name + ".reason"), problem)
            entry.path.rename(target)


def _read(path: Path, trusted: frozenset[int]) -> Request:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise Malformed("not a regular file")
    if status.st_nlink == 2:
        # The writer is between link and unlink, or died there: the entry is whole.
        (path.parent.parent / "tmp" / path.stem).unlink(missing_ok=True)
    elif status.st_nlink > 2:
        raise Malformed("a file with several names")
    data = files.read_capped(path, limit=MAX_BYTES)
    try:
        request = parse(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from error
    if path.name != f"{request.id}.json":
        raise Malformed("the file's name is not the request's id")
    owner = local_principal(status.st_uid)
    if status.st_uid not in trusted and request.principal != owner:
        raise Malformed(f"{owner} may not speak for {model.printable(request.principal)}")
    return request
