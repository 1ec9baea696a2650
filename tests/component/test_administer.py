"""fsck, gc and rebuild-state through remctl: by administrators only, as jobs with a verdict."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder import pauses
from invirtibuilder.errors import Exit
from invirtibuilder.model import JOB
from invirtibuilder.run import Done, run
from invirtibuilder.spool import Request, Spool
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.aptclient import AptClient
from tests.support.doors import ALICE, BOB, Door, direct, prepare
from tests.support.place import ME, ROOT, Place, until

WHY = "a new mirror"


def job_of(done: Done) -> str:
    """The id that a call printed first."""
    name = done.text.split("\n")[0]
    assert JOB.fullmatch(name), (done.code, done.text, done.err)
    return name


@pytest.fixture
def published(door: Door) -> str:
    """A job that has published in dev; what the site has lost is made anew afterwards."""
    return door.place.ended(door.submit()).id


def test_what_administrators_may_nobody_else_may(door: Door) -> None:
    before = door.known
    for who in ("alice", "carol"):
        for command in (["fsck"], ["gc"], ["gc", "--dry-run"], ["rebuild-state", "--wait"]):
            done = door.call(who, *command)
            assert done.code in (Exit.DENIED, 255), (who, command)  # 255: remctld knows no carol
    assert door.known == before
    # Without the door's word, at the daemon.
    entry = Request.new("gc", [], principal=ME.replace("unix/", "unix/not-"), via="test")
    Spool(door.place.site.queue).put(entry)
    reason = door.place.site.queue / "bad" / f"{entry.id}.json.reason"
    until(reason.exists)
    assert entry.id not in [job.id for job in door.place.context.jobs.all()]
    for path in reason.parent.iterdir():
        path.unlink()


def test_an_administrators_act_is_also_anothers_to_cancel_and_retry(door: Door) -> None:
    place = door.place
    asked = Request.new("gc", ["--dry-run"], principal=ME, via="test")
    Spool(place.site.queue).put(asked)
    name = place.ended(asked.id).id
    for verb in ("cancel", "retry"):
        done = door.call("alice", verb, name)
        assert b"[no-job]" in done.err, (verb, done)
    done = door.call("bob", "cancel", name)
    assert (done.code, b"is done already" in done.err) == (Exit.OK, True), done
    again = place.ended(job_of(door.call("bob", "retry", name)))
    assert (again.request.principal, again.status.state) == (BOB, State.DONE)


@pytest.mark.parametrize(
    ("words", "scope"),
    [(["staging", WHY], "staging"), (["dev"], "dev"), ([], "*"), (["*", WHY], "*")],
)
def test_they_pause_and_resume(door: Door, words: list[str], scope: str) -> None:
    """Any pocket, and the whole queue: bob has no right in staging."""
    site = door.place.site
    for verb in ("pause", "resume"):
        done = door.call("alice", verb, *words[: len(words) if verb == "pause" else 1])
        assert (done.code, b"[not-permitted]" in done.err) == (Exit.DENIED, True), (verb, done)
    assert door.call("bob", "pause", *words).code == Exit.OK
    (pause,) = pauses.load(site).values()
    assert (pause.scope, pause.by, [pause.reason]) == (scope, BOB, [*words[1:], ""][:1])
    assert pause.text in door.call("bob", "queue").text
    assert pause.text in door.call("alice", "queue").text
    assert door.call("bob", "resume", *words[:1]).code == Exit.OK
    assert pauses.load(site) == {}


def test_remotely(door: Door) -> None:
    argv = [sys.executable, "-m", "invirtibuilder", "remote", "localhost", "--port", str(door.port)]
    for words, scope in ((["staging"], "staging"), ([], "*")):
        for verb, more in (("pause", ["--reason", WHY]), ("resume", [])):
            run([*argv, verb, *words, *more], cwd=ROOT, env=door.realm.of("bob"))
            found = [(each.scope, each.reason) for each in pauses.load(door.place.site).values()]
            assert found == [(scope, WHY)] * (verb == "pause")


def test_a_pocket_that_is_not_there(door: Door) -> None:
    for verb in ("pause", "resume"):
        done = door.call("bob", verb, "nowhere")
        assert (done.code, b"[no-pocket]" in done.err) == (Exit.NO_INPUT, True)
    done = door.call("bob", "fsck", "dev", "nowhere")
    assert done.code == Exit.NO_INPUT
    assert b"[no-pocket]" in done.err
    assert b"one of dev, prod, staging" in done.err


def test_fsck_of_a_clean_site_ends_with_0(door: Door, published: str) -> None:
    done = door.call("bob", "fsck", "--wait")
    assert done.code == Exit.OK, done.err
    assert "clean: 1 packages in dev, staging, prod;" in done.text
    job = door.place.ended(job_of(done))
    assert job.status.state == State.DONE
    assert job.need("fsck")["pockets"] == ["dev", "staging", "prod"]
    # Administrators see it, others do not.
    assert door.call("bob", "log", job.id).code == Exit.OK
    assert door.call("alice", "log", job.id).code == Exit.NO_INPUT


def test_fsck_of_damage_ends_with_6_and_repairs(door: Door, published: str) -> None:
    files = door.place.ended(published).need("publish")["files"]
    name = next(str(f["name"]) for f in files if str(f["name"]).endswith(".deb"))
    kept = next((door.place.site.archive / "dev/pool").rglob(name))
    data = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = door.call("bob", "fsck", "dev", "--full", "--wait")
    assert done.code == Exit.DRIFT, done.err
    assert "[file-differs]" in done.text
    assert b"[drift]" in done.err
    env = door.realm.of("bob")
    remote = ("remote", "localhost", "--port", str(door.port), "fsck", "dev", "--full", "--wait")
    argv = [sys.executable, "-m", "invirtibuilder", *remote]
    assert run(argv, cwd=ROOT, env=env, check=False).code == Exit.DRIFT
    assert door.place.ended(job_of(done)).status.state == State.FAILED
    assert door.call("bob", "fsck", "dev", "--full", "--repair", "--wait").code == Exit.OK
    assert kept.read_bytes() == data


def test_fsck_makes_sources_anew_with_a_builders_place(door: Door, published: str) -> None:
    done = door.call("bob", "fsck", "dev", "--level=c", "--wait")
    assert done.code == Exit.OK, (done.text, done.err)
    assert "not exported again" not in done.text
    assert door.place.ended(door.submit()).id  # the place was given back


def test_gc_says_what_it_would_do_and_does_it(door: Door, published: str) -> None:
    stray = door.place.site.archive / "dev/pool/main/s/stray/stray_1_all.deb"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"stray")
    done = door.call("bob", "gc", "--dry-run", "--wait")
    assert done.code == Exit.OK, done.err
    assert (
        "file pool/main/s/stray/stray_1_all.deb (5 bytes): no kept publication has it" in done.text
    )
    assert stray.exists()
    done = door.call("bob", "gc")
    job = door.place.ended(job_of(done))
    assert job.need("gc")["gone"][0]["name"].endswith("stray_1_all.deb")
    assert not stray.exists()


def test_rebuild_state_beside_the_daemon(door: Door, published: str) -> None:
    site = door.place.site
    shutil.rmtree(site.jobs / published)
    shutil.rmtree(site.archive / "dev/publications")
    (site.archive / "dev/dists").unlink()
    done = door.call("bob", "rebuild-state", "--wait")
    assert done.code == Exit.OK, (done.text, done.err)
    assert f"dev: job {published}" in done.text
    assert door.place.ended(published).status.state == State.PUBLISHED
    again = door.call("bob", "rebuild-state", "--wait")
    assert "nothing was missing" in again.text


def test_what_a_daemon_has_not_finished_the_next_one_does(own: Place) -> None:
    """Be it stopped or killed in the middle: each act may begin anew."""
    jobs = []
    for action in ("fsck", "gc", "rebuild-state"):
        request = Request.new(action, [], principal=ME, via="test")
        jobs.append(own.context.jobs.create(request))
        jobs[-1].move(State.RUNNING)
    with own.daemon():
        assert [own.ended(job.id).status.state for job in jobs] == [State.DONE] * 3


def test_the_log_of_what_is_not_taken_up_yet_says_so(own: Place) -> None:
    with own.daemon():
        until((own.directory / "run/door.json").exists)
    done = direct(own, BOB, "submit", "dev", "greet", "main")
    shown = direct(own, BOB, "log", job_of(done))
    assert (shown.code, shown.text) == (Exit.OK, f"{job_of(done)} is queued, not taken up yet")
    assert own.cli("log", job_of(done)).text == shown.text
    assert direct(own, ALICE, "log", job_of(done)).code == Exit.NO_INPUT
    with own.daemon("--drain"):
        assert own.ended(job_of(done)).status.state == State.REFUSED


@pytest.fixture
def own() -> Iterator[Place]:
    with places.canned() as (place, _):
        prepare(place)
        yield place


def test_rebuild_state_while_others_publish(own: Place, tmp_path: Path) -> None:
    """What is published meanwhile is neither lost nor published twice."""
    repos = [packages.native(tmp_path / f"p{n}", f"pack{n}") for n in range(4)]
    for repo in repos:
        own.package(repo)
    with own.daemon():
        jobs = []
        for repo in repos:
            jobs.append(own.cli("submit", "dev", repo.name, "main", check=True).text)
            act = Request.new("rebuild-state", [], principal=ME, via="test")
            Spool(own.site.queue).put(act)
            jobs.append(act.id)
        states = [own.ended(job).status.state for job in jobs]
    assert states == [State.PUBLISHED, State.DONE] * 4, [own.ended(j).status for j in jobs]
    assert own.cli("fsck", "--full").code == Exit.OK
    client = AptClient(folder=tmp_path / "apt")
    client.configure(own.cli("sources", "dev", check=True).text)
    client.update()
    assert all(client.candidate(repo.name) for repo in repos)
