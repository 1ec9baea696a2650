"""The compiled ACLs: exact structure, programs that fail, remctld's list, the daemon's part."""

from __future__ import annotations

import functools
import json
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from invirtibuilder import acltable, files, model
from invirtibuilder.run import run
from invirtibuilder.states import State
from tests.support import packages, place
from tests.support.cannedworker import CannedWorker
from tests.support.notifying import notifier
from tests.support.packages import Repo
from tests.support.place import ME, Place, until

ALICE = "alice@EXAMPLE.ORG"
BOB = "bob/admin@EXAMPLE.ORG"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture(params=["here", "service"])
def own(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A site whose programs are run by whoever asks, and one with a notifier."""
    with place.place() as made:
        if request.param == "here":
            yield made
            return
        made.edit("name: test\n", "name: test\n  notifier: run/notify.sock\n")
        with notifier(made.config, made.directory / "run/notify.sock"):
            yield made


@pytest.fixture
def line() -> Iterator[tuple[Place, CannedWorker]]:
    with place.canned() as made:
        yield made


def acl(place: Place, rules: str, pocket: str = "dev") -> None:
    """Replace the ACL of a pocket by these lines of YAML."""
    head, mark, rest = place.config.read_text().partition(f"  {pocket}:\n")
    before, acl_key, after = rest.partition("    acl:\n")
    while after.startswith("      "):
        after = after.partition("\n")[2]
    lines = "".join(f"      {rule}\n" for rule in rules.splitlines())
    place.config.write_text(head + mark + before + acl_key + lines + after)


def program(place: Place, script: str, name: str = "who") -> Path:
    """A program for an ACL; written anew each time, as its answer changes."""
    path = place.directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def names(made: acltable.Compiled, action: str = "submit", pocket: str = "dev") -> list[str]:
    return list(made.door["pockets"][pocket]["actions"][action])


def test_the_table(own: Place) -> None:
    acl(own, f"submit: [{ALICE}, {ME}]\nread: [{{file: readers}}]")
    (own.directory / "readers").write_text(f"# all\n{BOB}\n{ALICE}\n")
    own.edit("name: test\n", "name: test\n  url: https://apt.example.org/\n")
    own.package(packages.native(own.directory.parent / "greet"))
    made = acltable.write(own.site, NOW)
    table = own.directory / "run/door.json"
    assert stat.S_IMODE(table.stat().st_mode) == 0o644
    read = json.loads(table.read_text())
    assert read == made.door
    pockets = read.pop("pockets")
    assert read == {
        "v": 1,
        "site": "test",
        "queue": f"{own.directory}/queue",
        "jobs": f"{own.directory}/jobs",
        "socket": f"{own.directory}/run/daemon.sock",
        "written": "2026-01-02T03:04:05.000Z",
        "administrators": [],
        "troubles": [],
        "packages": ["greet"],
    }
    assert list(pockets) == sorted(own.site.pockets)
    dev = pockets["dev"]
    sources = dev.pop("sources")
    assert dev == {
        "description": "any commit, for trying things out",
        "suite": own.site.pockets["dev"].suite,
        "allow_backtracking": True,
        "expires": None,
        "actions": {
            "submit": sorted([ALICE, ME]),
            "promote": [],
            "rollback": [],
            "cancel": [],
            "read": [ALICE, BOB],
        },
        "troubles": [],
    }
    assert sources.rstrip("\n") == own.cli("sources", "dev").text
    assert "URIs: https://apt.example.org/dev\n" in sources
    assert pockets["prod"]["actions"]["cancel"] == [ME]
    assert made.expires is None


def test_a_pocket_without_a_publication_has_no_sources(own: Place) -> None:
    (own.site.archive / "dev" / "dists").unlink()
    assert acltable.compile(own.site, NOW).door["pockets"]["dev"]["sources"] == ""


def test_without_the_public_key_everything_else_is_there(own: Place) -> None:
    (own.directory / "archive/dev/key.asc").unlink()
    made = acltable.compile(own.site, NOW)
    assert names(made) == [ME]
    assert made.door["pockets"]["dev"]["sources"] == ""
    assert "BEGIN PGP PUBLIC KEY" in made.door["pockets"]["staging"]["sources"]
    assert any("key.asc" in text for text in made.troubles)


def test_a_program_that_fails_keeps_its_answer_for_a_while(own: Place) -> None:
    own.edit("name: test\n", "name: test\n  acl_refresh: 10m\n")
    who = program(own, f"echo {ALICE}")
    acl(own, f"submit: [{BOB}, {{command: who}}]")
    end = model.iso(NOW + timedelta(minutes=30))

    made = acltable.write(own.site, NOW)
    assert names(made) == [ALICE, BOB]
    assert made.door["pockets"]["dev"]["expires"] == end
    assert made.door["pockets"]["prod"]["expires"] is None
    assert made.expires == NOW + timedelta(minutes=30)

    program(own, "echo carol@R; echo no directory >&2; exit 1")
    made = acltable.write(own.site, NOW + timedelta(minutes=30) - SECOND)
    assert names(made) == [ALICE, BOB]
    assert made.door["pockets"]["dev"]["expires"] == end
    (trouble,) = made.door["pockets"]["dev"]["troubles"]
    assert str(who) in trouble
    assert "no directory" in trouble
    assert trouble.endswith(f"its answer of {model.iso(NOW)} counts until {end}")
    assert made.troubles == [f"pocket dev: {trouble}"]

    # Then it is nobody's right any more; what is listed ages not at all.
    made = acltable.write(own.site, NOW + timedelta(minutes=30))
    assert names(made) == [BOB]
    assert made.door["pockets"]["dev"]["expires"] is None
    assert made.door["pockets"]["dev"]["troubles"][0].endswith("it grants nothing")

    program(own, "echo carol@R")
    made = acltable.write(own.site, NOW + timedelta(minutes=31))
    assert names(made) == [BOB, "carol@R"]
    assert made.expires == NOW + timedelta(minutes=61)

    # An answer whose time has not come was given by a clock that went back.
    program(own, "exit 1")
    assert names(acltable.write(own.site, NOW)) == [BOB]


def test_an_answer_is_of_one_program_pocket_and_action(own: Place) -> None:
    program(own, f'echo "$1-$2@R"; [ "$2" = submit ] || echo {ALICE}')
    acl(own, "submit: [{command: who}]\nread: [{command: who}]")
    acl(own, "submit: [{command: who}]", "prod")
    made = acltable.write(own.site, NOW)
    assert names(made) == ["dev-submit@R"]
    assert names(made, "read") == [ALICE, "dev-read@R"]
    assert names(made, pocket="prod") == ["prod-submit@R"]
    program(own, "exit 1")
    again = acltable.write(own.site, NOW + SECOND)
    assert again.door["pockets"]["dev"]["actions"] == made.door["pockets"]["dev"]["actions"]
    # Another program, or one that is no longer named, has no answer of before.
    program(own, "exit 1", "other")
    acl(own, "submit: [{command: other}]")
    assert names(acltable.write(own.site, NOW + SECOND)) == []
    acl(own, "submit: [{command: who}]")
    assert names(acltable.write(own.site, NOW + SECOND)) == []


@pytest.mark.parametrize("damage", ["", "{", "[1]", '[{"key": [1], "time": "x", "names": 3}]'])
def test_damaged_answers_are_none(own: Place, damage: str) -> None:
    program(own, f"echo {ALICE}")
    acl(own, "submit: [{command: who}]")
    acltable.write(own.site, NOW)
    kept = own.directory / "run/acl-answers.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_text(damage)
    assert names(acltable.write(own.site, NOW)) == [ALICE]
    kept.write_text(damage)
    program(own, "exit 1")
    assert names(acltable.write(own.site, NOW)) == []


def test_hostile_answers_grant_nothing_and_hurt_nobody_else(own: Place) -> None:
    scripts = {
        "endless": "exec yes eve@R",
        "large": "echo eve@R; head -c 10485760 /dev/zero",
        "latin": "echo eve@R; printf '\\351ve@R\\n'",
        "nul": "echo eve@R; printf 'a\\000b@R\\n'",
        "escape": "echo eve@R; printf 'a\\033[2Jb@R\\n'",
        "deny": "echo eve@R; echo deny:eve@R",
        "denied": "echo eve@R; exit 77",
    }
    for name, script in scripts.items():
        program(own, script, name)
    rules = ", ".join(f"{{command: {name}}}" for name in scripts)
    acl(own, f"submit: [{rules}, {ALICE}]")
    made = acltable.write(own.site, NOW)
    assert names(made) == [ALICE]
    assert made.submitters == f"princ:{ALICE}\n"
    assert len(made.troubles) == len(scripts)
    assert all(text.isprintable() and len(text) < 500 for text in made.troubles)


def test_remctlds_list(own: Place) -> None:
    """What the real remctl code makes of it: exactly those names, and no rule of another kind."""
    odd = ["with:colon@R", "deny:alice@R", "file:/etc/passwd", "ANYUSER", "include@R", "\u00e9@R"]
    spaced = ["sp ace@R", "#hash@R"]
    listed = json.dumps([*odd, *spaced, "unix/carol", "unix/dave@R", ALICE], ensure_ascii=False)
    acl(own, f"submit: {listed}\npromote: [promoter@R]\nrollback: [roller@R]")
    acl(own, "cancel: [canceller@R]\nread: [reader@R]", "prod")
    made = acltable.write(own.site, NOW)
    path = own.directory / "run/submitters"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    may = {*odd, "unix/dave@R", ALICE, "canceller@R", "reader@R", "promoter@R", "roller@R"}
    assert path.read_text() == made.submitters == "".join(f"princ:{n}\n" for n in sorted(may))
    assert [text for text in made.troubles if "remctld" in text] == [
        f"pocket dev: {name!r}: not in remctld's list, whose names have no spaces"
        for name in sorted(spaced)
    ]

    rules = own.directory / "remctl.conf"
    rules.write_text(f"acl check /bin/true file:{path}\n")
    env = {"SSH_CONNECTION": "127.0.0.1 1 127.0.0.1 2", "SSH_ORIGINAL_COMMAND": "acl check"}
    asked = [*may, *spaced, "unix/carol", "promoter@R", "roller@R", "nobody@R", "alice@R", "sp"]
    for who in asked:
        done = run(["/usr/sbin/remctl-shell", "-q", "-f", rules, who], env=env, check=False)
        assert (done.code == 0) == (who in may), who


def test_writers_take_turns(own: Place) -> None:
    """An answer that was asked for earlier never replaces a later one."""
    acl(own, "submit: [{command: who}]")
    program(own, f"touch {own.directory}/asked; sleep 0.5; echo old@R")
    slow = threading.Thread(target=acltable.write, args=(own.site, NOW))
    slow.start()
    until((own.directory / "asked").exists)
    other = program(own, "echo new@R", "next")
    other.replace(own.directory / "who")
    acltable.write(own.site, NOW + SECOND)
    slow.join()
    assert json.loads((own.directory / "run/door.json").read_text())["pockets"]["dev"]["actions"][
        "submit"
    ] == ["new@R"]


def door(place: Place) -> list[str]:
    value = files.read_json(place.directory / "run/door.json")
    return list(value["pockets"]["dev"]["actions"]["submit"])


def test_the_daemon_keeps_the_table(own: Place) -> None:
    own.edit("name: test\n", "name: test\n  acl_refresh: 2s\n")
    (own.directory / "list").write_text("")
    who = program(own, f"echo {ALICE}")
    acl(own, "submit: [{file: list}, {command: who}]")
    with own.daemon():
        until(lambda: door(own) == [ALICE])
        (own.directory / "list").write_text(f"{BOB}\n")
        until(lambda: door(own) == [ALICE, BOB])
        # Its answer expires between two turns, and is gone at once.
        program(own, "exit 1", "failing").replace(who)
        until(lambda: door(own) == [BOB])
        program(own, f"echo {ALICE}", "good").replace(who)
        until(lambda: door(own) == [ALICE, BOB])
    log = own.log.read_text()
    assert log.count("acl: pocket dev") >= 2
    assert "counts until" in log
    assert "it grants nothing" in log
    # The next one knows it from the start, before it has asked anybody.
    slow = program(own, "exec sleep 120", "slow")
    slow.replace(who)
    own.edit("acl_refresh: 2s", "acl_refresh: 1h")
    (own.directory / "run/door.json").unlink()
    with own.daemon() as daemon:
        assert door(own) == [ALICE, BOB]
        daemon.terminate()
        assert daemon.wait(60) == 0  # and does not wait for it


def _newer(file: Path, before: int) -> bool:
    return file.stat().st_mtime_ns > before


def test_a_configuration_that_has_changed_is_not_undone(own: Place) -> None:
    """What `acl compile` has written for the doors stays, and the daemon says what it goes by."""
    own.edit("name: test\n", "name: test\n  acl_refresh: 0.2s\n")
    acl(own, f"submit: [{ALICE}]")
    with own.daemon():
        until(lambda: door(own) == [ALICE])
        own.edit(f"submit: [{ALICE}]", f"submit: [{ALICE}, {BOB}]")
        assert own.cli("acl", "compile").code == 0
        assert door(own) == [ALICE, BOB]
        table = own.directory / "run/door.json"
        for _ in range(3):
            before = table.stat().st_mtime_ns
            until(functools.partial(_newer, table, before))
            assert door(own) == [ALICE, BOB]
        # One that cannot be used changes nothing.
        own.edit("name: test\n", "name: test\n  nonsense: 1\n")
        until(lambda: "it cannot be used" in own.log.read_text())
    told = [line for line in own.log.read_text().splitlines() if "has changed" in line]
    assert ["restart the daemon" in line for line in told] == [True, False]


def test_answers_age_while_there_is_no_notifier(own: Place) -> None:
    """As when the program fails: nobody else's rights are touched."""
    own.edit("name: test\n", "name: test\n  acl_refresh: 10m\n")
    program(own, f"echo {ALICE}")
    acl(own, f"submit: [{BOB}, {{command: who}}]")
    assert names(acltable.write(own.site, NOW)) == [ALICE, BOB]
    text = own.config.read_text().replace("  notifier: run/notify.sock\n", "")
    own.config.write_text(text.replace("name: test\n", "name: test\n  notifier: run/none.sock\n"))
    made = acltable.write(own.site, NOW + timedelta(minutes=30) - SECOND)
    assert names(made) == [ALICE, BOB]
    assert "does not answer" in made.troubles[0]
    made = acltable.write(own.site, NOW + timedelta(minutes=30))
    assert names(made) == [BOB]
    assert made.troubles[0].endswith("it grants nothing")


def test_an_answer_that_becomes_stale_between_two_turns_is_dropped_then(own: Place) -> None:
    own.edit("name: test\n", "name: test\n  acl_refresh: 1h\n")
    program(own, f"echo {ALICE}")
    acl(own, f"submit: [{BOB}, {{command: who}}]")
    acltable.write(own.site, model.utcnow() - timedelta(hours=3) + 15 * SECOND)
    program(own, "exit 1")
    with own.daemon():
        until(lambda: "counts until" in own.log.read_text())
        until(lambda: door(own) == [BOB])


def test_the_daemon_starts_while_somebody_else_compiles(own: Place) -> None:
    with files.locked(own.directory / "run/acl.lock"), own.daemon():
        assert not (own.directory / "run/door.json").exists()
    assert "the doors' table of ACLs waits" in own.log.read_text()


def test_a_daemon_that_cannot_write_the_table_goes_on(own: Place) -> None:
    (own.directory / "run/door.json").mkdir(parents=True)
    with own.daemon():
        until(lambda: "the doors' table of ACLs waits" in own.log.read_text())
        assert own.cli("queue").code == 0


@pytest.mark.parametrize("source", ["file", "command"])
def test_a_right_that_is_withdrawn_stops_the_job(
    line: tuple[Place, CannedWorker], tmp_path: Path, source: str
) -> None:
    """Between submission and take-up; the other's job, and the own one before, go on."""
    place, worker = line
    granted = place.directory / "granted"
    granted.write_text(f"{ME}\n")
    program(place, f"cat {granted}")
    acl(place, f"submit: [{{{source}: {'granted' if source == 'file' else 'who'}}}]")
    first = packages.native(tmp_path / "greet")
    place.package(first)
    second = packages.upgraded(first, "2.0")
    place.push(second)
    with place.daemon(), worker.held("build") as held:
        before = submit(place, first)
        held.wait()
        # Admitted by the daemon now, and queued behind the first: jobs of a package take turns.
        after = submit(place, second)
        granted.write_text(f"{ALICE}\n")
        held.released.set()
        assert place.ended(before).status.state == State.PUBLISHED
        job = place.ended(after)
    assert job.status.state == State.REFUSED
    (reason,) = job.status.reasons
    assert reason["code"] == "not-permitted"
    assert reason["message"] == f"{ME} may not submit to dev"
    assert [order.kind for order in worker.orders] == ["export", "build"]
    assert place.context.superproject.pin("dev", "greet") == first.commit


def submit(place: Place, repo: Repo) -> str:
    """Submit by the command line: the daemon has said that it may be."""
    value = place.json("submit", "dev", repo.name, repo.commit)
    return str(value["job"])
