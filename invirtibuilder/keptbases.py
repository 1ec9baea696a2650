"""Which bases the kept publications' sources were exported in, for each trust domain: fsck makes
those sources anew in them.

DIRECTORY/run/bases.json is written whole by gc; an export adds its own. While there is none, nobody
knows, and a worker keeps what it has room for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from invirtibuilder import files
from invirtibuilder.errors import Malformed
from invirtibuilder.settings import Site

VERSION = 1
MOST = 500
"""Bases of a domain; a worker's word is behind each."""
DIGEST = re.compile(r"[0-9a-f]{64}")

Needed = Mapping[str, frozenset[str]]
"""Digests by domain."""


def _file(site: Site) -> Path:
    return site.directory / "run" / "bases.json"


def needed(site: Site) -> Needed | None:
    """What was written last, if anything readable was."""
    try:
        value = files.read_json(_file(site))
        if value["v"] != VERSION:
            return None
        return {
            str(domain): frozenset(d for d in map(str, digests) if DIGEST.fullmatch(d))
            for domain, digests in value["domains"].items()
        }
    except (OSError, Malformed, LookupError, TypeError, ValueError, AttributeError):
        return None


def need(site: Site, domain: str, digest: str) -> None:
    """Add a base that something has just been exported in."""
    known = needed(site)
    if known is None or digest in known.get(domain, ()) or not DIGEST.fullmatch(digest):
        return
    with files.locked(_file(site).with_suffix(".lock")):
        known = needed(site) or {}
        if len(known.get(domain, ())) < MOST:
            _write(site, {**known, domain: known.get(domain, frozenset()) | {digest}})


def replace(site: Site, before: Needed | None, found: Needed) -> None:
    """Write what is needed now: `found`, and what was added since it was `before`."""
    with files.locked(_file(site).with_suffix(".lock")):
        now = needed(site) or {}
        old = before or {}
        added = {domain: now[domain] - old.get(domain, frozenset()) for domain in now}
        domains = {*found, *added}
        _write(
            site,
            {d: found.get(d, frozenset()) | added.get(d, frozenset()) for d in sorted(domains)},
        )


def _write(site: Site, value: Mapping[str, Iterable[str]]) -> None:
    domains = {domain: sorted(digests) for domain, digests in value.items()}
    files.write_json(_file(site), {"v": VERSION, "domains": domains})
