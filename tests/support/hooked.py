"""Points at which a test does something in the middle of other work: Python's audit events."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Action = Callable[[str, tuple[Any, ...]], None]

_actions: list[Action] = []
_added: list[bool] = []


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if _actions:
        # What the action does itself, in whichever thread, is no such point.
        action = _actions.pop()
        try:
            action(event, args)
        finally:
            _actions.append(action)


@contextmanager
def at(action: Action) -> Iterator[None]:
    """Have `action` called at each event (`open`, `os.remove`...), in the thread that it is of."""
    if not _added:
        # It cannot be taken away again.
        sys.addaudithook(_heard)
        _added.append(True)
    _actions.append(action)
    try:
        yield
    finally:
        _actions.clear()
