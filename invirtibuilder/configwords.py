"""What the words of a configuration may be: each takes a text and returns it, or ValueError."""

from __future__ import annotations

import pwd
import re
from collections.abc import Callable


def one_of(value: str, allowed: tuple[str, ...]) -> str:
    """One of a few."""
    if value not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}, not {value!r}")
    return value


def _pattern(expression: str, what: str) -> Callable[[str], str]:
    compiled = re.compile(expression)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"not {what}: {value!r}")
        return value

    return check


word = _pattern(r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,99}", "a suite, component or codename")
site_name = _pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name (letters, digits, . _ -)")
hook_word = _pattern(r"[a-z0-9][a-z0-9_-]{0,39}", "a name for a hook (a-z, 0-9, - and _)")
url = _pattern(r"(https?://|file:)[!-~]+", "a URI (http://, https:// or file:)")
person = _pattern(r"[^<>\n\x00-\x1f]{1,100}", "a name without <, > and control characters")
mail = _pattern(r"[A-Za-z0-9._+-]+@[A-Za-z0-9.-]+", "a mail address")
fingerprint = _pattern(r"[0-9A-F]{40}", "a key's fingerprint (40 digits, upper case)")
architecture = _pattern(r"[a-z0-9][a-z0-9-]{1,29}", "an architecture")
branch = _pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "a branch name")
profile = _pattern(r"[a-z0-9][a-z0-9.+-]*", "a build profile")
option = _pattern(r"[a-z0-9][a-z0-9.+=,_-]*", "a build option")


def account(value: str) -> str:
    """An account of this machine."""
    try:
        pwd.getpwnam(value)
    except KeyError as error:
        raise ValueError(f"no such account: {value}") from error
    return value


def tag_format(value: str) -> str:
    """The name of a tag with {version} in it."""
    if value.count("{version}") != 1 or not re.fullmatch(
        r"[A-Za-z0-9._/-]*", value.replace("{version}", "")
    ):
        raise ValueError(f"must hold {{version}} once, else letters, digits, . _ / -: {value!r}")
    return value


def suffix(value: str) -> str:
    """What a backtracking pocket appends to versions, with {timestamp} in it."""
    rest = re.sub(r"\{(pocket|timestamp|shortid)\}", "", value)
    if not re.fullmatch(r"[A-Za-z0-9.+~]*", rest) or "{timestamp}" not in value:
        raise ValueError(
            "must hold {timestamp}; besides {pocket}, {shortid}, letters, digits, . + ~ only:"
            f" {value!r}"
        )
    return value
