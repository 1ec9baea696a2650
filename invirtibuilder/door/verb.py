"""A verb of the doors: its words, and what it does."""

from __future__ import annotations

from collections.abc import Callable

from invirtibuilder import entries

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
        self.most = entries.MAX_PACKAGES if arguments.endswith(MORE) else len(words)
