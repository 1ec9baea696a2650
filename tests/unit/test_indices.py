"""What is found in an APT index without reading all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from invirtibuilder.apt.packages import sources_of

FIRST = "Package: libfoo\nSource: foo (1.2-1)\nVersion: 1.2-1+b1\n"
SECOND = "Package: bar\nVersion: 1\nDescription: one\n Package: fake\n"
THIRD = "Architecture: all\nPackage: baz\nSource: bar\n"


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_the_sources_of_binary_packages(tmp_path: Path, end: str) -> None:
    index = tmp_path / "Packages"
    index.write_text(f"{FIRST}\n{SECOND}\n{THIRD}".rstrip("\n") + end)
    names = ["libfoo", "bar", "baz", "fake", "ba", "foo", "libfoo-dev"]
    assert sources_of(index, names) == {"libfoo": "foo", "bar": "bar", "baz": "bar"}


def test_an_empty_index(tmp_path: Path) -> None:
    (tmp_path / "Packages").write_text("")
    assert sources_of(tmp_path / "Packages", ["foo"]) == {}
