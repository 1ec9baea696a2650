"""The package of a pocket's keys comes back when it has gone, or could not be built."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from invirtibuilder import hosting, keyring
from invirtibuilder.jobs import Job
from invirtibuilder.journal import silent
from invirtibuilder.pipeline import advance
from invirtibuilder.spool import Request
from invirtibuilder.states import State
from invirtibuilder.watchdog import Watchdog
from tests.support import cannedworker
from tests.support import place as places
from tests.support.place import Place


def asked(place: Place) -> list[Request]:
    """What is submitted in the time of one look."""
    stop = threading.Event()
    found: list[Request] = []

    def put(request: Request) -> None:
        found.append(request)
        stop.set()

    timer = threading.Timer(20, stop.set)
    timer.start()
    keyring.keep(place.context, put, stop=stop, watchdog=Watchdog({}), log=silent)
    timer.cancel()
    return found


def done(place: Place, request: Request) -> Job:
    job = place.context.jobs.create(request)
    advance(place.context, job)
    return job


def test_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with places.canned() as (place, worker):
        what = "    description: what is to be"
        place.edit(what, f"    archive_keyring: true\n{what}")
        context, pocket = place.context, place.site.pockets["staging"]
        hosting.ensure_pocket(context, pocket)
        first = keyring.refresh(context, pocket)
        assert first
        good = worker.answers["build"]
        worker.answers["build"] = cannedworker.failing("base-failed", "no mirror")
        assert done(place, first).status.state == State.FAILED
        worker.answers["build"] = good
        # Not at once, but after a while.
        assert keyring.refresh(context, pocket) is None
        assert keyring.missing(place.site, pocket)
        monkeypatch.setattr(keyring, "AGAIN", timedelta(0))
        (again,) = asked(place)
        assert again.args == first.args
        assert done(place, again).status.state == State.PUBLISHED
        assert not keyring.missing(place.site, pocket)
        assert keyring.refresh(context, pocket) is None
        # A rollback takes it away.
        superproject = context.superproject
        with superproject.chain(superproject.tip("staging")) as chain:
            gone = chain.add(
                package=pocket.keyring,
                commit=None,
                record={},
                subject="as a rollback",
                trailers={},
                author=("Ada", "ada@example.org"),
                date=context.clock(),
            )
        superproject.move("staging", gone, superproject.tip("staging"))
        assert keyring.missing(place.site, pocket)
        (third,) = asked(place)
        assert third.args == first.args
