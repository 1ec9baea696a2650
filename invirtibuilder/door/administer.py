"""What administrators do to the whole site through a door: fsck, gc, rebuild-state."""

from __future__ import annotations

from collections.abc import Sequence

from invirtibuilder import entries, model
from invirtibuilder.door import watch
from invirtibuilder.door.call import Call, say
from invirtibuilder.door.verb import formed
from invirtibuilder.errors import Denied, Exit, NotFound

WAIT = "--wait"


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
    if not call.table.administers(call.principal):
        who = model.printable(call.principal)
        raise Denied(f"{who} does not administer this site", code="not-permitted")
    for word in entries.split(action, words)[0]:
        if word not in call.table.pockets:
            known = ", ".join(sorted(call.table.pockets))
            raise NotFound(f"no such pocket: {word}", hint=f"one of {known}", code="no-pocket")
    name = call.put(action, words)
    print(name, flush=True)
    if WAIT not in args:
        call.taken_up(name)
        return Exit.OK
    job = watch.follow(call, name)
    for reason in job.reasons:
        say(reason)
    return watch.exit_code(job)
