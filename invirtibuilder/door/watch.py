"""A job's log at a door, until it ends if that is wanted."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Sequence

from invirtibuilder import model
from invirtibuilder.door import view
from invirtibuilder.door.call import Call
from invirtibuilder.errors import Denied, Exit, UsageFault
from invirtibuilder.joblog import Tail, harmless
from invirtibuilder.states import State, verdict

POLL = 0.2
HEARTBEAT = 10.0
"""Seconds of silence after which `follow` says so: remctld sees that a caller has gone only when
something is to be sent."""
UNTAKEN = "not taken up yet"


def log(call: Call, args: Sequence[str]) -> int:
    """JOB [follow]."""
    if len(args) == 2 and args[1] != "follow":
        raise UsageFault("usage: log JOB [follow]")
    if len(args) == 2:
        follow(call, args[0])
    elif call.untaken.is_waiting(args[0]):
        print(f"{args[0]} is queued, {UNTAKEN}")
    else:
        for text in Tail(_job(call, args[0]).directory).more():
            sys.stdout.write(harmless(text))
    return Exit.OK


def follow(call: Call, name: str) -> view.View:
    """Print a job's log as it grows; the job when it has ended. Raises NotFound, Denied."""
    breath = _Breath()
    while call.untaken.is_waiting(name):
        breath.pause(f"{name} is queued, {UNTAKEN}")
    directory = _job(call, name).directory
    tail = Tail(directory)
    while True:
        # Read before the log: what comes after the end of the job is not missed.
        job = view.View(directory)
        for text in tail.more():
            sys.stdout.write(harmless(text))
            breath.spoken = time.monotonic()
        if job.final:
            return job
        breath.pause(f"still {job.state['state']} {job.state['stage']}".rstrip())


def exit_code(job: view.View) -> int:
    """What a command ends with that has followed this job, which is over."""
    reasons = job.state["reasons"]
    return verdict(State(job.state["state"]), (str(reason["code"]) for reason in reasons))


def _job(call: Call, name: str) -> view.View:
    if why := call.untaken.why_set_aside(name):
        raise Denied(why, code="set-aside")
    return call.views.get(name)


class _Breath:
    """The pause between two looks, in which it is noticed that the caller has gone."""

    def __init__(self) -> None:
        self.spoken = time.monotonic()
        self._gone = select.poll()
        self._gone.register(sys.stdout.fileno(), 0)

    def pause(self, state: str) -> None:
        """Raises BrokenPipeError when nobody listens any more."""
        if time.monotonic() - self.spoken > HEARTBEAT:
            print(f"{model.iso(model.utcnow())} {state}", end="", flush=True)
            # In two parts: only the second one makes a connection that is gone fail.
            time.sleep(POLL)
            sys.stdout.write("\n")
            self.spoken = time.monotonic()
        sys.stdout.flush()
        if self._gone.poll(POLL * 1000):
            raise BrokenPipeError("the caller has gone")
