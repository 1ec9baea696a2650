"""One call of a door: who asks, what the site lets the doors know, and how a request is queued."""

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
        """Own jobs, those of pockets in which the caller may do anything, and of the site those
        who administer it."""
        if job.principal == self.principal:
            return True
        if not job.pocket:
            return self.table.administers(self.principal)
        return self.table.readable(self.principal, job.pocket)

    def put(self, action: str, args: Sequence[str]) -> str:
        """Queue a request and return its id."""
        entry = entries.new(action, args, principal=self.principal, via=self.via, addr=self.addr)
        entries.put(self.table.queue, entry)
        return str(entry["id"])

    def taken_up(self, name: str) -> None:
        """Wait a little for the daemon's word on a request. Raises Denied."""
        until = time.monotonic() + PATIENCE
        while self.untaken.is_waiting(name):
            if time.monotonic() > until:
                say("queued: the daemon has not taken it up yet")
                return
            time.sleep(0.02)
        if why := self.untaken.why_set_aside(name):
            raise Denied(why, code="set-aside")


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
