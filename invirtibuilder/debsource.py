"""Debian source packages as content: changelog, source format, versions and their suffixes.

Pure functions on bytes that the caller has capped and read. Whatever the bytes are, only faults
come out of here; nothing is unpacked and nothing is run.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import NoReturn

from debian.debian_support import Version

from invirtibuilder import model
from invirtibuilder.errors import ConfigFault, Malformed, PackageFault, Reason

MAX_CHANGELOG = 16 << 20
MAX_ENTRY = 1 << 20
"""Bytes of the changelog's top entry."""
MAX_FILE_VERSION = 160
"""Characters of name and version: with `.orig-COMPONENT.tar.xz.asc` they still fit a file name."""

FORMATS = ("1.0", "3.0 (native)", "3.0 (quilt)")
DEFAULT_SUFFIX = "~{pocket}+{timestamp}.g{shortid}"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Dpkg::Changelog::Entry::Debian's two regular expressions, but strict where it only warns.
HEADER = re.compile(
    r"(?P<source>[A-Za-z0-9][-+0-9A-Za-z.]*) \((?P<version>[^() \t]+)\)"
    r"(?P<distribution>(?:[ \t]+[-+0-9A-Za-z.]+)+);(?P<options>.*)"
)
TRAILER = re.compile(
    r" -- (?P<name>[^<>]*) <(?P<mail>[^<>]*)>  ?"
    r"(?:[A-Za-z]{3},[ \t]*)?(?P<day>[0-9]{1,2})[ \t]+(?P<month>[A-Z][a-z]{2})[ \t]+"
    r"(?P<year>[0-9]{4})[ \t]+(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
    r"[ \t]+(?P<sign>[-+])(?P<zone_hours>[0-9]{2})(?P<zone_minutes>[0-9]{2})[ \t]*"
)
URGENCY = re.compile(r"[a-z]{1,20}")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
SUFFIX = re.compile(r"[A-Za-z0-9.+~]{0,120}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The top entry of a changelog; `date` is in seconds since the epoch."""

    source: str
    version: str
    distribution: str
    urgency: str
    maintainer: str
    date: int
    changes: tuple[str, ...] = ()


def changelog_top(data: bytes) -> Entry:
    """The top entry of debian/changelog.

    Raises PackageFault (code `bad-changelog`), naming line and reason, for anything that
    dpkg-parsechangelog would warn about in this entry, and for a changelog over 16 MiB.

    >>> entry = changelog_top(b'''hello (1:2.10-3~deb12u1) unstable; urgency=high
    ...
    ...   * Fix.  Closes: #1
    ...
    ...  -- Santiago Vila <sanvila@debian.org>  Mon, 26 Dec 2022 16:30:00 +0100
    ... ''')
    >>> entry.source, entry.version, entry.urgency, entry.date, entry.changes
    ('hello', '1:2.10-3~deb12u1', 'high', 1672068600, ('', '  * Fix.  Closes: #1', ''))
    """
    if len(data) > MAX_CHANGELOG:
        _bad_changelog(0, f"larger than {MAX_CHANGELOG} bytes")
    header: dict[str, str] | None = None
    changes: list[str] = []
    for number, line in _lines(data):
        if header is None:
            header = _heading(number, line) if line.strip() else None
        elif line.startswith(" --"):
            return _entry(number, line, header, changes)
        elif not line.strip() or line[0] == "\t" or line[:2].isspace():
            changes.append(line.rstrip())
        else:
            _bad_changelog(number, "neither a change (two spaces) nor the trailer (` -- `)", line)
    return _bad_changelog(0, "no entry" if header is None else "the top entry has no trailer line")


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    start, number = 0, 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        if end > MAX_ENTRY:
            _bad_changelog(number, f"the top entry is larger than {MAX_ENTRY} bytes")
        try:
            line = data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            _bad_changelog(number, "not UTF-8")
        if CONTROL.search(line):
            _bad_changelog(number, "a control character", line)
        yield number, line
        start = end + 1


def _heading(number: int, line: str) -> dict[str, str]:
    match = HEADER.fullmatch(line.rstrip())
    if not match:
        _bad_changelog(number, "not `source (version) distribution; urgency=...`", line)
    header = match.groupdict()
    header["distribution"] = " ".join(header["distribution"].split())
    try:
        model.package_name(header["source"])
        _legal_version(header["version"])
    except Malformed as error:
        _bad_changelog(number, str(error))
    if len(header["source"]) + len(header["version"]) > MAX_FILE_VERSION:
        _bad_changelog(number, f"name and version have more than {MAX_FILE_VERSION} characters")
    options = dict(_options(number, header["options"]))
    if options.get("binary-only") == "yes":
        _bad_changelog(number, "an entry for a binary-only rebuild (binary-only=yes)", line)
    header["urgency"] = options.get("urgency", "medium")
    if not URGENCY.fullmatch(header["urgency"]):
        _bad_changelog(number, "the urgency is not a word", line)
    return header


def _options(number: int, text: str) -> Iterator[tuple[str, str]]:
    for option in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = option.partition("=")
        words = value.split()
        if not equals or not words:
            _bad_changelog(number, "not key=value after the semicolon", option)
        # Old entries have a comment after the urgency: `urgency=HIGH (fixes a hole)`.
        yield key.strip().lower(), words[0].lower()


def _entry(number: int, line: str, header: dict[str, str], changes: list[str]) -> Entry:
    match = TRAILER.fullmatch(line.rstrip())
    if not match:
        _bad_changelog(number, "not ` -- name <mail>  day, DD Mon YYYY HH:MM:SS +ZZZZ`", line)
    part = match.groupdict()
    if not part["mail"].strip():
        _bad_changelog(number, "no mail address", line)
    return Entry(
        source=header["source"],
        version=header["version"],
        distribution=header["distribution"],
        urgency=header["urgency"],
        maintainer=f"{part['name'].strip()} <{part['mail'].strip()}>".strip(),
        date=_epoch(number, part),
        changes=tuple(changes),
    )


def _epoch(number: int, part: dict[str, str]) -> int:
    try:
        # datetime checks the ranges that timegm would wrap.
        local = datetime(
            int(part["year"]),
            MONTHS.index(part["month"]) + 1,
            int(part["day"]),
            int(part["hour"]),
            int(part["minute"]),
            int(part["second"]),
            tzinfo=UTC,
        )
    except ValueError:
        _bad_changelog(number, "no such date")
    zone = int(part["zone_hours"]) * 3600 + int(part["zone_minutes"]) * 60
    epoch = calendar.timegm(local.timetuple()) - (zone if part["sign"] == "+" else -zone)
    # gzip's and tar's time fields end in 2106; SOURCE_DATE_EPOCH is never negative.
    if not 0 <= epoch < 1 << 32:
        _bad_changelog(number, "the date is before 1970 or after 2106")
    return epoch


def _bad_changelog(number: int, why: str, line: str = "") -> NoReturn:
    where = f"debian/changelog:{number}: " if number else "debian/changelog: "
    shown = f": {model.printable(line[:100])!r}" if line else ""
    raise PackageFault(
        f"{where}{why}{shown}",
        code="bad-changelog",
        hint="dpkg-parsechangelog shows how dpkg reads it; `dch` writes correct entries",
    )


def source_format(data: bytes | None) -> str:
    """The source format, one of FORMATS; a missing debian/source/format (None) means 1.0.

    Raises PackageFault (code `unsupported-format`), whose reason has the hint.

    >>> source_format(None), source_format(b"3.0 (quilt)\\n")
    ('1.0', '3.0 (quilt)')
    >>> source_format(b"3.0 (git)")
    Traceback (most recent call last):
    invirtibuilder.errors.PackageFault: unsupported source format '3.0 (git)'
    """
    if data is None:
        return "1.0"
    # Dpkg::Source::Format takes the first line, and any space before the parenthesis.
    first = data[:200].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    found = re.sub(r"\s+\(", " (", first)
    found = {"3.0": "3.0", "1": "1.0"}.get(found, found)
    if found in FORMATS:
        return found
    raise PackageFault(
        f"unsupported source format {model.printable(found[:60])!r}",
        code="unsupported-format",
        hint="debian/source/format: " + ", ".join(FORMATS),
    )


def version_fits_format(version: str, source_format_: str) -> Reason | None:
    """Why dpkg-source would refuse this version in this format, or None.

    >>> version_fits_format("1.0-1", "3.0 (native)").code
    'native-revision'
    >>> version_fits_format("1.0", "3.0 (quilt)").code
    'no-revision'
    """
    revision = "-" in version
    if source_format_ == "3.0 (native)" and revision:
        return Reason(
            code="native-revision",
            message=f"a native package's version has no revision: {version}",
            hint="remove the part from the last '-' on, or use 3.0 (quilt)",
        )
    if source_format_ == "3.0 (quilt)" and not revision:
        return Reason(
            code="no-revision",
            message=f"a 3.0 (quilt) package's version needs a revision: {version}",
            hint=f"{version}-1, or 3.0 (native)",
        )
    return None


def suffix(template: str = DEFAULT_SUFFIX, *, pocket: str, time: datetime, commit: str) -> str:
    """What a backtracking pocket adds to a version.

    `{pocket}` has `.` for `-`, `{timestamp}` is YYYYMMDDTHHMMSSZ, `{shortid}` has 12 digits.
    Raises ConfigFault for a template with anything else, or with a `-`, which would make a
    native version non-native.

    >>> suffix(pocket="dev-hot", time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), commit="ab" * 20)
    '~dev.hot+20260102T030405Z.gabababababab'
    """
    parts = {
        "{pocket}": model.pocket_name(pocket).replace("-", "."),
        "{timestamp}": model.stamp(time),
        "{shortid}": model.commit_id(commit)[:12],
    }
    text = re.sub(r"\{(?:pocket|timestamp|shortid)\}", lambda found: parts[found[0]], template)
    if not SUFFIX.fullmatch(text):
        raise ConfigFault(
            f"not a version suffix: {model.printable(template)[:200]!r}",
            code="bad-suffix",
            hint="{pocket}, {timestamp}, {shortid}, and a-z A-Z 0-9 . + ~ between them",
        )
    return text


def suffixed(version: str, added: str) -> str:
    """The version with this suffix: legal, and native exactly when it was before.

    Raises Malformed.

    >>> suffixed("1:2.0-1", "~dev+20260102T030405Z.gabababababab")
    '1:2.0-1~dev+20260102T030405Z.gabababababab'
    """
    whole = _legal_version(_legal_version(version) + added)
    if not SUFFIX.fullmatch(added) or len(whole) > MAX_FILE_VERSION:
        raise Malformed(
            f"not a legal suffix of {version}: {model.printable(added)[:100]!r}", code="bad-version"
        )
    return whole


def _legal_version(version: str) -> str:
    model.version(version)
    without = model.without_epoch(version)
    upstream, hyphen, revision = without.rpartition("-")
    if hyphen and (not revision or not upstream):
        raise Malformed(f"a part of the version is empty: {version!r}", code="bad-version")
    if hyphen and not re.fullmatch(r"[A-Za-z0-9+.~]+", revision):
        raise Malformed(f"not a valid revision: {version!r}", code="bad-version")
    return version


def backtracking_entry(
    *,
    source: str,
    version: str,
    distribution: str,
    tagger_name: str,
    tagger_mail: str,
    time: datetime,
    message: Iterable[str],
) -> str:
    """The changelog entry for a backtracking pocket's build, with the blank line after it.

    The same arguments give the same text. Each line of `message` becomes an item; control
    characters are escaped. Raises Malformed when the result is not an entry that says the same.

    >>> print(backtracking_entry(source="hello", version="1.0~dev+1", distribution="dev",
    ...     tagger_name="Builder", tagger_mail="b@example.org",
    ...     time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), message=["Commit abc."]), end="|")
    hello (1.0~dev+1) dev; urgency=medium
    <BLANKLINE>
      * Commit abc.
    <BLANKLINE>
     -- Builder <b@example.org>  Fri, 02 Jan 2026 03:04:05 +0000
    <BLANKLINE>
    |
    """
    date = format_datetime(time.astimezone(UTC))
    items = "".join(f"  * {model.printable(line).strip()}\n" for line in message)
    text = (
        f"{source} ({version}) {distribution}; urgency=medium\n\n{items}\n"
        f" -- {tagger_name} <{tagger_mail}>  {date}\n\n"
    )
    try:
        entry = changelog_top(text.encode())
    except PackageFault as error:
        raise Malformed(str(error), code="bad-changelog") from error
    written = (source, version, distribution, f"{tagger_name} <{tagger_mail}>")
    if written != (entry.source, entry.version, entry.distribution, entry.maintainer):
        raise Malformed(f"not a changelog entry's parts: {written!r}", code="bad-changelog")
    return text


def compare(a: str, b: str) -> int:
    """-1, 0 or 1, as dpkg orders the versions. Raises Malformed.

    >>> compare("2.10-3~dev+1", "2.10-3"), compare("1:1", "2"), compare("1.0", "1.0-0")
    (-1, 1, 0)
    """
    first, second = Version(model.version(a)), Version(model.version(b))
    return int(first > second) - int(first < second)
