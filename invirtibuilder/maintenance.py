"""What fsck and gc did last in each pocket, for whoever looks after a site."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from invirtibuilder import files, model
from invirtibuilder.errors import Malformed
from invirtibuilder.settings import Site

FSCK, GC = "fsck", "gc"
Notes = dict[str, dict[str, dict[str, Any]]]


def file(site: Site) -> Path:
    """Where it is written down."""
    return site.socket.parent / "maintenance.json"


def note(site: Site, what: str, now: datetime, pockets: Mapping[str, Mapping[str, Any]]) -> None:
    """Write down that this was done now, with what came of it in each pocket.

    Left out where it cannot be written: what was found is told all the same.
    """
    with suppress(OSError), files.locked(file(site).with_suffix(".lock")):
        value = notes(site)
        for pocket, result in pockets.items():
            value[what][pocket] = {"time": model.iso(now), **result}
        files.write_json(file(site), {"v": 1, **value})


def notes(site: Site) -> Notes:
    """By what was done, and by pocket: `time` and the result; nothing that cannot be read."""
    found: Notes = {FSCK: {}, GC: {}}
    with suppress(OSError, Malformed, LookupError, TypeError, ValueError, AttributeError):
        value = files.read_json(file(site))
        for what in found:
            for pocket, result in value[what].items():
                datetime.fromisoformat(result["time"])
                found[what][str(pocket)] = dict(result)
    return found
