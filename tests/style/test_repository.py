"""What is nowhere in the repository."""

from __future__ import annotations

import re

from tests.support.repository import TOP, kept

# In parts, so that this file has none of them itself.
HOSTS = ("deb", "ftp", "security", "archive", "snapshot", "cdn-fastly")
REGISTRIES = [rf"\b{host}[.]debian[.]org\b" for host in HOSTS] + [
    r"\bftp[.][a-z]{2}[.]debian[.]org\b",
    r"\bpypi[.](org|io)\b",
    r"\bpythonhosted[.]org\b",
    r"\barchive[.]ubuntu[.]com\b",
]
# A path of somebody's own machine means nothing on another.
PATHS = [r"(?<![\w.{}$/-])/(work|home/[a-z]+|Users|tmp/[a-z])/"]


def found(patterns: list[str]) -> list[str]:
    expression = re.compile("|".join(patterns))
    hits = []
    for path in kept():
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if expression.search(line.decode("utf-8", "replace")):
                hits.append(f"{path.relative_to(TOP)}:{number}")
    return hits


def test_no_registry_and_no_mirror() -> None:
    """A pocket without a `mirror` uses the machine's own; nothing here names another."""
    assert not found(REGISTRIES)


def test_no_path_of_a_machine() -> None:
    assert not found(PATHS)


def test_the_patterns_find_something() -> None:
    assert re.search(REGISTRIES[0], "http://" + ".".join(("deb", "debian", "org")) + "/debian")
    assert re.search(PATHS[0], "cd " + "/home/" + "somebody/x")


def test_every_file_ends_with_a_newline_and_has_no_trailing_blanks() -> None:
    wrong = []
    for path in kept():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        if data and (not data.endswith(b"\n") or re.search(rb"[ \t]+$", data, re.MULTILINE)):
            wrong.append(str(path.relative_to(TOP)))
    assert not wrong
