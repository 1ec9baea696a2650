"""A verb of the doors: its words, whether they are well-formed, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from invirtibuilder import entries
from invirtibuilder.errors import Malformed, Reason, Refused

MORE = ("...", "...]")
"""How the arguments of a verb end that takes several of the last one."""


class Verb:
    """A row of the table of verbs; `arguments` in brackets may be left out."""

    def __init__(
        self,
        run: Callable[..., int],  # with the call and the words after the verb
        arguments: str,
        about: str,
        more: str = "",
    ) -> None:
        self.run = run
        self.arguments = arguments
        self.about = about
        self.more = more
        words = arguments.split()
        self.least = sum(not word.startswith("[") for word in words)
        self.most = entries.MAX_NAMES if arguments.endswith(MORE) else len(words)


def formed(action: str, args: Sequence[str]) -> None:
    """Raise Refused with all that is malformed in what an action is asked for with."""
    reasons: list[Reason] = []
    for check, word in entries.checked_by(action, args):
        reasons += malformed(check, word)
    if reasons:
        raise Refused(reasons)


def malformed(check: Callable[[object], object], word: str) -> Sequence[Reason]:
    """What a check has against a word."""
    try:
        check(word)
    except Malformed as fault:
        return fault.reasons
    return ()
