"""What an AppArmor profile lets a program do with files, as far as ours say it (apparmor.d(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.run import run

_RULE = re.compile(r"^\s*(?:owner\s+)?(?:(/\S*|@\{\S*)\s+([a-zA-Z]+)|([a-zA-Z]+)\s+(/\S*|@\{\S*)),")
_VARIABLE = re.compile(r"^\s*(@\{\w+\})\s*(\+?)=\s*(.*)$")
_PERMISSIONS = re.compile(r"[rwaxmlkiupcPUC]+")


@dataclass(frozen=True)
class Profile:
    """Rules for files: a pattern of paths and the letters that it grants."""

    rules: tuple[tuple[re.Pattern[str], frozenset[str]], ...]

    def allows(self, path: str, letter: str) -> bool:
        """Whether a file may be read (r), written (w), run (x) or linked to (l)."""
        return any(letter in letters and regex.fullmatch(path) for regex, letters in self.rules)


def profile(path: Path) -> Profile:
    """The profile, with what it includes, as apparmor_parser puts it together."""
    text = run(["apparmor_parser", "--preprocess", path]).text
    variables: dict[str, list[str]] = {}
    rules = []
    for line in text.splitlines():
        if (found := _VARIABLE.match(line)) is not None:
            values = [*variables.get(found[1], []), *found[3].split("#")[0].split()]
            variables[found[1]] = values if found[2] else found[3].split("#")[0].split()
        elif (found := _RULE.match(line)) is not None and "deny" not in line:
            pattern, letters = (found[1], found[2]) if found[1] else (found[4], found[3])
            if _PERMISSIONS.fullmatch(letters):
                for each in _expanded(pattern.strip('"'), variables):
                    rules.append((re.compile(_regex(each)), frozenset(letters)))
    return Profile(tuple(rules))


def _expanded(pattern: str, variables: dict[str, list[str]]) -> Iterator[str]:
    """The pattern with each value of its variables."""
    found = re.search(r"@\{\w+\}", pattern)
    if found is None:
        yield pattern
        return
    for value in variables.get(found[0], []):
        joined = pattern[: found.start()] + value + pattern[found.end() :]
        yield from _expanded(re.sub("//+", "/", joined), variables)


def _regex(pattern: str) -> str:
    """A pattern's language.

    >>> [bool(re.fullmatch(_regex("/a/{,**}b*"), p)) for p in ("/a/b", "/a/x/yb1", "/a/b/c")]
    [True, True, False]
    """
    made = ""
    position = depth = 0
    while position < len(pattern):
        letter = pattern[position]
        if pattern.startswith("**", position):
            made += ".*"
            position += 1
        elif letter == "[":
            end = pattern.index("]", position)
            made += pattern[position : end + 1].replace("[^", "[^/")
            position = end
        else:
            depth += (letter == "{") - (letter == "}")
            simple = {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")"}
            made += "|" if letter == "," and depth else simple.get(letter, re.escape(letter))
        position += 1
    return made
