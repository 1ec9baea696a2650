"""promote and rollback on the command line and through the real remctld, with a daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from invirtibuilder.errors import Exit
from invirtibuilder.model import JOB
from invirtibuilder.run import run
from tests.support import packages
from tests.support import place as places
from tests.support.doors import ALICE, CAROL, Door, installed, prepare
from tests.support.kdc import Realm, remctld
from tests.support.place import ROOT, Place, until


@pytest.fixture(scope="module")
def site(realm: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Alice may promote to prod, carol may only roll staging back; I may do both everywhere."""
    folder = tmp_path_factory.mktemp("moves")
    repo = packages.native(folder / "greet")
    with places.canned() as (place, worker):
        prepare(place)
        head, *parts = place.config.read_text().split("    acl:\n")
        acls = ("", f"rollback: [{CAROL}, {places.ME}]", f"promote: [{ALICE}, {places.ME}]")
        text = head
        for part, line in zip(parts, acls, strict=True):
            text += f"    acl:\n      {line}\n{part}" if line else f"    acl:\n{part}"
        place.config.write_text(text.replace(f"submit: [{ALICE}]", f"submit: [{places.ME}]"))
        place.package(repo)
        conf = installed(place) / "conf"
        log = folder / "remctld.log"
        with place.daemon(), remctld(realm, conf, log) as port:
            until((place.directory / "run/door.json").exists)
            yield Door(place=place, worker=worker, realm=realm, port=port, log=log, repo=repo)


LOWER = (
    b"\nAPT replaces what clients have installed by a lower version only with the preferences that"
    b" `sources staging --downgrade` prints (Pin-Priority 1001), or with --allow-downgrades\n"
)


def version(place: Place, pocket: str) -> str:
    """What greet is there now."""
    record = place.context.superproject.record(place.site.pockets[pocket].branch, "greet")
    return str((record or {}).get("version", ""))


def test_up_and_back(site: Door) -> None:
    place, repo = site.place, site.repo
    done = place.cli("submit", "staging", "greet", "main", "--wait")
    assert done.code == 0, done.err
    first = place.context.superproject.tip("staging") or ""

    done = place.cli("promote", "staging", "prod", "greet", "--wait")
    assert done.code == 0, done.err
    assert b"accepted: greet: 1.0 moves" in done.err
    assert JOB.fullmatch(done.text)
    assert version(place, "prod") == "1.0"
    assert f"{done.text}  published" in place.cli("status").text
    assert "asked      promote staging prod greet\n" in place.cli("status", done.text).text
    published = place.json("status", done.text)["published"]
    assert [p["package"] for p in published["packages"]] == ["greet"]

    second = packages.upgraded(repo, "1.1")
    place.push(second)
    done = place.cli("submit", "staging", "greet", "main", "--wait")
    assert done.code == 0, done.err
    higher = place.context.superproject.tip("staging") or ""
    # Through remctl, and built by the daemon on the way.
    built = site.call("alice", "submit", "dev", "greet", "main")
    assert place.ended(built.text).status.state == "published"
    done = site.call("alice", "promote", "dev", "prod", "greet")
    assert done.code == 0, done.err
    assert b"is rebuilt as 1.1: its version is dev's own" in done.err
    assert place.ended(done.text).status.state == "published", place.log.read_text()
    assert version(place, "prod") == "1.1"
    status = site.call("alice", "status", done.text)
    assert "state      published" in status.text
    parts = [j for j in place.context.jobs.all() if j.part_of]
    assert [(j.part_of, j.request.principal) for j in parts] == [(done.text, ALICE)]
    assert place.ended(parts[0].id).status.state == "published"

    done = site.call("carol", "rollback", "staging", first[:10])
    assert done.code == 0, done.err
    assert b"accepted: greet: 1.1 becomes 1.0" in done.err
    assert LOWER in done.err
    assert place.ended(done.text).status.state == "published"
    assert version(place, "staging") == "1.0"
    assert site.call("carol", "status", done.text).code == 0
    # What it names is there for whoever was told so.
    told = site.call("carol", "sources", "staging", "--downgrade")
    assert "Pin-Priority: 1001" in told.text
    # From another machine, and at the site; it is told before anybody waits.
    remote = ("remote", "--port", str(site.port), "localhost", "rollback", "staging", higher)
    argv = [sys.executable, "-m", "invirtibuilder", *remote, "--wait"]
    done = run(argv, cwd=ROOT, env=site.realm.of("carol"), check=False)
    assert done.code == 0, done.err
    assert LOWER in done.err
    assert version(place, "staging") == "1.1"
    done = place.cli("rollback", "staging", first, "--wait")
    assert done.code == 0, done.err
    assert done.err.index(LOWER) < done.err.index(b"published")
    assert version(place, "staging") == "1.0"
    # Pins, tags, records, files and publications are one, all the same.
    checked = place.cli("fsck")
    assert checked.code == 0, (checked.text, checked.err)


BAD = [
    (["promote", "staging", "prod", "nonesuch"], {"not-in-pocket"}),
    (["promote", "staging", "staging", "greet"], {"same-pocket", "not-permitted"}),
    (["promote", "staging", "nowhere", "greet"], {"no-pocket"}),
    (["promote", "dev", "staging", "nonesuch"], {"not-permitted", "not-in-pocket"}),
    (["rollback", "nowhere", "2026-01-31"], {"no-pocket"}),
    (["rollback", "prod", "1999-01-31"], {"not-permitted", "no-state"}),
    (["rollback", "staging", "1999-01-31"], {"no-state"}),
    (["rollback", "staging", "0" * 40], {"no-state"}),
    (["rollback", "staging", "yesterday"], {"bad-moment"}),
    (["rollback", "staging", "2999-01-31", "--package", "nonesuch"], {"not-in-pocket"}),
]
AT_THE_DOOR = [
    (Exit.USAGE, ["promote", "staging", "prod"]),
    (Exit.USAGE, ["rollback", "staging"]),
    (Exit.REFUSED, ["promote", "staging", "prod", "../greet"]),
    (Exit.REFUSED, ["promote", "staging", "prod\n", "greet"]),
    (Exit.REFUSED, ["rollback", "staging", "--all"]),
    (Exit.DENIED, ["promote", "prod", "staging", "greet"]),
    (Exit.DENIED, ["promote", "staging", "nowhere", "greet"]),
    (Exit.DENIED, ["rollback", "prod", "2026-01-31"]),
    (Exit.REFUSED, ["promote", "staging", "prod", "nonesuch"]),
    (Exit.REFUSED, ["promote", "prod", "prod", "greet"]),
]


def test_bad_input(site: Door) -> None:
    known = site.known
    for words, codes in BAD:
        done = site.place.cli(*words, "--json")
        found = {reason["code"] for reason in json.loads(done.out)["reasons"]}
        assert found == codes, words
        assert done.code == (Exit.DATA if "bad-moment" in codes else Exit.REFUSED)
    for code, args in AT_THE_DOOR:
        told = site.call("alice", *args)
        assert (told.code, told.out) == (code, b""), (args, told)
    assert site.known == known


def test_help(site: Door) -> None:
    for verb in ("promote", "rollback"):
        assert f"usage: invirtibuilder {verb}" in site.place.cli(verb, "--help").text
        told = site.call("alice", "help", verb).text
        assert told.startswith(f"build {verb} ")
