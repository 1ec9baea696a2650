"""A queue entry as JSON: its schema, its id, and how it gets into the queue.

Apart from `spool`, and without its imports, because door programs start at every call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from invirtibuilder import model
from invirtibuilder.errors import Denied, Malformed, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing, too, takes its time to import
    from typing import Any

VERSION = 1
WHOLE = "*"
"""In place of a pocket: the whole queue."""


def _scope(value: object) -> str:
    return WHOLE if value == WHOLE else model.pocket_name(value)


# Action -> how each of its arguments is checked.
ACTIONS = {
    "submit": (model.pocket_name, model.package_name, model.committish),
    "cancel": (model.job_id,),
    "retry": (model.job_id,),
    "base-refresh": (model.pocket_name,),
    "promote": (model.pocket_name, model.pocket_name),
    "rollback": (model.pocket_name, model.moment),
    "pause": (_scope, model.remark),
    "resume": (_scope,),
}
# Action -> how many packages follow, at least.
PACKAGES = {"promote": 1, "rollback": 0}
MAX_PACKAGES = 1000
FIELDS = frozenset({"v", "id", "action", "args", "principal", "via", "addr", "time"})


def new(
    action: str,
    args: Sequence[str],
    *,
    principal: str,
    via: str,
    addr: str = "",
    now: datetime | None = None,
) -> dict[str, Any]:
    """A checked entry with an id of its own. Raises Malformed."""
    moment = now or model.utcnow()
    value = {
        "v": VERSION,
        "id": new_id(moment),
        "action": action,
        "args": list(args),
        "principal": principal,
        "via": via,
        "addr": addr,
        "time": model.iso(moment),
    }
    checked(value)
    return value


def new_id(moment: datetime) -> str:
    """An id that sorts by time of arrival: YYYYMMDDTHHMMSS.ffffff-xxxx in UTC."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%f-") + os.urandom(2).hex()


def checked(value: object) -> dict[str, Any]:
    """The entry, its schema and every argument checked. Raises Malformed."""
    if not isinstance(value, dict) or value.get("v") != VERSION:
        raise Malformed(f"a request needs v: {VERSION}")
    if set(value) != FIELDS:
        raise Malformed(f"a request has the fields {', '.join(sorted(FIELDS))}")
    checks = ACTIONS.get(str(value["action"]))
    args = value["args"]
    if checks is None:
        raise Malformed(f"unknown action {model.printable(str(value['action']))!r}")
    least = PACKAGES.get(str(value["action"]))
    if not isinstance(args, list) or len(args) < len(checks) + (least or 0):
        raise Malformed(f"{value['action']} takes {len(checks)} arguments")
    more = len(args) - len(checks)
    if more > (0 if least is None else MAX_PACKAGES):
        raise Malformed(f"{value['action']} takes no more arguments than {len(args) - more}")
    for name in ("via", "addr", "time"):
        text = value[name]
        if not isinstance(text, str) or len(text) > 256 or not text.isprintable():
            raise Malformed(f"a request's {name} must be printable text")
    model.job_id(value["id"])
    for check, arg in zip((*checks, *[model.package_name] * more), args, strict=True):
        check(arg)
    model.principal(value["principal"])
    return value


def pocket(action: str, args: Sequence[str]) -> str:
    """The pocket that a request changes; the jobs of a request are that pocket's."""
    return args[1] if action == "promote" else args[0]


def put(queue: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Accept a request: after this returns it survives a power cut.

    Raises Denied and Unavailable.
    """
    data = json.dumps(value).encode()
    temporary = os.path.join(queue, "tmp", value["id"])
    new_directory = os.path.join(queue, "new")
    made = False
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        made = True
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Not rename: an existing entry is never replaced.
        os.link(temporary, os.path.join(new_directory, f"{value['id']}.json"))
        _remove(temporary)  # unless the daemon was faster, having seen it under both names
        _sync(new_directory)
    except PermissionError as error:
        raise Denied(
            f"you may not write to {queue}",
            hint="the site's queue_group may, if it has one; else only its own account",
        ) from error
    except OSError as error:
        if made:
            _remove(temporary)
        raise Unavailable(
            f"the queue does not take this: {error}", hint="try again later"
        ) from error


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
