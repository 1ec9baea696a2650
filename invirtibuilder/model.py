"""Values that validate themselves: names, versions, commits, principals."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from invirtibuilder.errors import Malformed

POCKET = re.compile(r"[a-z][a-z0-9-]{1,39}")
# Debian Policy 5.6.1: at least two characters, starting with an alphanumeric.
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
# Debian Policy 5.6.12, without the empty parts that it forbids as well.
VERSION = re.compile(r"(?:[0-9]{1,9}:)?[0-9][A-Za-z0-9.+~-]{0,199}")
ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9-]{1,29}")
COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
# What a person may name a commit by: an id, a tag, a branch. Never an option, never a range.
COMMITTISH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+~%@-]{0,199}")
# A commit of the superproject: its id, or the start of one.
SHORT_COMMIT = re.compile(r"[0-9a-f]{4,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MOMENT = re.compile(r"[0-9A-Za-z][0-9A-Za-z:.+-]{3,63}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_%:-]{0,254}")
JOB = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{6}-[0-9a-f]{4}")
MAX_PRINCIPAL = 256


def matching(pattern: re.Pattern[str], value: object, what: str, hint: str = "") -> str:
    """The value, when it is text that the pattern matches whole. Raises Malformed."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        shown = printable(str(value))[:200]
        raise Malformed(f"not a valid {what}: {shown!r}", hint=hint, code=f"bad-{what}")
    return value


def pocket_name(value: object) -> str:
    """A pocket's name.

    >>> pocket_name("dev-hot")
    'dev-hot'
    """
    return matching(POCKET, value, "pocket", "a-z, 0-9 and -, starting with a letter")


def package_name(value: object) -> str:
    """A source package's name (Debian Policy 5.6.1).

    >>> package_name("libstdc++6")
    'libstdc++6'
    >>> package_name("../x")
    Traceback (most recent call last):
    invirtibuilder.errors.Malformed: not a valid package: '../x'
    """
    return matching(PACKAGE, value, "package", "a-z, 0-9, + - . (Debian Policy 5.6.1)")


def version(value: object) -> str:
    """A Debian version (Debian Policy 5.6.12).

    >>> version("1:2.0~rc1-1+b2")
    '1:2.0~rc1-1+b2'
    """
    return matching(VERSION, value, "version")


def committish(value: object) -> str:
    """What a person names a commit by; `..`, `@{` and options are refused."""
    text = matching(COMMITTISH, value, "commit", "a commit id, a tag or a branch")
    if ".." in text or "@{" in text or "//" in text:
        raise Malformed(
            f"not a valid commit: {text!r}", code="bad-commit", hint="one commit, not a range"
        )
    return text


def moment(value: object) -> str | datetime:
    """A commit id (or its start), or a date, by which a state of a pocket is named.

    A date is ISO 8601, in UTC unless it says otherwise; a day without a time is its end.

    >>> moment("deadbeef"), str(moment("2026-01-02T03:04+01:00"))
    ('deadbeef', '2026-01-02 02:04:00+00:00')
    >>> str(moment("2026-01-02"))
    '2026-01-02 23:59:59+00:00'
    """
    text = matching(MOMENT, value, "moment", "a commit id of the superproject, or a date")
    if SHORT_COMMIT.fullmatch(text.lower()):
        return text.lower()
    try:
        time = datetime.fromisoformat(text)
        if len(text) == len("YYYY-MM-DD"):
            time = time.replace(hour=23, minute=59, second=59)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Malformed(
            f"neither a commit id nor a date: {text!r}",
            hint="such as 2026-01-31, or 2026-01-31T12:00:00Z",
            code="bad-moment",
        ) from error


def remark(value: object) -> str:
    """A line for others to read, which may be empty: printable, at most 200 characters."""
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise Malformed(
            "not a line of printable text",
            hint="at most 200 characters, without control characters",
            code="bad-remark",
        )
    return value


def commit_id(value: object) -> str:
    """A full commit id in lower case hexadecimal."""
    return matching(COMMIT, value, "commit-id")


def job_id(value: object) -> str:
    """A job's id; ids sort in order of arrival."""
    return matching(JOB, value, "job")


def principal(value: object) -> str:
    """Who asks: a Kerberos principal, or unix/NAME for a local account.

    Exact and case-sensitive. Spaces and # are legal in a principal, control characters are
    not accepted here. Raises Malformed for those, for an empty one, and for one over 256 bytes.
    """
    if not isinstance(value, str) or not value:
        raise Malformed("the principal is empty", code="bad-principal")
    # C0, DEL and C1; and halves of characters, which no file takes.
    if any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in value) or (
        len(value.encode()) > MAX_PRINCIPAL
    ):
        raise Malformed(f"not a valid principal: {printable(value)[:80]!r}", code="bad-principal")
    return value


def without_epoch(value: str) -> str:
    """The version as file names carry it (Debian Policy 5.6.12: no epoch).

    >>> without_epoch("1:2.0-1")
    '2.0-1'
    """
    return value.split(":", 1)[1] if ":" in value else value


def upstream_version(value: str) -> str:
    """The upstream part, without epoch and Debian revision.

    >>> upstream_version("1:2.0-rc1-1"), upstream_version("3.4")
    ('2.0-rc1', '3.4')
    """
    return without_epoch(value).rpartition("-")[0] or without_epoch(value)


def tag_version(value: str) -> str:
    """The version as DEP-14 mangles it for a git reference.

    >>> tag_version("1:2.0~rc1-1"), tag_version("1.0..x")
    ('1%2.0_rc1-1', '1.0.#.x')
    """
    mangled = value.replace(":", "%").replace("~", "_")
    mangled = re.sub(r"\.(?=\.|$|lock$)", ".#", mangled)
    return mangled


def printable(text: str) -> str:
    """The text with every control character, newline and bidi override escaped.

    >>> printable("a\\nb\\u202e")
    'a\\\\nb\\\\u202e'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


STAMP = "%Y%m%dT%H%M%SZ"


def stamp(time: datetime) -> str:
    """YYYYMMDDTHHMMSSZ in UTC, as in a backtracking pocket's versions.

    >>> stamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '20260102T030405Z'
    """
    return time.astimezone(UTC).strftime(STAMP)


def stamped(text: str) -> datetime:
    """The time of a stamp. Raises ValueError.

    >>> str(stamped("20260102T030405Z"))
    '2026-01-02 03:04:05+00:00'
    """
    return datetime.strptime(text, STAMP).replace(tzinfo=UTC)


def utcnow() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


def iso(time: datetime) -> str:
    """YYYY-MM-DDTHH:MM:SS.mmmZ in UTC, as in every log and record."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"
