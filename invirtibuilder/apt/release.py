"""The text of a Release file (https://wiki.debian.org/DebianRepository/Format): what is signed."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

COMMIT = "Superproject-Commit"
"""The field of Release that says which commit the publication belongs to; APT passes it over."""


def release_text(
    fields: Mapping[str, str],
    indices: Mapping[str, tuple[str, int]],
    date: datetime,
    valid_for: float | None,
    commit: str,
) -> bytes:
    """What is signed: some of the fields, SHA-256 and size of each index by name, and the rest."""
    names = ("Origin", "Label", "Suite", "Codename", "Architectures", "Components", "Description")
    lines = [f"{name}: {fields[name]}" for name in names if name in fields]
    lines.append(f"Date: {_rfc2822(date)}")
    if valid_for is not None:
        lines.append(f"Valid-Until: {_rfc2822(date + timedelta(seconds=valid_for))}")
    if commit:
        lines.append(f"{COMMIT}: {commit}")
    lines += ["Acquire-By-Hash: yes", "SHA256:"]
    lines += [f" {sha256} {size} {name}" for name, (sha256, size) in sorted(indices.items())]
    return ("\n".join(lines) + "\n").encode()


def _rfc2822(date: datetime) -> str:
    """As APT wants it, in UTC and in no locale.

    >>> _rfc2822(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    'Fri, 02 Jan 2026 03:04:05 UTC'
    """
    return email.utils.format_datetime(date.astimezone(UTC)).replace("+0000", "UTC")
