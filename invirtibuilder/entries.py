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
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[object], object]

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
    "fsck": (),
    "gc": (),
    "rebuild-state": (),
}
# Action -> how many names follow, at least, and of what.
NAMES = {
    "promote": (1, model.package_name),
    "rollback": (0, model.package_name),
    "fsck": (0, model.pocket_name),
}
# Action -> what may stand anywhere among its arguments; no other argument begins so.
DESPITE = "--despite-dependencies"
OPTIONS = {
    "promote": (DESPITE,),
    "fsck": ("--level=c", "--full", "--repair"),
    "gc": ("--dry-run",),
}
OF_THE_SITE = frozenset({"fsck", "gc", "rebuild-state"})
"""Acts that belong to no pocket; for who administers the site."""
MAX_NAMES = 1000
FIELDS = frozenset({"v", "id", "action", "args", "principal", "via", "addr", "time"})


def downgrade(pocket: str) -> str:
    """What a rollback means for clients, for who asked for one and who is told of it."""
    return (
        "APT replaces what clients have installed by a lower version only with the preferences that"
        f" `sources {pocket} --downgrade` prints (Pin-Priority 1001), or with --allow-downgrades"
    )


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
    least, _ = NAMES.get(str(value["action"]), (0, None))
    words = split(value["action"], args)[0] if isinstance(args, list) else []
    if not isinstance(args, list) or len(words) < len(checks) + least:
        raise Malformed(f"{value['action']} takes {len(checks)} arguments")
    more = len(words) - len(checks)
    if more > (MAX_NAMES if value["action"] in NAMES else 0):
        raise Malformed(f"{value['action']} takes no more arguments than {len(words) - more}")
    for name in ("via", "addr", "time"):
        text = value[name]
        if not isinstance(text, str) or len(text) > 256 or not text.isprintable():
            raise Malformed(f"a request's {name} must be printable text")
    model.job_id(value["id"])
    for check, arg in checked_by(value["action"], args):
        check(arg)
    model.principal(value["principal"])
    return value


def split(action: str, args: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The arguments without options, and the options."""
    known = OPTIONS.get(action, ())
    return [arg for arg in args if arg not in known], [arg for arg in args if arg in known]


def checked_by(action: str, args: Sequence[Any]) -> list[tuple[Check, Any]]:
    """Each argument that is no option, with what checks it."""
    words, _ = split(action, args)
    checks: list[Check] = [*ACTIONS[action]]
    checks += [NAMES.get(action, (0, _option))[1]] * (len(words) - len(checks))
    return list(zip(checks, words, strict=True))


def _option(word: object) -> object:
    raise Malformed(f"no such option: {model.printable(str(word))[:80]!r}", code="bad-option")


def pocket(action: str, args: Sequence[str]) -> str:
    """The pocket that a request changes; the jobs of a request are that pocket's. Or nothing."""
    if action in OF_THE_SITE:
        return ""
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
