"""A slot's base: its own when it is the newest of all slots, else a copy of that, else a new one.

Making one takes a minute and a mirror; copying one through the ids takes seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from invirtibuilder.files import Busy, locked
from invirtibuilder.order import BASES_SIZE
from invirtibuilder.sandbox.base import (
    Base,
    BaseSpec,
    all_of,
    copy_base,
    current,
    make_base,
    older,
    remove_bases,
)
from invirtibuilder.sandbox.ids import Ids

UNUSED = 60 * 24 * 3600.0
"""Seconds after which a base that nothing was built in is removed when another one is made."""


def slot_base(
    spec: BaseSpec,
    domain: Path,
    slot: Path,
    ids: Ids,
    *,
    log: int,
    say: Callable[[str], None],
    refresh: bool = False,
    keep: Collection[str] | None = (),
    most: int = BASES_SIZE,
) -> Base:
    """The base of this spec in the directory `slot`, as new as in any slot of `domain`.

    With `refresh` it is made anew; the other slots copy it when they need it. Several callers
    make, or refresh, it once. A new one replaces the slot's older ones, which its holder alone
    could use, but those with a digest in `keep` that no other slot has. With None, as nobody knows
    yet which are needed, the newest stay that have room in `most` bytes. Raises RoomFault,
    MachineFault.
    """
    # One that is another account's, and only read here, is that account's to remove.
    with suppress(FileNotFoundError, PermissionError):
        os.utime(slot / "bases" / spec.key)
    before = _newest(spec, domain)
    own = current(spec, slot / "bases")
    if own and before and not refresh and own.made >= before[0].made:
        return own
    with locked(domain / f"base-{spec.key}.lock"):
        newest = _newest(spec, domain)
        made_meanwhile = newest and (before is None or newest[0].made > before[0].made)
        if newest and (made_meanwhile or not refresh):
            own = current(spec, slot / "bases")
            if own and own.made >= newest[0].made:
                return own
            base, of = newest
            say(f"base: a copy of the one in {base.directory.relative_to(domain).parts[0]}")
            made = copy_base(base, of, slot / "bases", ids, log=log)
        else:
            say(f"base: mmdebstrap makes one of {spec.suite}, which takes a minute")
            made = make_base(spec, slot / "bases", ids, log=log, refresh=refresh)
        place = slot / "bases" / spec.key
        remove_bases(place, ids, keep=_kept(place, domain, keep, most))
    if keep is not None:
        _remove_unused(domain, slot / "bases", ids, keep)
    size = sum(base.size for place in _places(slot) for base in older(place))
    if size > most:
        say(f"base: older ones, which are needed, have {size} bytes; bases_size is {most}")
    return made


def old_base(
    digest: str,
    domain: Path,
    slot: Path,
    ids: Ids,
    *,
    log: int,
    say: Callable[[str], None],
) -> Base | None:
    """The base with this digest, of whatever spec, be it an older one, in the directory `slot`.

    A copy, when only another slot of `domain` has it; None when none has. Raises RoomFault.
    """
    for base in _with(digest, slot):
        return base
    for number, of in enumerate(Ids.all_of_user(), 1):
        for base in _with(digest, domain / f"slot-{number}"):
            with locked(domain / f"base-{base.key}.lock"):
                if base in all_of(base.directory.parent):
                    say(f"base: a copy of the one of {base.made} in slot-{number}")
                    return copy_base(base, of, slot / "bases", ids, log=log, as_current=False)
    return None


def _places(slot: Path) -> list[Path]:
    """Where a slot has the bases of each spec."""
    return [path for path in sorted((slot / "bases").glob("[!.]*")) if path.is_dir()]


def _with(digest: str, slot: Path) -> Iterator[Base]:
    return (base for p in _places(slot) for base in all_of(p) if base.digest == digest)


def _kept(place: Path, domain: Path, keep: Collection[str] | None, most: int) -> list[Path]:
    """Of a slot's bases of one spec, those besides the current one that stay."""
    elsewhere = _elsewhere(place, domain)
    elsewhere |= {base.digest for base in all_of(place)} - {base.digest for base in older(place)}
    found = []
    total = 0
    for base in older(place):
        if base.digest not in elsewhere:
            elsewhere.add(base.digest)
            total += base.size
            if total <= most if keep is None else base.digest in keep:
                found.append(base.directory)
    return found


def _elsewhere(place: Path, domain: Path) -> set[str]:
    """The digests of the bases that other slots have of this spec."""
    others = (path for path in domain.glob(f"slot-*/bases/{place.name}") if path != place)
    return {base.digest for path in others for base in all_of(path)}


def _remove_unused(domain: Path, bases: Path, ids: Ids, keep: Collection[str]) -> None:
    """Remove what no pocket has asked for in a long time, but not while it is being copied.

    A pocket's mirror may be another now, and its sources from before are needed all the same.
    """
    for place in bases.iterdir():
        if place.is_dir() and time.time() - (used := place.stat().st_mtime) > UNUSED:
            with suppress(Busy), locked(domain / f"base-{place.name}.lock", wait=False):
                there = {base.digest: base.directory for base in all_of(place)}
                needed = there.keys() & set(keep) - _elsewhere(place, domain)
                stay = [there[digest] for digest in needed]
                remove_bases(place, ids, current_too=True, keep=stay)
                if stay:
                    # So that it is looked at the next time, too.
                    os.utime(place, (used, used))


def _newest(spec: BaseSpec, domain: Path) -> tuple[Base, Ids] | None:
    return max(_bases(spec, domain), key=lambda found: found[0].made, default=None)


def _bases(spec: BaseSpec, domain: Path) -> Iterator[tuple[Base, Ids]]:
    """What the slots have, as far as their blocks are still the account's."""
    blocks = Ids.all_of_user()
    for number, ids in enumerate(blocks, 1):
        if base := current(spec, domain / f"slot-{number}" / "bases"):
            yield base, ids
