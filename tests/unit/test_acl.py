"""Who may: exact principals from a list, a file or a program; what fails grants nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from invirtibuilder import acl
from invirtibuilder.config import AclEntry

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
