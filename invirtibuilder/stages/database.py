"""reprepro's database against the records, and made anew from them when it is damaged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges
from invirtibuilder.apt.exchange import PACKAGES, Exchange
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.errors import Fault, MachineFault
from invirtibuilder.run import Killed
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import uploads
from invirtibuilder.stages.context import Archive, Context, Wait

LATER = timedelta(minutes=5)

SUSPECT = frozenset({"reprepro-failed", "reprepro-kept", "reprepro-refused", "export-differs"})
SUSPECT |= {"binary-clash"}
"""What a publication may fail with because the database is damaged: then it is looked at."""

Records = Mapping[str, Mapping[str, Any]]
Row = tuple[str, str, str, str, str, str]
"""Source and its version; the binary's name and version, with its index; file; SHA-256."""


def wrong(reprepro: Reprepro, records: Records, *, lock_fd: int) -> Iterator[tuple[str, str]]:
    """What the database has otherwise than the records: a source, or "db" for all, and in words.

    The pocket's lock is held. reprepro's own check and an export are tried on a copy, as both
    write: a damaged cache shows in nothing else.
    """
    with reprepro.tried() as copy:
        try:
            entries = copy.listing(lock_fd=lock_fd)
            referred = copy.references(lock_fd=lock_fd)
            sums = copy.checksums(lock_fd=lock_fd)
            copy.call("check", lock_fd=lock_fd)
            copy.export(lock_fd=lock_fd)
        except Killed:
            raise
        except Fault as fault:
            yield "db", str(fault)
            return
    there: set[Row] = {
        (e.source, e.source_version, e.package, f"{e.version} ({e.architecture})", e.file, e.sha256)
        for e in entries
    }
    wanted = {row for source, record in records.items() for row in _rows(reprepro, source, record)}
    for rows, side in ((wanted - there, "lacks"), (there - wanted, "has")):
        for source in sorted({row[0] for row in rows}):
            which = sorted(f"{row[2]} {row[3]}" for row in rows if row[0] == source)
            yield source, f"reprepro's database {side} of {source}: {', '.join(which)}"
    named = {path.rpartition("/")[2] for path in referred}
    hashed = {path.rpartition("/")[2]: sha256 for path, sha256 in sums.items()}
    for source, record in sorted(records.items()):
        for file in uploads.published_files(record):
            if file["name"] not in named:
                yield source, f"reprepro's database does not know who needs {file['name']}"
            elif hashed.get(file["name"]) != file["sha256"]:
                yield source, f"reprepro's database does not know the content of {file['name']}"


def _rows(reprepro: Reprepro, source: str, record: Mapping[str, Any]) -> Iterator[Row]:
    """What the indices are to have of a record."""
    version = str(record["version"])
    for file in uploads.published_files(record):
        name, sha256 = str(file["name"]), str(file["sha256"])
        if name == record["dsc"]:
            yield source, version, source, f"{version} (source)", name, ""
        elif name.endswith(PACKAGES):
            package, plain, architecture = debchanges.binary_name(name)
            own = record["binaries"].get(package, plain)
            every = reprepro.architectures if architecture == "all" else (architecture,)
            for index in every:
                yield source, version, package, f"{own} ({index})", name, sha256


def filled(context: Context, pocket: Pocket, archive: Archive, *, lock_fd: int) -> None:
    """Fill the database anew with what the branch records.

    In a transaction. Raises Fault, as Refused when a recorded file is no longer kept; then restore.
    """
    tip = context.superproject.tip(pocket.branch)
    pins, records = context.superproject.content(tip) if tip else ({}, {})
    if odd := sorted(pins.keys() ^ records.keys()):
        raise MachineFault(f"{pocket.branch} does not both pin and record {odd[0]}")
    archive.reprepro.empty()
    exchanged(context, pocket, archive, records, lock_fd=lock_fd)


def exchanged(
    context: Context,
    pocket: Pocket,
    archive: Archive,
    records: Mapping[str, Mapping[str, Any] | None],
    *,
    lock_fd: int,
) -> None:
    """Have the database say of these sources what their records say; without one, nothing.

    In a transaction. Raises Fault; as Refused, when a recorded file is no longer kept, before
    anything was done.
    """
    coming = {
        package: uploads.kept_upload(context, pocket, record)
        for package, record in sorted(records.items())
        if record is not None
    }
    sources = {package: record["binaries"] if record else () for package, record in records.items()}
    # Records have each file once: what has moved comes to where it belongs.
    exchange = Exchange(archive.reprepro, sources, take_over=True, lock_fd=lock_fd)
    with tempfile.TemporaryDirectory(prefix=".rebuild.", dir=context.site.jobs) as name:
        for package, upload in coming.items():
            record = records[package] or {}
            date = datetime.fromisoformat(str(record["published"]))
            changes = uploads.gathered(upload, Path(name, package), pocket.codename, date)
            exchange.add(changes, package, upload.version)
        exchange.prove()


def made_anew(context: Context, pocket: Pocket, archive: Archive, *, lock_fd: int) -> None:
    """`filled`, in a transaction of its own."""
    archive.reprepro.begin()
    try:
        filled(context, pocket, archive, lock_fd=lock_fd)
    except BaseException:
        archive.reprepro.restore()
        raise
    archive.reprepro.commit()


def mended(context: Context, pocket: Pocket, archive: Archive, *, lock_fd: int) -> bool:
    """Whether the database was damaged, and is not any more; looked at after a failure.

    Raises Wait when it cannot be made anew: that is nobody's fault who has a job.
    """
    records = context.superproject.records(pocket.branch)
    if not any(wrong(archive.reprepro, records, lock_fd=lock_fd)):
        return False
    try:
        made_anew(context, pocket, archive, lock_fd=lock_fd)
    except (Fault, OSError) as error:
        why = f"reprepro's database of {pocket.name} is damaged, and cannot be made anew: {error}"
        raise Wait(why, context.clock() + LATER) from error
    return True
