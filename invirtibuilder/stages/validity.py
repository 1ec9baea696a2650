"""What is published is signed again: before it runs out, where `valid_for` is set; by new keys."""

from __future__ import annotations

from datetime import timedelta

from invirtibuilder import files
from invirtibuilder.apt.publications import RELEASE_LIMIT
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Archive, Context
from invirtibuilder.stages.transaction import settled


def ensure_signed(context: Context, pocket: Pocket) -> None:
    """Publish the same content anew when others than the pocket's keys have signed it.

    So a client that knows the new keys only need not wait for the next package. Raises Wait, and
    what signing raises.
    """
    if not _signed(context, pocket, context.archive(pocket)):
        with settled(context, pocket) as (archive, _):
            if not _signed(context, pocket, archive):
                _sign_again(context, pocket, archive)


def renew(context: Context, pocket: Pocket, *, lost: bool = False) -> bool:
    """Publish the same content with a new date; false when there is none yet.

    With `lost`, also later than the dates of publications that are not here any more.
    """
    with settled(context, pocket) as (archive, _):
        if archive.publications.current() is None:
            return False
        _sign_again(context, pocket, archive, lost=lost)
        return True


def _signed(context: Context, pocket: Pocket, archive: Archive) -> bool:
    current = archive.publications.current()
    if current is None:
        return True
    dist = archive.publications.path(current) / "dists" / pocket.codename
    inrelease = files.read_capped(dist / "InRelease", limit=RELEASE_LIMIT)
    return context.signer(pocket).signed(inrelease)


def keep_valid(context: Context, pocket: Pocket) -> float | None:
    """Publish the same content with a new date when half of its time is over.

    Returns the seconds until the next look, None when there will be nothing to do. A publication
    that runs out although `valid_for` is no longer set is replaced by one that does not. Raises
    Wait, and what signing raises.
    """
    archive = context.archive(pocket)
    due = _due(context, pocket, archive)
    if due is not None and due <= 0:
        with settled(context, pocket) as (archive, _):
            # Somebody may have published while we waited for the lock.
            due = _due(context, pocket, archive)
            if due is not None and due <= 0:
                _sign_again(context, pocket, archive)
                due = _due(context, pocket, archive)
    return due


def _due(context: Context, pocket: Pocket, archive: Archive) -> float | None:
    """Seconds until it has to be signed again; None: never."""
    publications = archive.publications
    current = publications.current()
    if current is None:
        return None
    until = publications.valid_until(current)
    if pocket.valid_for is None:
        return None if until is None else 0.0
    if until is None:
        return 0.0
    half = timedelta(seconds=pocket.valid_for / 2)
    # Whichever is sooner: `valid_for` may be another than when it was signed.
    at = min(until - half, publications.date(current) + half)
    return (at - context.clock()).total_seconds()


def _sign_again(context: Context, pocket: Pocket, archive: Archive, *, lost: bool = False) -> None:
    publications = archive.publications
    number = publications.numbers()[-1] + 1
    publications.stage(
        number,
        date=publications.next_date(context.clock(), lost=lost),
        valid_for=pocket.valid_for,
        again=publications.current(),
        sign=context.signer(pocket).sign,
    )
    publications.switch(number)
