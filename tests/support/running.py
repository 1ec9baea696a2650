"""A site on which several people's jobs run, and a worker that holds the orders of some."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from invirtibuilder.run import Done, run
from invirtibuilder.spool import Spool
from invirtibuilder.states import State
from tests.support import place as places
from tests.support.cannedworker import Answer, Answerer, CannedWorker, Work
from tests.support.packages import Repo
from tests.support.place import ME, ROOT, Place, until

ALICE, BOB = "alice@EXAMPLE.ORG", "bob@EXAMPLE.ORG"
Line = tuple[Place, CannedWorker]


@contextmanager
def everybody() -> Iterator[Line]:
    """A site whose door we are, where alice and bob may submit to every pocket."""
    with places.canned() as (place, worker):
        account = ME.removeprefix("unix/")
        place.edit("site:\n", f"site:\n  doors: [{account}]\n")
        text = place.config.read_text()
        submit = f"submit: [{ME}, {ALICE}, {BOB}]"
        place.config.write_text(text.replace(f"submit: [{ME}]", submit))
        yield place, worker


class Gate:
    """Holds the orders of packages until they may pass; remembers who came, in order."""

    def __init__(self, answer: Answerer) -> None:
        self._answer = answer
        self._change = threading.Condition()
        self._open: set[str] = set()
        self.came: list[str] = []

    def __call__(self, work: Work) -> Answer:
        name = str(work.order.content["package"])
        with self._change:
            self.came.append(name)
            while not ({name, "*"} & self._open or work.stopped()):
                self._change.wait(0.05)
        return self._answer(work)

    def open(self, *names: str) -> None:
        """Let these pass; all without a name."""
        with self._change:
            self._open |= set(names or "*")
            self._change.notify_all()

    def wait(self, *names: str) -> None:
        """Until these have come."""
        until(lambda: set(names) <= set(self.came), f"{names} have not come: {self.came}")


@contextmanager
def gated(worker: CannedWorker, kind: str = "build") -> Iterator[Gate]:
    answer = worker.answers[kind]
    gate = Gate(answer)
    worker.answers[kind] = gate
    try:
        yield gate
    finally:
        gate.open()
        worker.answers[kind] = answer


def put(place: Place, pocket: str, repo: Repo, who: str = ME) -> str:
    request = place.request(pocket, repo, who=who)
    Spool(place.site.queue).put(request)
    return request.id


def published(place: Place, *jobs: str) -> None:
    for job in jobs:
        status = place.ended(job).status
        journal = (place.site.jobs / job / "journal").read_text()
        assert status.state == State.PUBLISHED, (status, journal)


def door(place: Place, who: str, *words: str, check: bool = True) -> Done:
    """What the door program says."""
    program = (
        "import sys; from invirtibuilder.door.remctl import main; sys.exit(main(sys.argv.pop(1)))"
    )
    argv = [sys.executable, "-c", program, str(place.site.socket.parent / "door.json"), *words]
    return run(argv, cwd=ROOT, env={"REMOTE_USER": who}, timeout=60, check=check)
