"""Slots: each order at work has a block of subordinate ids and a directory of its own.

What one block's ids own cannot be seen under another's, so nothing in a slot is shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder import files
from invirtibuilder.errors import Cancelled
from invirtibuilder.sandbox.ids import Ids

POLL = 0.05
FOLDERS = ("bases", "layers", "scratch")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A block of the account's subordinate ids, and what they own in a worker's directory."""

    number: int
    directory: Path
    ids: Ids


def slots(domain: Path, numbers: Sequence[int] = ()) -> list[Slot]:
    """The slots with these numbers, or one for each block of the account; none is made.

    Raises MachineFault when the account has too few blocks, with the command that adds them.
    """
    if not numbers:
        numbers = range(1, max(1, len(Ids.all_of_user())) + 1)
    Ids.of_user(max(numbers))
    blocks = Ids.all_of_user()
    return [Slot(number=n, directory=domain / f"slot-{n}", ids=blocks[n - 1]) for n in numbers]


@contextmanager
def taken(
    domain: Path,
    numbers: Sequence[int] = (),
    *,
    stop: Callable[[], bool] = lambda: False,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[Slot]:
    """The first free slot, held while the block runs and no longer than this process lives.

    Waits for one, after saying so once by `waiting`. Raises Cancelled, MachineFault.
    """
    found = slots(domain, numbers)
    for slot in found:
        for name in ("", *FOLDERS):
            (slot.directory / name).mkdir(parents=True, exist_ok=True)
        # Its trees hold set-user-ID programs of strangers: whoever could start one of them on this
        # machine would be the owner of every tree here. Sandboxes do not need the way.
        slot.directory.chmod(0o700)
    with ExitStack() as stack:
        yield _free(stack, found, stop, waiting)


def _free(
    stack: ExitStack,
    found: Sequence[Slot],
    stop: Callable[[], bool],
    waiting: Callable[[], None],
) -> Slot:
    said = False
    while True:
        for slot in found:
            with suppress(files.Busy):
                stack.enter_context(files.locked(slot.directory / "lock", wait=False))
                return slot
        if stop():
            raise Cancelled("the order was cancelled")
        if not said:
            waiting()
            said = True
        time.sleep(POLL)


def parse(text: str) -> range:
    """Slots as the command line names them.

    >>> parse("2-3"), parse("1")
    (range(2, 4), range(1, 2))
    """
    first, dash, last = text.partition("-")
    try:
        found = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        found = range(0)
    if not found or found[0] < 1:
        raise ValueError(f"not slots: {text!r}; FIRST-LAST, from 1")
    return found
