"""Changelogs, formats, gbp.conf, suffixes, .dsc and .buildinfo: ugly and hostile ones too."""

from __future__ import annotations

import random
import time as clock
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from invirtibuilder import debchanges, debsource, gbpconf
from invirtibuilder.errors import ConfigFault, Fault, Malformed, PackageFault
from tests.unit.test_gbpconf import GBP

TRAILER = b"\n -- A B <a@b.c>  Mon, 26 Dec 2022 16:30:00 +0100\n"
CHANGELOG = (
    b"hello (2.10-3) unstable; urgency=medium\n\n"
    b"  * New maintainer. Thanks to J\xc3\xbcrgen.\n    - and more  \n\n"
    b"  [ Someone Else ]\n  * Another.  Closes: #1234\n"
    b"\n -- Santiago Vila <sanvila@debian.org>  Mon, 26 Dec 2022 16:30:00 +0100\n\n"
    b"hello (2.10-2) unstable; urgency=low\n\n  * Old Latin-1: \xe9\n\n"
    b" -- Santiago Vila <sanvila@debian.org>  Mon, 13 May 2019 16:30:00 +0200\n"
)
DSC = b"""Format: 3.0 (quilt)
Source: hello
Binary: hello, libhello1
Architecture: any all
Version: 2:2.10-3
Maintainer: Santiago Vila <sanvila@debian.org>
Build-Depends: debhelper-compat (= 13),
 help2man <!cross>
Package-List:
 hello deb devel optional arch=any
 libhello1 deb libs optional arch=any
Checksums-Sha1:
 f7bebf6f9c62a2295e889f66e05ce9bfaed9ace3 725946 hello_2.10.orig.tar.gz
 a35d97bd364670b045cdd86d446e71b171e915cc 6132 hello_2.10-3.debian.tar.xz
Checksums-Sha256:
 31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b 725946 hello_2.10.orig.tar.gz
 811ad0255495279fc98dc75f4460da1722f5c1030740cb52638cb80d0fdb24f0 6132 hello_2.10-3.debian.tar.xz
Files:
 6cd0ffea3884a4e79330338dcc2987d6 725946 hello_2.10.orig.tar.gz
 e522e61c27eb0401c86321b9d8e137ae 6132 hello_2.10-3.debian.tar.xz
"""
BUILDINFO = b"""Format: 1.0
Source: hello (2:2.10-3)
Binary: hello libhello1
Architecture: all amd64
Version: 2:2.10-3+b1
Checksums-Md5:
 6cd0ffea3884a4e79330338dcc2987d6 725946 hello_2.10-3+b1_amd64.deb
Checksums-Sha256:
 31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b 725946 hello_2.10-3+b1_amd64.deb
Build-Origin: Debian
Installed-Build-Depends:
 autoconf (= 2.71-3),
 base-files (= 12.4+deb12u11)
"""


def short(value: object) -> str:
    """A test's name without the content."""
    return value if isinstance(value, str) else getattr(value, "__name__", "bytes")


def test_top_entry() -> None:
    entry = debsource.changelog_top(CHANGELOG)
    assert (entry.source, entry.version, entry.distribution) == ("hello", "2.10-3", "unstable")
    assert entry.maintainer == "Santiago Vila <sanvila@debian.org>"
    assert entry.date == 1672068600
    assert entry.changes[1] == "  * New maintainer. Thanks to Jürgen."
    assert entry.changes[2] == "    - and more"


@pytest.mark.parametrize(
    ("header", "version", "urgency"),
    [
        (b"a1 (0~) unstable; urgency=low", "0~", "low"),
        (
            b"x11-apps (1:7.7+9+b1-2~bpo) a b; urgency=HIGH (hole), closes=3",
            "1:7.7+9+b1-2~bpo",
            "high",
        ),
        (b"lib+foo.2 (2024-01-01-1) UNRELEASED;", "2024-01-01-1", "medium"),
        (b"\n\nhello (1) dev;urgency=emergency\t", "1", "emergency"),
    ],
)
def test_real_headers(header: bytes, version: str, urgency: str) -> None:
    entry = debsource.changelog_top(header + b"\n\n\t* Tab.\n" + TRAILER)
    assert (entry.version, entry.urgency) == (version, urgency)


@pytest.mark.parametrize(
    "trailer",
    [
        b" --  <a@b.c>  Mon,  1 Jan 2024  1:02:03 -0930",
        b" -- A (B) C <a@b.c> Fri, 01 Jan 2024 01:02:03 +0000",
        b" -- A B <a@b.c>  1 Jan 2024 01:02:03 +0000",
    ],
)
def test_real_trailers(trailer: bytes) -> None:
    entry = debsource.changelog_top(b"hello (1) dev; urgency=low\n\n  * X\n\n" + trailer)
    assert 1704000000 < entry.date < 1704200000


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no entry"),
        (b"\n\n", "no entry"),
        (b"hello 1.0 unstable\n", ":1: not `source"),
        (b"hello (1.0) unstable\n", "not `source"),
        (b"hello () unstable; urgency=low\n" + TRAILER, "not `source"),
        (b"Hello (1.0) unstable; urgency=low\n" + TRAILER, "Hello"),
        (b"../x (1.0) unstable; urgency=low\n" + TRAILER, "not `source"),
        (b"hello (1.0/../..) unstable; urgency=low\n" + TRAILER, "1.0/"),
        (b"hello (-1) unstable; urgency=low\n" + TRAILER, "-1"),
        (b"hello (1.0-) unstable; urgency=low\n" + TRAILER, "1.0-"),
        (b"hello (a1) unstable; urgency=low\n" + TRAILER, "a1"),
        (b"hello (1:) unstable; urgency=low\n" + TRAILER, "1:"),
        (b"hello (1:2:3) unstable; urgency=low\n" + TRAILER, "1:2:3"),
        (b"hello (" + b"1" * 300 + b") unstable; urgency=low\n" + TRAILER, "111"),
        (b"hello (" + b"1" * 180 + b") unstable; urgency=low\n" + TRAILER, "characters"),
        (b"hello (1+b1) sid; urgency=low, binary-only=yes\n" + TRAILER, "binary-only"),
        (b"hello (1) sid; urgency\n" + TRAILER, "key=value"),
        (b"hello (1) sid; urgency=<x>\n" + TRAILER, "urgency"),
        (b"hello (1) sid; urgency=low\n\nno indent\n" + TRAILER, ":3: neither"),
        (b"hello (1) sid; urgency=low\n\n  * X\n\n", "no trailer"),
        (b"hello (1) sid; urgency=low\n\n  * X\n\n -- A\n", ":5: not ` -- name"),
        (b"hello (1) sid; urgency=low\n\n -- A < >  Mon, 26 Dec 2022 16:30:00 +0100", "mail"),
        (b"hello (1) sid; urgency=low\n\n -- A <a>  Mon, 31 Feb 2022 16:30:00 +0100", "date"),
        (b"hello (1) sid; urgency=low\n\n -- A <a>  Mon, 01 Foo 2022 16:30:00 +0100", "date"),
        (b"hello (1) sid; urgency=low\n\n -- A <a>  Mon, 01 Jan 1969 16:30:00 +0100", "1970"),
        (b"hello (1) sid; urgency=low\n\n -- A <a>  Mon, 01 Jan 9999 16:30:00 +0100", "2106"),
        (b"hello (1) sid; urgency=low\n\n -- A <a>  Mon, 01 Jan 0000 16:30:00 +0100", "date"),
        (b"hello (1) sid; urgency=low\n\n  * \x1b[2J\n" + TRAILER, "control character"),
        (b"hello (1) sid; urgency=low\n\n  * \xff\n" + TRAILER, "UTF-8"),
        (b"\xef\xbb\xbfhello (1) sid; urgency=low\n\n  * X\n" + TRAILER, "not `source"),
        (b"hello (1) sid; urgency=low\n" + b"  * X\n" * 200_000 + TRAILER, "larger"),
        (b" " * ((16 << 20) + 1), "larger"),
    ],
    ids=short,
)
def test_bad_changelogs(data: bytes, why: str) -> None:
    with pytest.raises(PackageFault) as caught:
        debsource.changelog_top(data)
    assert caught.value.code == "bad-changelog"
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


def test_large_changelog_is_fast() -> None:
    data = CHANGELOG + b"x" * (15 << 20)
    started = clock.process_time()
    assert debsource.changelog_top(data).version == "2.10-3"
    assert clock.process_time() - started < 0.2


@pytest.mark.parametrize(
    "text", [b"3.0 (git)", b"2.0", b"", b"3.0", b"3.0 (custom)", b"1.1", b"\xff", b"3.0 (quilt)x"]
)
def test_unsupported_formats(text: bytes) -> None:
    with pytest.raises(PackageFault) as caught:
        debsource.source_format(text + b"\n")
    assert caught.value.reasons[0].code == "unsupported-format"
    assert "3.0 (quilt)" in caught.value.reasons[0].hint


def test_supported_formats() -> None:
    assert debsource.source_format(None) == "1.0"
    assert debsource.source_format(b"1.0") == "1.0"
    assert debsource.source_format(b"3.0  (native)\n\n") == "3.0 (native)"
    assert debsource.version_fits_format("1.0-1", "3.0 (quilt)") is None
    assert debsource.version_fits_format("1.0-1", "1.0") is None


NOW = datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=UTC)


def test_suffix_keeps_native_and_non_native() -> None:
    added = debsource.suffix(pocket="dev-hot", time=NOW, commit="0123456789abcdef" * 2 + "0" * 8)
    assert added == "~dev.hot+20260102T030405Z.g0123456789ab"
    for version in ("1.0", "1:1.0-rc1-2", "1.0~rc1", "1.0-1~deb12u1"):
        whole = debsource.suffixed(version, added)
        assert whole == version + added
        assert ("-" in whole) == ("-" in version)
        assert debsource.compare(whole, version) == -1
        for format_ in debsource.FORMATS:
            assert bool(debsource.version_fits_format(whole, format_)) == bool(
                debsource.version_fits_format(version, format_)
            )


@pytest.mark.parametrize(
    "template", ["-{pocket}", "{pocket.__class__}", "{0}", "~ x", ":1", "{", "é"]
)
def test_bad_suffix(template: str) -> None:
    with pytest.raises(ConfigFault):
        debsource.suffix(template, pocket="dev", time=NOW, commit="a" * 40)


@pytest.mark.parametrize("version", ["", "a", "1.0-", "1_0", "1.0-1" + "0" * 190])
def test_versions_that_get_no_suffix(version: str) -> None:
    with pytest.raises(Malformed):
        debsource.suffixed(version, "~dev+1")


def test_backtracking_entry_is_one_entry() -> None:
    text = debsource.backtracking_entry(
        source="hello",
        version="1.0~dev+1",
        distribution="dev-hot",
        tagger_name="Bäcker (builds)",
        tagger_mail="b@example.org",
        time=NOW,
        message=["By ada@EXAMPLE.ORG", "evil\n\n -- X <y>  Mon, 01 Jan 2024 00:00:00 +0000\n\x1b"],
    )
    entry = debsource.changelog_top(text.encode() + CHANGELOG)
    assert (entry.version, entry.distribution) == ("1.0~dev+1", "dev-hot")
    assert entry.maintainer == "Bäcker (builds) <b@example.org>"
    assert entry.date == int(NOW.timestamp())
    assert text.count("\n -- ") == 1
    assert debsource.changelog_top((text + text).encode()) == entry


@pytest.mark.parametrize(
    "change",
    [
        {"tagger_name": "x>\n"},
        {"tagger_name": "a <b@c>"},
        {"tagger_mail": "a>  Mon"},
        {"source": "hello (2)"},
        {"version": "1 2"},
        {"distribution": "a;b"},
        {"distribution": "a\n"},
    ],
)
def test_backtracking_entry_refuses_what_breaks_it(change: dict[str, str]) -> None:
    parts = {"source": "hello", "version": "1", "distribution": "dev"}
    parts |= {"tagger_name": "A", "tagger_mail": "a@b", **change}
    with pytest.raises(Malformed):
        debsource.backtracking_entry(**parts, time=NOW, message=["x"])


def test_dsc() -> None:
    dsc = debchanges.parse_dsc(DSC)
    assert (dsc.source, dsc.version, dsc.format) == ("hello", "2:2.10-3", "3.0 (quilt)")
    assert (dsc.architecture, dsc.binaries) == (("any", "all"), ("hello", "libhello1"))
    assert dsc.files[1].name == "hello_2.10-3.debian.tar.xz"
    assert (dsc.files[1].size, dsc.files[1].sha256[:4]) == (6132, "811a")
    assert dsc.build_depends == "debhelper-compat (= 13), help2man <!cross>"
    assert [package.section for package in dsc.packages] == ["devel", "libs"]


def signed(data: bytes) -> bytes:
    return (
        b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n"
        + data
        + b"\n-----BEGIN PGP SIGNATURE-----\n\niQ==\n=abcd\n-----END PGP SIGNATURE-----\n"
    )


def test_signed_dsc() -> None:
    assert debchanges.parse_dsc(signed(DSC)) == debchanges.parse_dsc(DSC)
    for bad in (b"Source: evil\n\n" + signed(DSC), signed(DSC) + DSC, signed(DSC)[:300]):
        with pytest.raises(Malformed):
            debchanges.parse_dsc(bad)


def test_buildinfo() -> None:
    info = debchanges.parse_buildinfo(BUILDINFO)
    assert (info.source, info.source_version, info.version) == ("hello", "2:2.10-3", "2:2.10-3+b1")
    assert info.binaries == ("hello", "libhello1")
    assert info.files[0].name == "hello_2.10-3+b1_amd64.deb"
    assert info.installed[1] == "base-files (= 12.4+deb12u11)"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Source: hello", b"Source: ../hello"),
        (b"Version: 2:2.10-3", b"Version: 2.10-3/../.."),
        (b"hello_2.10.orig.tar.gz\n 811", b"../../etc/passwd\n 811"),
        (b"hello_2.10.orig.tar.gz\n 811", b".hidden\n 811"),
        (b"hello_2.10.orig.tar.gz\n 811", b"hello_2.10-3.debian.tar.xz\n 811"),
        (b"725946 hello", b"-1 hello"),
        (b"31e066", b"31E066"),
        (b"6cd0ffea3884a4e79330338dcc2987d6 725946", b"6cd0ffea3884a4e79330338dcc2987d6 725947"),
        (b"Format", b"Source: other\nFormat"),
        (b"Maintainer", b"\nMaintainer"),
        (b"Maintainer", b"\x00Maintainer"),
        (b"Santiago", b"\xff"),
        (b"Checksums-Sha256", b"Checksums-Sha512"),
        (b"Architecture: any", b"Architecture: $(id)"),
        (b"Binary: hello", b"Binary: hello, , x"),
        (b"hello deb devel", b"hello deb"),
        (b"Format: 3.0", b" Format: 3.0"),
    ],
)
def test_hostile_dsc(old: bytes, new: bytes) -> None:
    assert DSC.count(old) >= 1
    with pytest.raises(Malformed):
        debchanges.parse_dsc(DSC.replace(old, new))


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (debsource.changelog_top, CHANGELOG),
        (debchanges.parse_dsc, DSC),
        (debchanges.parse_dsc, signed(DSC)),
        (debchanges.parse_buildinfo, BUILDINFO),
        (gbpconf.gbp_settings, GBP),
        (debsource.source_format, b"3.0 (quilt)\n"),
    ],
    ids=short,
)
def test_mutations_raise_nothing_but_faults(parse: Callable[[bytes], object], data: bytes) -> None:
    # The seed is fixed: a failure comes back.
    chance = random.Random(12)
    refused = 0
    for _ in range(1500):
        mutated = bytearray(data)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(mutated) + 1)
            kind = chance.randrange(4)
            if kind == 0:
                mutated[at:at] = chance.choice(
                    [b"\n", b" ", b":", b"\xff", b"\0", b"%", b"[", b"-"]
                )
            elif kind == 1:
                del mutated[at : at + chance.randint(1, 40)]
            elif kind == 2:
                mutated[at : at + 1] = bytes([chance.randrange(256)])
            else:
                start = chance.randrange(len(mutated) + 1)
                mutated[at:at] = mutated[start : start + 60]
        try:
            parse(bytes(mutated))
        except Fault:
            refused += 1
    assert refused > 100
