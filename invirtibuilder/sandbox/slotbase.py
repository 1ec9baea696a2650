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
    copy_base,
    current,
    make_base,
    older,
    remove_bases,
)
from invirtibuilder.sandbox.ids import Ids, tree_size

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
    could use, but those with a digest in `keep` (None: any) that no other slot has, as far as they
    have room in `most` bytes. Raises RoomFault, MachineFault.
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
            made = copy_base(base, spec, of, slot / "bases", ids, log=log)
        else:
            say(f"base: mmdebstrap makes one of {spec.suite}, which takes a minute")
            made = make_base(spec, slot / "bases", ids, log=log, refresh=refresh)
        kept = _kept(spec, domain, slot, ids, keep, most, say)
        remove_bases(slot / "bases" / spec.key, ids, keep=kept)
    _remove_unused(domain, slot / "bases", ids)
    return made


def old_base(
    spec: BaseSpec,
    digest: str,
    domain: Path,
    slot: Path,
    ids: Ids,
    *,
    log: int,
    say: Callable[[str], None],
) -> Base | None:
    """The base of this spec with this digest, be it an older one, in the directory `slot`.

    A copy, when only another slot of `domain` has it; None when none has. Raises RoomFault.
    """
    with locked(domain / f"base-{spec.key}.lock"):
        for base in _all(spec, slot / "bases"):
            if base.digest == digest:
                return base
        for number, of in enumerate(Ids.all_of_user(), 1):
            for base in _all(spec, domain / f"slot-{number}" / "bases"):
                if base.digest == digest:
                    say(f"base: a copy of the one of {base.made} in slot-{number}")
                    into = slot / "bases"
                    return copy_base(base, spec, of, into, ids, log=log, as_current=False)
    return None


def _all(spec: BaseSpec, bases: Path) -> list[Base]:
    now = current(spec, bases)
    return [*([now] if now else []), *older(spec, bases)]


def _kept(
    spec: BaseSpec,
    domain: Path,
    slot: Path,
    ids: Ids,
    keep: Collection[str] | None,
    most: int,
    say: Callable[[str], None],
) -> list[Path]:
    """The slot's older bases that stay; what is needed and has no room is told."""
    others = [other / "bases" for other in domain.glob("slot-*") if other != slot]
    elsewhere = {base.digest for bases in others for base in _all(spec, bases)}
    if now := current(spec, slot / "bases"):
        elsewhere.add(now.digest)
    found = []
    total = 0
    for base in older(spec, slot / "bases"):
        if base.digest in elsewhere or not (keep is None or base.digest in keep):
            continue
        elsewhere.add(base.digest)
        total += sum(tree_size(ids, tree) for tree in (base.root, base.tools.parent))
        if total <= most:
            found.append(base.directory)
        elif keep is not None:
            say(
                f"base: the one of {base.made} ({base.digest[:16]}) goes, which kept publications"
                f" were exported in: older ones have more than bases_size, {most} bytes"
            )
    return found


def _remove_unused(domain: Path, bases: Path, ids: Ids) -> None:
    """Remove what no pocket has asked for in a long time, but not while it is being copied."""
    for place in bases.iterdir():
        if place.is_dir() and time.time() - place.stat().st_mtime > UNUSED:
            with suppress(Busy), locked(domain / f"base-{place.name}.lock", wait=False):
                remove_bases(place, ids, current_too=True)


def _newest(spec: BaseSpec, domain: Path) -> tuple[Base, Ids] | None:
    return max(_bases(spec, domain), key=lambda found: found[0].made, default=None)


def _bases(spec: BaseSpec, domain: Path) -> Iterator[tuple[Base, Ids]]:
    """What the slots have, as far as their blocks are still the account's."""
    blocks = Ids.all_of_user()
    for number, ids in enumerate(blocks, 1):
        if base := current(spec, domain / f"slot-{number}" / "bases"):
            yield base, ids
