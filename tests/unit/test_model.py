"""Names that check themselves, against hostile ones."""

from __future__ import annotations

import doctest
import random
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from invirtibuilder import model
from invirtibuilder.errors import Malformed

HOSTILE: list[object] = [
    None,
    0,
    True,
    [],
    {},
    b"dev",
    "",
    " ",
    ".",
    "..",
    "/",
    "-",
    "--help",
    "-x",
    "a/../b",
    "../a",
    "/etc/passwd",
    "a\0b",
    "dev\n",
    "\ndev",
    "a b",
    "a\tb",
    "a;b",
    "a$(id)",
    "a`id`",
    "a'b",
    'a"b',
    "a\\b",
    "a*",
    "a?",
    "\uff41",
    "dév",
    "١٢",
    "a\u202eb",
    "a\u200bb",
    "\ud800",
    "x" * 100_000,
]
CHECKS: dict[str, Callable[[object], str]] = {
    "pocket": model.pocket_name,
    "package": model.package_name,
    "version": model.version,
    "commit": model.committish,
    "commit-id": model.commit_id,
    "job": model.job_id,
}


@pytest.mark.parametrize("what", CHECKS)
def test_hostile_names_are_refused(what: str) -> None:
    for value in HOSTILE:
        if what == "commit" and value in ("a/../b",):
            assert ".." in str(value)
        with pytest.raises(Malformed) as caught:
            CHECKS[what](value)
        assert caught.value.code == f"bad-{what}"
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("what", CHECKS)
def test_what_is_taken_is_safe_as_an_argument_and_a_name(what: str) -> None:
    choice = random.Random(what)
    letters = string.ascii_letters + string.digits + "+-.~:_/@%#{}^ \n\0\\$"
    taken = 0
    for _ in range(20_000):
        text = "".join(choice.choices(letters, k=choice.randrange(1, 8)))
        try:
            value = CHECKS[what](text)
        except Malformed:
            continue
        taken += 1
        assert value == text
        assert text[0] not in "-./~"
        assert not set(text) & set(" \n\0\\$")
        if what not in ("commit",):
            assert "/" not in text
        assert "@{" not in text or what != "commit"
        assert ".." not in text or what != "commit"
    assert taken > 100 or what in ("commit-id", "job")


def test_ugly_real_values() -> None:
    for name in ("libstdc++6", "0ad", "g++-12", "2ping", "x11-apps", "libc6.1"):
        assert model.package_name(name) == name
    for text in ("1:2.0~rc1-1+b2", "0", "2.0.0-1~bpo12+1", "1.0-1-2", "20260101T000000Z"):
        assert model.version(text) == text
    for text in ("", "a1", ":1", "1:", "1_2", "1:2:3", "-1"):
        with pytest.raises(Malformed):
            model.version(text)
    for text in ("main", "debian/1.0_rc1-1", "a" * 40, "v1.0", "upstream/1%2.0", "HEAD"):
        assert model.committish(text) == text
    for text in ("main..x", "HEAD@{1}", "a//b", "^main", ":/x", "main:file", "main^{}", "a~^"):
        with pytest.raises(Malformed):
            model.committish(text)
    assert model.commit_id("0" * 40)
    assert model.commit_id("f" * 64)
    for text in ("0" * 39, "0" * 41, "A" * 40):
        with pytest.raises(Malformed):
            model.commit_id(text)


def test_principals() -> None:
    for name in ("alice@EXAMPLE.ORG", "host/a.b@R", "unix/root", "a b#c@R", "ä@R", "x" * 256):
        assert model.principal(name) == name
    for value in ("", None, 5, "a\nb", "a\0", "a\x7f", "a\x85b", "x" * 257, "ä" * 129, "\ud800"):
        with pytest.raises(Malformed) as caught:
            model.principal(value)
        assert caught.value.code == "bad-principal"


def test_printable_is_one_printable_line() -> None:
    choice = random.Random(1)
    points = [*range(0x300), *range(0x2000, 0x2100), 0xD800, 0xFEFF, 0x1F600, 0xE0001]
    for _ in range(500):
        text = "".join(map(chr, choice.choices(points, k=20)))
        shown = model.printable(text)
        assert shown.isprintable()
        assert shown.encode()


def test_versions_for_files_and_tags() -> None:
    assert model.without_epoch("1:2.0-1") == "2.0-1"
    assert model.upstream_version("1:2.0-rc1-1") == "2.0-rc1"
    # DEP-14
    assert model.tag_version("1:2.0~rc1-1") == "1%2.0_rc1-1"
    assert model.tag_version("1.0.") == "1.0.#"
    assert model.tag_version("1.lock") == "1.#lock"


def test_times_are_utc() -> None:
    east = datetime(2026, 1, 2, 3, 4, 5, 678_999, tzinfo=timezone(timedelta(hours=2)))
    assert model.iso(east) == "2026-01-02T01:04:05.678Z"
    assert model.stamp(east) == "20260102T010405Z"
    assert model.utcnow().tzinfo is UTC


def test_the_examples_in_the_text() -> None:
    assert doctest.testmod(model).failed == 0
