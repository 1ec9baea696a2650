"""The doors: the real remctl, remctld, KDC and sshd, in front of a daemon with a canned worker."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from invirtibuilder.run import run, started_group
from tests.support import packages
from tests.support import place as places
from tests.support.doors import ALICE, BOB, CAROL, Door, direct, followers, installed, prepare
from tests.support.kdc import remctl
from tests.support.place import until

VERBS = ["submit", "promote", "rollback", "check", "status", "log", "queue", "cancel", "retry"]
VERBS += ["pause", "resume", "pockets", "packages", "acl", "sources", "diff"]
VERBS += ["fsck", "gc", "rebuild-state", "help"]


def test_help_shows_own_pockets(door: Door) -> None:
    summary = remctl(door.realm, "alice", door.port, "help", check=True).text
    assert re.findall(r"^build ([a-z-]+)", summary, re.M) == VERBS
    assert summary.endswith(f"You are {ALICE}. Your pockets: dev, staging")
    assert door.call("bob", "help").text.endswith(f"You are {BOB}. Your pockets: dev")
    one = remctl(door.realm, "alice", door.port, "help", "build", "submit", check=True).text
    assert one.startswith("build submit POCKET PACKAGE COMMIT\n")
    assert "Exit codes: 0 done" in one
    assert door.call("alice", "help", "submit").text == one
    assert door.call("alice", "help", "nonsense").code == 64


def test_who_may_do_nothing_stays_outside(door: Door) -> None:
    before = door.known
    for command in (["submit", "dev", "greet", "main"], ["queue"], ["help"]):
        done = door.call("carol", *command)
        assert (done.code, done.err) == (255, b"Access denied\n")
    # One who got past remctld's list all the same, without a pocket.
    assert direct(door.place, CAROL, "submit", "dev", "greet", "main").code == 77
    assert direct(door.place, CAROL, "packages").code == 77
    for verb in ("status", "queue", "pockets", "acl"):
        assert "greet" not in direct(door.place, CAROL, verb).text
    assert door.known == before


def test_from_submission_to_sources(door: Door) -> None:
    done = door.call("alice", "check", "dev", "greet", "main")
    assert done.code == 0
    assert re.fullmatch(r"greet \S+ \([0-9a-f]{40}\) may go to dev", done.text)
    done = door.call("alice", "submit", "dev", "greet", "main")
    assert done.code == 0
    assert re.fullmatch(rb"accepted: greet \S+ from [0-9a-f]{40}\n", done.err)
    job = done.text
    request = door.place.ended(job).request
    assert (request.principal, request.via, request.addr) == (ALICE, "remctl", "127.0.0.1")
    status = door.call("bob", "status", job[-9:])
    assert status.code == 0
    assert "\nstate      published since " in status.text
    assert f"by         {ALICE} via remctl" in status.text
    assert f"{job}  published" in door.call("alice", "status").text
    log = door.call("alice", "log", job)
    assert log.code == 0
    assert log.text.endswith(f"---- build-1 ----\norder build {job}.build-1")
    assert door.call("alice", "queue").text == "no job is queued or running"
    assert door.call("alice", "packages").text == "greet"
    own = door.call("bob", "pockets").text.splitlines()
    assert len(own) == 2
    assert re.match(r"dev +bookworm +yes +cancel,submit +any commit", own[1])
    assert door.call("bob", "acl").text == "dev: cancel,submit"
    who = door.call("bob", "acl", "dev").text.splitlines()
    assert f"submit: {ALICE}, {BOB}, {places.ME}" in who
    assert "promote: nobody" in who
    assert door.call("bob", "acl", "staging").code == 77
    differs = door.call("alice", "diff", "dev@1999-01-01", "dev")
    assert differs.code == 3, "nothing is of that date"
    differs = door.call("alice", "diff", "staging", "dev")
    assert differs.text.splitlines()[0] == "--- staging empty"
    assert "\n+ greet " in differs.text
    # In the words of a pocket that is not there.
    hidden = door.call("bob", "diff", "staging", "dev")
    assert (hidden.code, b"[not-permitted]" in hidden.err) == (77, True)
    assert door.call("bob", "diff", "dev", "dev").text.endswith("no difference")
    assert door.call("bob", "diff", "dev").code == 64
    # A commit says of which pocket it is, and the date beside it.
    tip = door.place.context.superproject.tip("dev") or ""
    assert door.call("bob", "diff", tip[:12], "2999-01-01").text.endswith("no difference")
    dates = door.call("bob", "diff", "2026-01-01", "2999-01-01")
    assert (dates.code, b"of which pocket?" in dates.err) == (3, True)
    sources = door.call("bob", "sources", "dev")
    assert "\nSuites: dev\n" in sources.text
    assert "BEGIN PGP PUBLIC KEY BLOCK" in sources.text
    assert door.call("bob", "sources", "staging").code == 77
    assert "Pin-Priority: 1001" in door.call("bob", "sources", "dev", "downgrade").text
    was = door.call("bob", "sources", "dev", "at", "2999-01-01").text
    assert re.search(r"^URIs: file:.*/dev/publications/[0-9]{8}$", was, re.M)
    gone = door.call("bob", "sources", "dev", "at", "1999-01-01")
    assert (gone.code, b"[no-state]" in gone.err) == (3, True)


def test_refusals(door: Door) -> None:
    before = door.known
    refused = door.call("bob", "submit", "staging", "greet", "main")
    unknown = door.call("bob", "submit", "nowhere", "greet", "main")
    assert refused.code == unknown.code == 77
    assert b"may not submit in staging [not-permitted]\n  hint: your pockets: dev" in refused.err
    assert refused.err.replace(b"staging", b"nowhere") == unknown.err
    # All reasons of the daemon, before anything is queued.
    none = door.call("alice", "submit", "dev", "none", "main")
    assert none.code == 3
    assert b"[no-package]" in none.err
    none = door.call("alice", "check", "staging", "greet", "no-such-branch")
    assert none.code == 3
    assert b"no-such-branch" in none.err
    assert door.known == before


def test_cancel_and_retry(door: Door) -> None:
    """Own jobs always, others' with the right to; a pocket that one may not see hides its jobs."""
    with door.worker.held("build") as held:
        first = door.submit("alice", "dev")
        held.wait()
        queue = door.call("bob", "queue").text
        assert re.search(rf"{first}  running +build", queue)
        assert door.call("bob", "retry", first).code == 65
        assert door.call("bob", "cancel", first).text == f"asked to cancel job {first}"
        assert door.place.ended(first).status.cancel_by == BOB
    assert door.call("alice", "cancel", first).code == 0
    again = door.call("alice", "retry", first)
    assert again.code == 0, again.err
    assert door.place.ended(again.text).request.principal == ALICE
    # Neither bob's nor in a pocket of his.
    with door.worker.held("build") as held:
        hidden = door.submit("alice", "staging")
        held.wait()
        assert door.call("bob", "cancel", hidden).code == 66
        assert door.call("bob", "log", hidden).code == 66
        assert hidden not in door.call("bob", "queue").text
        # His own, but not hers: she has no `cancel` in dev.
        theirs = door.submit("bob", "dev")
        assert door.call("alice", "cancel", theirs).code == 77
        assert door.call("bob", "cancel", theirs).code == 0
        assert door.call("alice", "cancel", hidden).code == 0
        door.place.ended(hidden)
        door.place.ended(theirs)


def test_follow_ends_with_the_job_or_the_caller(door: Door) -> None:
    env = door.realm.of("alice")
    # Into a file, remctl itself would keep everything until its end.
    argv = ["stdbuf", "-oL", "remctl", "-p", str(door.port), "-s", "host/localhost"]
    argv += ["localhost", "build", "log"]
    with door.worker.held("build") as held:
        job = door.submit()
        held.wait()
        with started_group([*argv, job, "follow"], env=env) as client:
            until(lambda: followers(job), "nobody follows")
            client.kill()
            client.wait()
            killed = time.monotonic()
            # Nothing is logged: only the sign of life finds out.
            until(lambda: not followers(job), "it follows for ever")
            assert time.monotonic() - killed < 60
        out = door.log.with_name("followed")
        with (
            out.open("wb") as file,
            started_group([*argv, job, "follow"], env=env, stdout=file) as it,
        ):
            until(lambda: b"---- build-1 ----" in out.read_bytes())
            assert it.poll() is None
            held.released.set()
            assert it.wait(30) == 0
    # Not the last line: the journal comes before the log of what was written since one looked.
    assert "running -> published" in out.read_text()


def test_the_log_is_harmless(door: Door) -> None:
    job = door.place.ended(door.submit())
    log = next(job.directory.glob("attempts/build-1/log"))
    log.write_bytes(log.read_bytes() + b"\x1b]0;owned\x07\x1b[2J \xff \xe2\x80\xae\r\n")
    out = door.call("alice", "log", job.id).out
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", out)
    assert rb"\x1b]0;owned\x07\x1b[2J" in out
    assert rb"\u202e" in out


@pytest.mark.parametrize(
    "who",
    ["", "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", "WELLKNOWN/ANONYMOUS@BUILD.TEST"]
    + [
        "alice@OTHER.TEST",
        "Alice@BUILD.TEST",
        "alice/admin@BUILD.TEST",
        "alice",
        "a\nb",
        "x" * 300,
    ],
)
def test_nobody_else_is_alice(door: Door, who: str) -> None:
    before = door.known
    done = direct(door.place, who, "submit", "dev", "greet", "main")
    assert done.code == 77, done.err
    assert len(done.err.splitlines()) <= 2
    assert door.known == before


def test_a_request_that_was_set_aside(door: Door) -> None:
    """The daemon judges by its own ACL: a door that was deceived gets nowhere."""
    job = door.place.ended(door.submit("alice")).id
    folder = door.place.directory.parent / "deceived"
    folder.mkdir()
    table = json.loads((door.place.directory / "run/door.json").read_text())
    table["pockets"]["dev"]["actions"]["cancel"].append(CAROL)
    (folder / "door.json").write_text(json.dumps(table))
    program = (installed(door.place) / "build").read_text()
    program = re.sub("(?m)^TABLE = .*", f"TABLE = {str(folder / 'door.json')!r}", program)
    (folder / "build").write_text(program)
    (folder / "build").chmod(0o755)
    done = direct(door.place, CAROL, "retry", job, folder=folder)
    assert done.code == 77
    assert f"{CAROL} may not do this to job {job} [set-aside]" in done.err.decode()
    (bad,) = [p.stem for p in (door.place.site.queue / "bad").glob("*.json")]
    assert direct(door.place, CAROL, "status", bad, folder=folder).code == 77
    assert direct(door.place, ALICE, "status", bad).code == 66


def test_no_table_and_a_stale_one(door: Door, tmp_path: Path) -> None:
    folder = installed(door.place)
    table = json.loads((door.place.directory / "run/door.json").read_text())
    program = (folder / "build").read_text()
    path = tmp_path / "door.json"
    program = re.sub("(?m)^TABLE = .*", f"TABLE = {str(path)!r}", program)
    (tmp_path / "build").write_text(program)
    (tmp_path / "build").chmod(0o755)
    before = door.known
    words = ("submit", "dev", "greet", "main")
    for content in (None, "", "[]", '{"v": 2}', "\x1b"):
        if content is not None:
            path.write_text(content)
        done = direct(door.place, ALICE, *words, folder=tmp_path)
        assert done.code == 69
        assert b"[no-table]" in done.err
    table["pockets"]["dev"]["expires"] = "2026-01-02T03:04:05.000Z"
    path.write_text(json.dumps(table))
    done = direct(door.place, ALICE, *words, folder=tmp_path)
    assert done.code == 69
    assert b"the answer is stale since 2026-01-02T03:04:05.000Z [acl-stale]" in done.err
    assert "stale" in direct(door.place, ALICE, "pockets", folder=tmp_path).text
    assert direct(door.place, CAROL, *words, folder=tmp_path).code == 77
    # Another pocket is not touched by it.
    assert direct(door.place, ALICE, "acl", "staging", folder=tmp_path).code == 0
    assert door.known == before


def test_a_program_that_does_not_find_its_code(door: Door, tmp_path: Path) -> None:
    """1 is remctl's own code for no ticket."""
    text = (installed(door.place) / "build").read_text()
    (tmp_path / "build").write_text(re.sub("(?m)^CODE = .*", "CODE = '/nonexistent'", text))
    (tmp_path / "build").chmod(0o755)
    done = direct(door.place, ALICE, "queue", folder=tmp_path)
    assert done.code == 71
    assert done.err.startswith(f"error: CODE in {tmp_path}/build is wrong: ".encode())


def test_with_the_daemon_down(tmp_path: Path) -> None:
    with places.place() as place:
        prepare(place)
        repo = packages.native(tmp_path / "greet")
        place.package(repo)
        place.cli("acl", "compile", check=True)
        assert direct(place, ALICE, "check", "dev", "greet", "main").code == 69
        done = direct(place, ALICE, "submit", "dev", "greet", "main", REMOTE_ADDR="192.0.2.1")
        assert done.code == 0
        assert b"accepted, but not checked yet" in done.err
        (entry,) = (place.site.queue / "new").iterdir()
        value = json.loads(entry.read_text())
        assert value["id"] == done.text == entry.stem
        assert (value["principal"], value["addr"]) == (ALICE, "192.0.2.1")
        assert "state      not taken up yet" in direct(place, ALICE, "status", done.text).text
        assert direct(place, ALICE, "queue").text.endswith(f"not taken up yet: {done.text}")
        assert direct(place, BOB, "status", done.text).code == 66
        assert done.text not in direct(place, BOB, "queue").text
        assert direct(place, ALICE, "submit", "dev", "greet", "x y").code == 3
        assert len(list((place.site.queue / "new").iterdir())) == 1


def test_it_starts_fast(door: Door) -> None:
    """What costs more than the call itself is not imported."""
    program = installed(door.place) / "build"
    done = run(
        ["/usr/bin/python3", "-IS", "-X", "importtime", program, "help"],
        env={"REMOTE_USER": ALICE, "REMCTL_COMMAND": "build"},
    )
    modules = set(re.findall(r"\| +(\S+)$", done.err.decode(), re.M))
    assert {"json", "re", "invirtibuilder.door.remctl"} <= modules
    slow = {"dataclasses", "pathlib", "typing", "inspect", "traceback", "argparse", "subprocess"}
    slow |= {"shutil", "secrets", "site", "socket", "yaml", "git", "debian", "gssapi", "logging"}
    assert not modules & slow
