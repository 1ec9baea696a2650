"""What is done through a door to a pocket or the whole site: pauses, fsck, gc, rebuild-state."""

from __future__ import annotations

from collections.abc import Sequence

from invirtibuilder import entries, model
from invirtibuilder.door import watch
from invirtibuilder.door.call import Call, say
from invirtibuilder.door.verb import formed
from invirtibuilder.errors import Denied, Exit, NotFound

WAIT = "--wait"


def pause(call: Call, args: Sequence[str]) -> int:
    """[POCKET] [REASON]."""
    scope, what = _scope(call, args)
    call.taken_up(call.put("pause", [scope, *args[1:], ""][:2]))
    print(f"asked to pause {what}: nothing new starts, what runs ends")
    return Exit.OK


def resume(call: Call, args: Sequence[str]) -> int:
    """[POCKET]."""
    scope, what = _scope(call, args)
    call.taken_up(call.put("resume", [scope]))
    print(f"asked to resume {what}")
    return Exit.OK


def _scope(call: Call, args: Sequence[str]) -> tuple[str, str]:
    """What is to be paused, and how it is called. Raises Denied, NotFound."""
    scope = args[0] if args else entries.WHOLE
    if scope == entries.WHOLE:
        _require(call)
        return scope, "the queue"
    if not call.table.administers(call.principal):
        call.table.require(call.principal, scope, "cancel")
    _known(call, scope)
    return scope, scope


def fsck(call: Call, args: Sequence[str]) -> int:
    """[--level=c] [--full] [--repair] [--wait] [POCKET...]."""
    return _act(call, "fsck", args)


def collect(call: Call, args: Sequence[str]) -> int:
    """[--dry-run] [--wait]."""
    return _act(call, "gc", args)


def rebuild(call: Call, args: Sequence[str]) -> int:
    """[--wait]."""
    return _act(call, "rebuild-state", args)


def _act(call: Call, action: str, args: Sequence[str]) -> int:
    """Queue it; with --wait, follow it and end as the command would have on the site's machine."""
    words = [word for word in args if word != WAIT]
    formed(action, words)
    _require(call)
    for word in entries.split(action, words)[0]:
        _known(call, word)
    name = call.put(action, words)
    print(name, flush=True)
    if WAIT not in args:
        call.taken_up(name)
        return Exit.OK
    job = watch.follow(call, name)
    for reason in job.reasons:
        say(reason)
    return watch.exit_code(job)


def _require(call: Call) -> None:
    """Raise Denied unless the caller administers the site."""
    if not call.table.administers(call.principal):
        who = model.printable(call.principal)
        raise Denied(f"{who} does not administer this site", code="not-permitted")


def _known(call: Call, pocket: str) -> None:
    """Raise NotFound for a pocket that is not there; only who may know that is to be told."""
    if pocket not in call.table.pockets:
        raise NotFound(
            f"no such pocket: {model.printable(pocket)[:80]}",
            hint=f"one of {', '.join(sorted(call.table.pockets))}",
            code="no-pocket",
        )
