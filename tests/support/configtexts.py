"""What is written of the configuration's keys: in invirtibuilder.yaml(5), and in the example."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support.repository import TOP

EXAMPLE = TOP / "conf/invirtibuilder.yaml"
PAGE = TOP / "debian/man/invirtibuilder.yaml.5"
SECTIONS = {"SITE": "site", "HOOKS": "hooks", "TRUST DOMAINS": "domains", "POCKETS": "pockets"}
"""Of the page, and the key that each is about."""
CHOSEN = ("trusted", "untrusted", "staging", "chromium")
"""Names that the example has chosen."""
TAG = re.compile(r"\.(?:BR?|BI) ([a-z_]+)(?: \"?(.*?)\"?)?$")
Place = tuple[str, ...]
"""The keys down to one, without chosen names and positions in lists."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is told of a key; no `default` is an empty one."""

    text: str
    required: bool
    default: str


def page() -> dict[Place, Told]:
    """The keys of invirtibuilder.yaml(5): each has a tag, one below another within .RS and .RE."""
    found: dict[Place, Told] = {}
    for name, text in re.findall(r"^\.SH (.*)\n((?:(?!\.SH).*\n)*)", PAGE.read_text(), re.M):
        if name in SECTIONS:
            _section(found, SECTIONS[name], text.splitlines())
    return found


def _section(found: dict[Place, Told], key: str, lines: list[str]) -> None:
    place: Place = (key,)
    bodies: dict[Place, list[str]] = {place: []}
    tags = {place: "(required)" if key in ("site", "pockets") else ""}
    above = [place]
    tagged = False
    for line in lines:
        if tagged:
            tag = TAG.fullmatch(line)
            assert tag, f"not a key: {line}"
            place = (*above[-1], tag[1])
            assert place not in bodies, f"{place} is told twice"
            bodies[place], tags[place] = [], tag[2] or ""
        elif line == ".RS":
            above.append(place)
        elif line == ".RE":
            place = above.pop()
        elif line not in (".TP", ".TQ"):
            bodies[place].append(_plain(line))
        tagged = line in (".TP", ".TQ")
    for each, body in bodies.items():
        text = " ".join(body)
        stated = re.findall(r"Default: (.+?)[.;](?= |$)", text)
        assert len(stated) <= 1, each
        needed = "(required)" in tags[each]
        found[each] = Told(text=text, required=needed, default="".join(stated))


def _plain(line: str) -> str:
    """A line of roff as text."""
    if macro := re.match(r"\.[BI]?[RBIP]? ?(.*)", line):
        words = re.findall(r'"([^"]*)"|(\S+)', macro[1])
        alternating = re.match(r"\.[BIR]{2} ", line)
        line = ("" if alternating else " ").join(a or b for a, b in words)
    return re.sub(r"\\f[BIRP]", "", line).replace(r"\-", "-")


def example() -> dict[Place, Told]:
    """The keys of the example down to the end of its first pocket, by the comments above each."""
    found: dict[Place, Told] = {}
    text = EXAMPLE.read_text()
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text[: text.index("\n  dev:")].splitlines():
        key = re.match(r"( *(?:- )?)([a-z_]+):", line)
        _, mark, said = line.partition("#")
        comment = [*comment, said.strip()] if mark else comment if key else []
        if key:
            depth = len(key[1])
            stack = [each for each in stack if each[0] < depth] + [(depth, key[2])]
            told = " ".join(comment)
            default = re.search(r"\(default: ([^;]+?)(?:;[^)]*)?\)(?= |$)", told)
            found[tuple(name for _, name in stack if name not in CHOSEN)] = Told(
                text=told,
                required=told == "required" or "(required" in told,
                default=default[1] if default else "",
            )
            comment = []
    return found
