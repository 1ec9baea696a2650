"""Arguments that nobody wants, of every verb: exit code and text, no entry, no broken log."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from invirtibuilder.door.remctl import VERBS
from invirtibuilder.errors import Unavailable
from invirtibuilder.remctl import Connection
from tests.support.doors import Door
from tests.support.kdc import remctl

JOB = "20260102T030405.678901-abcd"
FORGED = "remctld: COMMAND from root@BUILD.TEST: forged"
ODD: dict[str, bytes] = {
    "space": b"two words",
    "newline": b"main\n" + FORGED.encode(),
    "return": b"main\r" + FORGED.encode(),
    "substitution": b"$(touch /tmp/$USER)",
    "quotes": b"';id;'\"`id`",
    "long option": b"--help",
    "option": b"-x",
    "ends options": b"--",
    "path": b"../../etc/passwd",
    "range": b"main..@{u}",
    "empty": b"",
    "64 KiB": b"x" * (64 << 10),
    "binary": bytes(range(1, 256)),
    "escape": b"\xff\xfe\x1b]0;owned\x07\x1b[2J",
    "bidi": "\u202e\u2066d\u00e9v".encode(),
}
# What is said to one odd word: the arguments with `?` for it, the exit code, the reason.
SAID: list[tuple[str, int, str]] = [
    ("?", 64, "usage"),
    ("submit ? greet main", 3, "bad-pocket"),
    ("submit dev ? main", 3, "bad-package"),
    ("submit dev greet ?", 3, "bad-commit"),
    ("submit ? ? ?", 3, "bad-pocket"),
    ("submit dev greet main ?", 64, "usage"),
    ("promote ? staging greet", 3, "bad-pocket"),
    ("promote dev ? greet", 3, "bad-pocket"),
    ("promote dev staging ?", 3, "bad-package"),
    ("promote ? staging ? ?", 3, "bad-package"),
    ("promote dev staging greet ?", 3, "bad-package"),
    ("promote --despite-dependencies dev staging ?", 3, "bad-package"),
    ("rollback ? 2026-01-02", 3, "bad-pocket"),
    ("rollback dev ?", 3, "bad-moment"),
    ("rollback dev 2026-01-02 ?", 3, "bad-package"),
    ("check ? greet main", 3, "bad-pocket"),
    ("check dev ? main", 3, "bad-package"),
    ("check dev greet ?", 3, "bad-commit"),
    ("status ?", 65, "bad-job"),
    ("log ?", 65, "bad-job"),
    (f"log {JOB} ?", 64, "usage"),
    ("queue ?", 64, "usage"),
    ("cancel ?", 65, "bad-job"),
    ("retry ?", 65, "bad-job"),
    ("pause ?", 77, "not-permitted"),
    ("pause dev ?", 77, "not-permitted"),
    ("resume ?", 77, "not-permitted"),
    ("pockets ?", 64, "usage"),
    ("packages ?", 64, "usage"),
    ("acl ?", 77, "not-permitted"),
    ("sources ?", 77, "not-permitted"),
    ("sources dev ?", 64, "usage"),
    ("sources dev at ?", 65, "bad-moment"),
    ("sources ? at 2026-01-02", 77, "not-permitted"),
    ("diff ? dev", 3, "bad-pocket"),
    ("diff dev ?", 3, "bad-pocket"),
    ("diff dev dev@?", 3, "bad-moment"),
    ("fsck ?", 3, "bad-pocket"),
    ("fsck dev ?", 3, "bad-pocket"),
    ("gc ?", 3, "bad-option"),
    ("gc --dry-run ?", 3, "bad-option"),
    ("rebuild-state ?", 3, "bad-option"),
    ("help ?", 64, "usage"),
]
# Words that are fine, but too few, too many, or of nothing that there is.
OTHERS: list[tuple[str, int, str]] = [
    *(("", 64, "usage"), ("nonsense", 64, "usage"), ("submit", 64, "usage")),
    *(("submit dev greet", 64, "usage"), ("check dev", 64, "usage"), ("log", 64, "usage")),
    *(("promote dev staging", 64, "usage"), ("rollback dev", 64, "usage")),
    *(("cancel", 64, "usage"), ("retry", 64, "usage"), ("sources", 64, "usage")),
    *(("help submit dev", 64, "usage"), ("status a b", 64, "usage"), ("acl a b", 64, "usage")),
    *((f"{verb} {JOB}", 66, "no-job") for verb in ("status", "log", "cancel", "retry")),
    *(("diff dev", 64, "usage"), ("diff a b c", 64, "usage")),
    *(("diff nowhere dev", 77, "not-permitted"), ("diff dev prod@0123", 77, "not-permitted")),
    *(
        (line, 77, "not-permitted")
        for line in ("fsck", "fsck dev", "gc --dry-run", "rebuild-state")
    ),
    ("promote --despite-dependencies dev staging", 65, "malformed"),
    *(("gc --repair", 3, "bad-option"), ("rebuild-state a b", 64, "usage")),
    *(("acl nowhere", 77, "not-permitted"), ("sources nowhere", 77, "not-permitted")),
    *(
        ("submit nowhere greet main", 77, "not-permitted"),
        ("submit dev none main", 3, "no-package"),
    ),
    ("submit dev greet nowhere", 3, "commit-unknown"),
]


def words(line: str, odd: bytes = b"") -> list[bytes]:
    return [word.encode().replace(b"?", odd) for word in line.split()]


@pytest.fixture()
def alice(door: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection of alice's."""
    for name, value in door.realm.of("alice").items():
        monkeypatch.setenv(name, value)
    with Connection("localhost", door.port) as it:
        yield it


def test_every_verb_is_here() -> None:
    assert {line.split()[0] for line, _, _ in SAID} - {"?"} == set(VERBS)


@pytest.mark.parametrize("odd", ODD)
def test_odd_words(door: Door, alice: Connection, odd: str) -> None:
    before = door.known
    for line, code, reason in SAID:
        heard: dict[int, bytes] = {1: b"", 2: b""}

        def take(stream: int, data: bytes, heard: dict[int, bytes] = heard) -> None:
            heard[stream] += data

        found = alice.command([b"build", *words(line, ODD[odd])], take)
        judge((line, odd), code, reason, found, heard[1], heard[2])
    unharmed(door, before)


def judge(what: object, code: int, reason: str, found: int, out: bytes, err: bytes) -> None:
    """What one sees is what was expected, in lines that are safe to print, and not endless."""
    assert (found, out) == (code, b""), (what, err)
    text = err.decode()
    assert re.match(r"(error|refused): .*", text), what
    assert f"[{reason}]" in text, (what, text)
    assert text.replace("\n", "").isprintable(), what
    assert all(re.match(r"(error|refused): |  hint: ", line) for line in text.splitlines()), what
    assert len(text) < 2000, what


def unharmed(door: Door, before: list[str]) -> None:
    """Nothing was queued, and each line of a log begins as that log's lines do."""
    assert door.known == before
    assert not list((door.place.site.queue / "bad").iterdir())
    log = door.log.read_bytes()
    assert all(line.startswith(b"remctld: ") for line in log.splitlines())
    assert not any(line.startswith(FORGED.encode()[:35]) for line in log.splitlines())
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", log)
    assert "forged" not in door.place.log.read_text()


def test_the_wrong_number_of_words(door: Door) -> None:
    before = door.known
    env = door.realm.of("alice")
    for line, code, reason in OTHERS:
        done = remctl(door.realm, env, door.port, "build", *words(line))
        judge(line, code, reason, done.code, done.out, done.err)
    # The real remctl carries odd words just as ours does.
    for odd in ODD.values():
        done = remctl(door.realm, env, door.port, "build", "submit", "dev", "greet", odd)
        judge(odd, 3, "bad-commit", done.code, done.out, done.err)
    unharmed(door, before)


def test_what_no_program_can_be_given(door: Door, alice: Connection) -> None:
    """remctld's own answers: the kernel takes 128 KiB a word, and no NUL."""
    before = door.known
    long = "x" * (130 << 10)
    path = door.log.with_name("long")
    path.write_text(long)
    heard = bytearray()
    command = [b"build", b"submit", b"dev", b"greet", long.encode()]
    code = alice.command(command, lambda _stream, data: heard.extend(data))
    assert code == 255
    assert heard.startswith(b"remctld: cannot execute command: ")
    with pytest.raises(Unavailable, match="Invalid command"):
        alice.command([b"build", b"status", b"a\0b"], lambda _stream, _data: None)
    unharmed(door, before)
