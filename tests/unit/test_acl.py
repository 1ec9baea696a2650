"""Who may: exact principals from a list, a file or a program; what fails grants nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from invirtibuilder import acl
from invirtibuilder.settings import AclEntry

ALICE = "alice@EXAMPLE.ORG"


def ask(*entries: AclEntry, who: str = ALICE) -> tuple[bool, int]:
    """Whether the principal may, and how many troubles there were."""
    ok, troubles = acl.allowed(who, entries, pocket="staging", action="submit")
    assert all(t.code == "acl-unreadable" and t.message.isprintable() for t in troubles)
    return ok, len(troubles)


def program(path: Path, script: str) -> AclEntry:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return AclEntry(command=path)


def file(path: Path, data: bytes) -> AclEntry:
    path.write_bytes(data)
    return AclEntry(file=path)


def test_nobody_is_allowed_by_nothing() -> None:
    assert ask() == (False, 0)
    assert ask(AclEntry()) == (False, 1)


@pytest.mark.parametrize(
    "who",
    ["alice@example.org", "ALICE@EXAMPLE.ORG", "alice", "alice@EXAMPLE.ORG ", "", "*", "unix/a"],
)
def test_names_are_exact(tmp_path: Path, who: str) -> None:
    entries = [
        AclEntry(principal=ALICE),
        file(tmp_path / "file", f"{ALICE}\n*\n".replace("*", "# *").encode()),
        program(tmp_path / "program", f"echo {ALICE}"),
    ]
    for entry in entries:
        assert ask(entry) == (True, 0)
        assert ask(entry, who=who) == (False, 0)
    assert ask(*entries, who=who) == (False, 0)


def test_a_file(tmp_path: Path) -> None:
    entry = file(tmp_path / "f", b"# carol@R\n\n  bob@R \r\n" + ALICE.encode())
    assert [ask(entry, who=w)[0] for w in (ALICE, "bob@R", "carol@R", "# carol@R", "")] == [
        *(True, True, False, False, False)
    ]
    # A separator of Unicode's is no end of a line.
    entry = file(tmp_path / "g", "evil\u2028alice@EXAMPLE.ORG\n".encode())
    assert ask(entry) == (False, 0)


def test_files_that_cannot_be_read_grant_nothing(tmp_path: Path) -> None:
    name = ALICE.encode() + b"\n"
    os.mkfifo(tmp_path / "fifo")
    file(tmp_path / "good", name)
    (tmp_path / "link").symlink_to("good")
    for entry in (
        AclEntry(file=tmp_path / "no"),
        AclEntry(file=tmp_path),
        AclEntry(file=tmp_path / "fifo"),
        AclEntry(file=tmp_path / "link"),
        file(tmp_path / "latin", name + b"\xff\n"),
        file(tmp_path / "large", name + b"#" * (1 << 20)),
    ):
        assert ask(entry) == (False, 1)
        # The next source is asked all the same.
        assert ask(entry, AclEntry(principal=ALICE)) == (True, 1)


def test_a_program_is_told_the_pocket_and_the_action(tmp_path: Path) -> None:
    entry = program(tmp_path / "p", 'echo "$#-$1-$2"; env')
    assert ask(entry, who="2-staging-submit") == (True, 0)
    assert ask(entry, who="HOME=/nonexistent") == (True, 0)


def test_programs_that_fail_grant_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acl, "TIMEOUT", 0.3)
    for name, script in (
        ("fails", f"echo {ALICE}; exit 1"),
        ("killed", f"echo {ALICE}; kill -9 $$"),
        ("slow", f"echo {ALICE}; exec sleep 20"),
        ("latin", f"echo {ALICE}; printf '\\377\\n'"),
        ("large", f"echo {ALICE}; head -c 2000000 /dev/zero"),
    ):
        assert ask(program(tmp_path / name, script)) == (False, 1)
    plain = program(tmp_path / "plain", f"echo {ALICE}")
    (tmp_path / "plain").chmod(0o644)
    assert ask(plain) == (False, 1)
    assert ask(AclEntry(command=tmp_path / "no")) == (False, 1)


def test_a_file_may_be_one_that_remctl_reads(tmp_path: Path) -> None:
    entry = file(tmp_path / "f", b"princ:alice@EXAMPLE.ORG\nprinc:odd:name@R\n")
    assert [ask(entry, who=w)[0] for w in (ALICE, "odd:name@R", f"princ:{ALICE}")] == [
        *(True, True, False)
    ]


@pytest.mark.parametrize(
    "line",
    [
        *("deny:eve@R", "include other", "include\tother", "file:/etc/acl", "regex:.", "pcre:.*"),
        *(
            "ANYUSER",
            "anyuser:auth",
            "localgroup:staff",
            "princ:",
            "alice\0@R",
            "a\x1bb",
            "x" * 257,
        ),
    ],
)
def test_what_is_no_principal_spoils_its_source(tmp_path: Path, line: str) -> None:
    """A rule that is not understood may have been a denial."""
    for entry in (
        file(tmp_path / "f", f"{ALICE}\n{line}\n".encode()),
        program(tmp_path / "p", f"echo {ALICE}; printf '%b\\n' '{line}'".replace("\0", "\\0000")),
    ):
        assert ask(entry) == (False, 1), line
        assert ask(entry, who=line) == (False, 1)
        assert "line 2" in acl.ask(entry, pocket="p", action="read").troubles[0].message


@pytest.mark.parametrize(
    "who",
    ["WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", "WELLKNOWN/ANONYMOUS@R", "alice@OTHER.TEST"],
)
def test_anonymous_and_foreign_principals_may_what_they_are_named_for(
    tmp_path: Path, who: str
) -> None:
    for entry, others in (
        (AclEntry(principal=who, where="c.yaml:7"), AclEntry(principal=ALICE)),
        (
            file(tmp_path / "f", f"{ALICE}\n{who}\n".encode()),
            file(tmp_path / "g", ALICE.encode()),
        ),
        (
            program(tmp_path / "p", f"echo {ALICE}; echo {who}"),
            program(tmp_path / "q", f"echo {ALICE}"),
        ),
    ):
        assert ask(entry, who=who) == (True, 0)
        for other in (who.lower(), who.partition("@")[0], f"{who}X", "WELLKNOWN/ANONYMOUS@X"):
            assert ask(entry, who=other) == (False, 0)
        assert ask(others, who=who) == (False, 0)


def test_realms_and_instances_count() -> None:
    named = ["alice@A.ORG", "bob/admin@A.ORG", "carol@B.ORG"]
    entries = [AclEntry(principal=name) for name in named]
    asked = [*named, "alice@B.ORG", "bob@A.ORG", "bob/root@A.ORG", "carol@A.ORG", "carol"]
    assert [who for who in asked if acl.allowed(who, entries, pocket="p", action="read")[0]] == (
        named
    )


def test_an_explanation_names_every_place(tmp_path: Path) -> None:
    listed = AclEntry(principal=ALICE, where="c.yaml:12")
    lines = file(tmp_path / "f", b"# staff\nbob@R\n" + ALICE.encode())
    said = program(tmp_path / "p", f"echo bob@R; echo; echo {ALICE}")
    broken = program(tmp_path / "broken", "echo no server >&2; exit 3")
    entries = [listed, lines, said, broken]
    found = acl.explain(ALICE, entries, pocket="dev", action="cancel")
    asked = f"`{tmp_path}/p dev cancel`"
    assert found.allowed
    assert found.by == ("c.yaml:12", f"{tmp_path}/f:3", f"{asked}:3")
    assert found.looked == (
        *("c.yaml:12", f"{tmp_path}/f", asked, f"`{tmp_path}/broken dev cancel`"),
    )
    assert len(found.troubles) == 1
    assert "exit code 3" in found.troubles[0].message
    assert "no server" in found.troubles[0].message
    other = acl.explain("carol@R", entries, pocket="dev", action="cancel")
    assert (other.allowed, other.by, other.looked) == (False, (), found.looked)


@pytest.mark.parametrize("who", ["", "a\nb", "\0", "x" * 300])
def test_who_can_never_be_allowed_is_told_why(who: str) -> None:
    found = acl.explain(who, [AclEntry(principal=ALICE)], pocket="p", action="read")
    assert not found.allowed
    assert found.troubles[0].code == "bad-principal"


@pytest.mark.parametrize(
    "script",
    [
        "exec yes alice@EXAMPLE.ORG",
        "exec yes alice@EXAMPLE.ORG >&2",
        "trap '' XFSZ; yes | head -c 10000000; exit 0",
        "head -c 10000000 /dev/zero | tr '\\0' '\\n'",
        "head -c 1000000 /dev/urandom",
    ],
)
def test_programs_that_print_too_much(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acl, "TIMEOUT", 120.0)
    began = time.monotonic()
    assert ask(program(tmp_path / "p", f"echo {ALICE}\n{script}")) == (False, 1)
    assert time.monotonic() - began < 60


def test_a_program_may_print_as_much_as_a_file_may_hold(tmp_path: Path) -> None:
    fits = (acl.MAX_BYTES - len(ALICE) - 1) // 2
    entry = program(tmp_path / "p", f"echo {ALICE}; yes '#' | head -n {fits}")
    assert ask(entry) == (True, 0)
    entry = program(tmp_path / "q", f"echo {ALICE}; yes '#' | head -n {fits + 1}")
    assert ask(entry) == (False, 1)


def test_what_a_program_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    assert ask(program(tmp_path / "p", f"echo {ALICE}; setsid sleep 60 &")) == (True, 0)
    assert time.monotonic() - began < 30


def test_a_program_that_does_not_want_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acl, "TIMEOUT", 0.3)
    monkeypatch.setattr("invirtibuilder.run.GRACE", 0.2)
    began = time.monotonic()
    entry = program(tmp_path / "p", f"trap '' TERM; echo {ALICE}; while :; do sleep 0.1; done")
    assert ask(entry) == (False, 1)
    assert time.monotonic() - began < 30
