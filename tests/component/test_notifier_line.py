"""The line with a notifier: what waits while it is away, and what goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from invirtibuilder.jobs import Job
from invirtibuilder.spool import Spool
from invirtibuilder.states import State
from tests.support import packages, place
from tests.support.cannedworker import CannedWorker
from tests.support.notifying import notifier
from tests.support.packages import Repo
from tests.support.place import ME, Place, until

Line = tuple[Place, CannedWorker]
TELL = 'echo "$INVIRTIBUILDER_PACKAGE $INVIRTIBUILDER_EVENT" >> {out}'


@pytest.fixture
def line() -> Iterator[Line]:
    with place.canned() as made:
        made[0].edit("name: test\n", "name: test\n  notifier: run/notify.sock\n")
        yield made


def running(own: Place) -> AbstractContextManager[Popen[bytes]]:
    return notifier(own.config, own.directory / "run/notify.sock")


def told(out: Path) -> list[str]:
    return out.read_text().splitlines() if out.exists() else []


def submitted(own: Place, name: str = "greet") -> tuple[Repo, str]:
    repo = packages.native(own.directory.parent / name, name)
    own.package(repo)
    request = own.request("dev", repo)
    Spool(own.site.queue).put(request)
    return repo, request.id


def status(own: Place, job: str) -> Any:
    return own.json("status", job)


def waits(own: Place, job: str) -> str:
    """Why the job waits, once it does."""

    def why() -> str:
        done = own.cli("status", job, "--json")
        value = json.loads(done.out) if done.code == 0 else {}
        return str(value["reasons"]) if value.get("state") == "waiting" else ""

    return str(until(why, own.log.read_text()))


def test_a_required_hook_holds_builds_back_without_a_notifier(line: Line) -> None:
    own, worker = line
    out = own.directory / "out"
    own.hook(TELL.format(out=out), name="audit", required=True)
    own.hook(TELL.format(out=out), name="mail", events="published")
    _, job = submitted(own)
    with own.daemon():
        why = waits(own, job)
        assert "audit" in why
        assert "notify.sock does not answer" in why
        assert worker.orders == []
        (hook,) = [h for h in status(own, job)["hooks"] if h["event"] == "submitted"]
        assert (hook["hook"], hook["attempts"], hook["accepted"]) == ("audit", 0, None)
        assert "does not answer" in hook["why"]
        assert "does not answer" in own.cli("status", job).text
        with running(own):
            assert own.ended(job).status.state == State.PUBLISHED
            until(lambda: len(told(out)) == 4)
    assert sorted(told(out)) == [
        *("greet published", "greet published", "greet started", "greet submitted")
    ]
    assert [order.kind for order in worker.orders] == ["export", "build"]


def test_a_hook_that_is_not_required_holds_nothing_back(line: Line) -> None:
    own, _ = line
    out = own.directory / "out"
    own.hook(TELL.format(out=out))
    with own.daemon():
        _, job = submitted(own)
        assert own.ended(job).status.state == State.PUBLISHED
        until(lambda: "does not answer" in str(status(own, job)["hooks"]))
        assert told(out) == []
        with running(own):
            until(lambda: len(told(out)) == 3)
    assert told(out) == [f"greet {event}" for event in ("submitted", "started", "published")]


@pytest.mark.parametrize("victim", ["daemon", "notifier"])
def test_who_is_killed_in_the_middle_of_a_delivery_loses_nothing(line: Line, victim: str) -> None:
    own, _ = line
    out = own.directory / "out"
    # The first time it gets stuck when it has already told.
    stuck = f"mkdir {out}.once 2>/dev/null && sleep 60"
    own.hook(f"{TELL.format(out=out)}\n{stuck}\nexit 0", name="audit", required=True)
    _, job = submitted(own)
    with running(own) as service:
        with own.daemon() as daemon:
            until(lambda: told(out) == ["greet submitted"])
            {"daemon": daemon, "notifier": service}[victim].kill()
            {"daemon": daemon, "notifier": service}[victim].wait(60)
            if victim == "notifier":
                assert "does not answer" in waits(own, job)
                with running(own):
                    assert own.ended(job).status.state == State.PUBLISHED
                    until(lambda: len(told(out)) == 4)
        if victim == "daemon":
            with own.daemon():
                assert own.ended(job).status.state == State.PUBLISHED
                until(lambda: len(told(out)) == 4)
    events = [line.removeprefix("greet ") for line in told(out)]
    assert list(dict.fromkeys(events))[:2] == ["submitted", "started"]
    assert events.count("submitted") == 2


def test_a_program_of_an_acl_is_asked_there(line: Line) -> None:
    own, _ = line
    who = own.directory / "who"
    who.write_text(f"#!/bin/sh\necho $PPID > {own.directory}/asked\necho {ME}\n")
    who.chmod(0o755)
    text = own.config.read_text()
    own.config.write_text(text.replace(f"submit: [{ME}]", "submit: [{command: who}]", 1))
    _, first = submitted(own)
    with own.daemon():
        # Nobody can be asked, so nobody may; it is said why.
        job: Job = own.ended(first)
        assert job.status.state == State.REFUSED
        assert [r["code"] for r in job.status.reasons] == ["not-permitted", "acl-unreadable"]
        assert "does not answer" in job.status.reasons[1]["message"]
        explained = own.cli("acl", "explain", "dev", "submit", ME)
        assert explained.code == 77
        assert b"does not answer" in explained.err
        with running(own) as service:
            _, second = submitted(own, "other")
            assert own.ended(second).status.state == State.PUBLISHED
            assert int((own.directory / "asked").read_text()) == service.pid
            assert own.cli("acl", "explain", "dev", "submit", ME).code == 0
