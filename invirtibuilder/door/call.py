"""One call of the doors' program: who asks, what may be seen, and acts by way of the queue."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from invirtibuilder import entries, model
from invirtibuilder.door import table, view
from invirtibuilder.errors import Denied, Malformed

PATIENCE = 5.0
"""Seconds in which the daemon takes a request up, as a rule."""
MAX_ADDRESS = 100


class Call:
    """One call: who asks, and what the site lets the doors know."""

    def __init__(self, file: str, environment: Mapping[str, str]) -> None:
        self.principal = _principal(environment)
        self.via = "ssh" if "SSH_ORIGINAL_COMMAND" in environment else "remctl"
        self.addr = model.printable(environment.get("REMOTE_ADDR", ""))[:MAX_ADDRESS]
        self.table = table.load(file, model.utcnow())
        self.views = view.Views(self.table.jobs, self.sees, self.principal)
        self.untaken = view.Untaken(self.table.queue, self.principal)

    def sees(self, job: view.View) -> bool:
        """Own jobs, and those of pockets in which the caller may do anything."""
        return job.principal == self.principal or self.table.readable(self.principal, job.pocket)

    def put(self, action: str, args: Sequence[str]) -> str:
        """Queue an act, wait a little for the daemon's word, and return its id."""
        entry = entries.new(action, args, principal=self.principal, via=self.via, addr=self.addr)
        name = str(entry["id"])
        entries.put(self.table.queue, entry)
        until = time.monotonic() + PATIENCE
        while self.untaken.is_waiting(name):
            if time.monotonic() > until:
                say("queued: the daemon has not taken it up yet")
                return name
            time.sleep(0.02)
        if why := self.untaken.why_set_aside(name):
            raise Denied(why, code="set-aside")
        return name


def say(text: str) -> None:
    """To the caller's standard error."""
    print(text, file=sys.stderr, flush=True)


def _principal(environment: Mapping[str, str]) -> str:
    who = environment.get("REMOTE_USER", "")
    try:
        model.principal(who)
    except Malformed as fault:
        raise Denied(f"nobody is asking: {fault}", code="no-principal") from fault
    return who
