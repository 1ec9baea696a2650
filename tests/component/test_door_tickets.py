"""Who a Kerberos ticket makes one at the door: anonymous, foreign, expired, out of its time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from invirtibuilder.run import Done, run
from tests.support import packages
from tests.support import place as places
from tests.support.doors import ALICE, Door, direct, installed, prepare
from tests.support.kdc import ANONYMOUS, FOREIGN, Realm, remctl, remctld, shifted
from tests.support.place import ROOT, Place, until

STRANGERS = {ANONYMOUS: Realm.anonymous, f"alice@{FOREIGN}": Realm.foreign}
SUBMIT = ("submit", "dev", "greet", "main")


def remote(
    env: Mapping[str, str], port: int, *words: str, service: str = "host", cwd: Path = ROOT
) -> Done:
    """Our own client's `remote`."""
    argv = [sys.executable, "-m", "invirtibuilder", "remote", "--port", str(port)]
    argv += ["--service", service, "localhost", *words]
    return run(argv, cwd=cwd, env={**env, "PYTHONPATH": str(ROOT)}, check=False, timeout=60)


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_whom_nobody_named(door: Door, who: str) -> None:
    before = door.known
    env = STRANGERS[who](door.realm)
    for words in (SUBMIT, ("queue",), ("acl", "dev"), ("help",)):
        done = remctl(door.realm, env, door.port, "build", *words)
        assert (done.code, done.out, done.err) == (255, b"", b"Access denied\n")
    done = remctl(door.realm, env, door.port, "help")
    assert (done.code, done.out) == (255, b"")
    done = remote(env, door.port, "queue")
    assert (done.code, done.err) == (77, b"error: remctld: Access denied [access-denied]\n")
    assert door.known == before


@dataclass(frozen=True, kw_only=True)
class Open:
    """A site with a remctld and alice in dev, by a source of the test's choice."""

    place: Place
    realm: Realm
    port: int
    folder: Path

    def name(self, source: str, *principals: str) -> None:
        """Let these submit to dev, by a list, a file or a program."""
        (self.folder / "people").write_text("".join(f"{p}\n" for p in principals))
        program = self.folder / "who"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{p}'\n" for p in principals))
        program.chmod(0o755)
        sources = {
            "list": ", ".join(f'"{p}"' for p in principals),
            "file": f"{{file: {self.folder}/people}}",
            "command": f"{{command: {program}}}",
        }
        text = self.place.config.read_text()
        head, mark, rest = text.partition("  dev:\n")
        before, submit, after = rest.partition("      submit: ")
        after = after.partition("\n")[2]
        made = f"{head}{mark}{before}{submit}[{sources[source]}]\n{after}"
        self.place.config.write_text(made)


@pytest.fixture()
def opened(realm: Realm, tmp_path: Path) -> Iterator[Open]:
    with places.canned() as (place, _):
        prepare(place)
        place.package(packages.native(tmp_path / "greet"))
        with remctld(realm, installed(place) / "conf") as port:
            yield Open(place=place, realm=realm, port=port, folder=tmp_path)


@pytest.mark.parametrize("source", ["list", "file", "command"])
def test_strangers_who_were_named(opened: Open, source: str) -> None:
    """By whatever source: admitted there, and nowhere else; a file or program counts at once."""
    place = opened.place
    envs = {who: ticket(opened.realm) for who, ticket in STRANGERS.items()}

    def call(who: str, *words: str) -> Done:
        return remctl(opened.realm, envs[who], opened.port, "build", *words)

    opened.name(source, ALICE)
    with contextlib.ExitStack() as running:
        if source != "list":  # the configuration is the daemon's as it was when it started
            running.enter_context(place.daemon())
            until(lambda: ALICE in (place.directory / "run/submitters").read_text())
            assert [call(who, *SUBMIT).code for who in STRANGERS] == [255, 255]
        opened.name(source, ALICE, *STRANGERS)
        if source == "list":
            running.enter_context(place.daemon())
        place.cli("acl", "compile", check=True)
        for who in STRANGERS:
            done = call(who, *SUBMIT)
            assert done.code == 0, done.err
            assert done.err.startswith(b"accepted: greet ")
            job = place.ended(done.text)
            assert (job.request.principal, job.status.state) == (who, "published")
            assert call(who, "help").text.endswith(f"You are {who}. Your pockets: dev")
            assert call(who, "submit", "staging", "greet", "main").code == 77
            assert call(who, "cancel", job.id).code == 0
            # Only that name: neither the instance alone nor another realm's.
            for other in (who.partition("@")[0], f"{who}X", who.replace("@", "@X")):
                assert direct(place, other, *SUBMIT).code == 77
        assert remote(envs[ANONYMOUS], opened.port, "status", job.id).code == 0
        if source != "list":
            opened.name(source, ALICE)
            place.cli("acl", "compile", check=True)
            assert [call(who, "status", job.id).code for who in STRANGERS] == [255, 255]


def test_nobody_at_all_is_refused_whatever_is_named(opened: Open) -> None:
    """An empty name is none that an ACL could hold."""
    opened.name("command", ALICE, "")
    opened.place.cli("acl", "compile", check=True)
    assert direct(opened.place, ALICE, "acl", "dev").code == 0
    done = direct(opened.place, "", *SUBMIT)
    assert (done.code, done.err) == (
        77,
        b"error: nobody is asking: the principal is empty [no-principal]\n",
    )
    assert not list((opened.place.site.queue / "new").iterdir())


SKEWED = {
    # Seconds by which the client's clock is ahead, which ticket it has: what remctl says, what
    # `remote` says.
    "+4 min": (240, "old", "", 0, ""),
    "-4 min": (-240, "old", "", 0, ""),
    "+10 min": (600, "old", "Clock skew too great", 71, "clock-skew"),
    "-10 min": (-600, "old", "Clock skew too great", 71, "clock-skew"),
    "-10 min, used before": (-600, "used", "Ticket not yet valid", 71, "clock-skew"),
    # With the KDC's time from kinit the library knows how wrong its clock is.
    "+10 min, also for kinit": (600, "new", "", 0, ""),
    "-10 min, also for kinit": (-600, "new", "", 0, ""),
    "+11 h": (11 * 3600, "old", "Ticket expired", 77, "expired"),
}


@pytest.mark.parametrize("case", SKEWED)
def test_clocks_that_differ(door: Door, tmp_path: Path, case: str) -> None:
    seconds, which, said, code, short = SKEWED[case]
    before = door.known
    clock = shifted(tmp_path, seconds)
    ticket = door.realm.ticket("alice", env=clock if which == "new" else {})
    env = {**door.realm.env, "KRB5CCNAME": f"FILE:{ticket}"}
    if which == "used":
        assert remctl(door.realm, env, door.port, "build", "queue").code == 0
    env |= clock
    done = remctl(door.realm, env, door.port, "build", "check", *SUBMIT[1:])
    ours = remote(env, door.port, "check", *SUBMIT[1:], "--no-check", cwd=tmp_path)
    if said:
        assert (done.code, done.out) == (1, b"")
        assert done.err.startswith(b"remctl: GSS-API error initializing context: ")
        assert done.err.decode().rstrip().endswith(said)
        assert (ours.code, ours.out) == (code, b"")
        assert f"[{short}]\n  hint: " in ours.err.decode()
        done = remctl(door.realm, env, door.port, "build", *SUBMIT)
        assert done.code == 1
    else:
        assert done.code == ours.code == 0, (done.err, ours.err)
    assert door.known == before


def test_a_server_whose_clock_differs(realm: Realm, opened: Open) -> None:
    env = realm.of("alice")
    conf = installed(opened.place) / "conf"
    with remctld(realm, conf, env=shifted(opened.folder, 900)) as port:
        done = remctl(realm, env, port, "build", *SUBMIT)
        assert (done.code, done.out) == (1, b"")
        assert b"Clock skew too great" in done.err
        ours = remote(env, port, "queue")
        assert ours.code == 71
        assert b"[clock-skew]\n  hint: set this machine's clock, then kinit\n" in ours.err
    assert not list((opened.place.site.queue / "new").iterdir())


def test_wrong_service_and_no_ticket(door: Door) -> None:
    before = door.known
    good = door.realm.of("alice")
    for env, service, said, code, short in (
        # Nobody of that name; one that is not remctld's; one whose key remctld has not.
        (good, "host/elsewhere", "not found in Kerberos database", 69, "no-service"),
        (good, "HTTP/localhost", "not found in Kerberos database", 69, "no-service"),
        (door.realm.env, "host/localhost", "No Kerberos credentials available", 77, "no-ticket"),
    ):
        argv = ["remctl", "-p", str(door.port), "-s", service, "localhost", "build", *SUBMIT]
        done = run(argv, env=env, check=False, timeout=60)
        assert (done.code, done.out) == (1, b"")
        assert done.err.startswith(b"remctl: GSS-API error ")
        assert said in done.err.decode()
        ours = remote(env, door.port, "queue", service=service)
        assert (ours.code, ours.out) == (code, b"")
        assert said in ours.err.decode()
        assert f"[{short}]\n  hint: " in ours.err.decode()
    argv = ["remctl", "-p", str(door.port), "-s", ALICE, "localhost", "build", *SUBMIT]
    done = run(argv, env=good, check=False, timeout=60)
    assert (done.code, done.out) == (1, b"")
    assert door.known == before
