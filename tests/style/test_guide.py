"""The guides name what there is: tests of threats, codes of refusals."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support import documents
from tests.support.repository import TOP, modules, tree

GUIDE = (TOP / "conf/guide/administrator.rst").read_text()
SUBMITTER = (TOP / "conf/guide/submitter.rst").read_text()
THREATS = {
    *(f"Excess of {what}" for what in ("CPU", "memory", "disk", "log", "network")),
    *(f"Attack on {what}" for what in ("network hosts", "the build host", "other builds")),
    *(f"Attack on {what}" for what in ("the archive", "the record")),
    "A subverted account of a submitter",
    "A subverted worker",
    "A subverted hook, or program of an ACL",
    "A subverted web server, or a network between",
}


def threats() -> dict[str, str]:
    """Each threat with what is said of it."""
    text = GUIDE.partition("\nThreats\n-------\n")[2]
    found = re.findall(r"^(\S.*)\n((?:   .*\n|\n)+)", text, re.MULTILINE)
    return {name: said for name, said in found if said.startswith("   ")}


@pytest.mark.parametrize("path", documents.DOCUMENTS, ids=lambda p: p.name)
def test_commands_can_be_run(path: Path) -> None:
    """Whether they do what is promised is for tests/system/test_documents*.py."""
    lines = [line for block in documents.blocks(path) for line in block.lines if not block.mark]
    assert lines
    for line in lines:
        documents.checked(line)
    assert not documents.hidden(path), "commands belong into a plain literal block"


def test_units_exist() -> None:
    """Those that the guides name, as debhelper installs them."""
    text = GUIDE + SUBMITTER
    named = set(
        re.findall(r"\b(invirtibuilder[a-z-]*)(?:@[a-zA-Z]+)?\.(service|socket|timer)", text)
    )
    assert len(named) > 2
    for name, kind in named:
        forms = (
            f"{name}.{kind}",
            f"invirtibuilder.{name}.{kind}",
            f"invirtibuilder@.{name}.{kind}",
        )
        assert any((TOP / "debian" / form).exists() for form in forms), f"no unit {name}.{kind}"


def test_every_threat_is_there() -> None:
    assert set(threats()) == THREATS


@pytest.mark.parametrize("threat", sorted(THREATS))
def test_the_tests_of_a_threat_exist(threat: str) -> None:
    named = re.findall(r"``(tests/[a-z/_]+\.py)::(\w+)``", threats()[threat])
    assert named
    for file, test in named:
        defined = {n.name for n in ast.walk(tree(TOP / file)) if isinstance(n, ast.FunctionDef)}
        assert test in defined, f"{file} has no {test}"


def test_the_codes_of_refusals_exist() -> None:
    section = SUBMITTER.partition("\nWhat a refusal means\n")[2].partition("\nFetch\n")[0]
    codes = set(re.findall(r"``([a-z]+(?:-[a-z]+)+)``", section)) - {"pristine-tar"}
    assert {"not-permitted", "too-many-submissions"} <= codes
    source = "".join(path.read_text() for path in modules().values())
    assert {code for code in codes if f'"{code}"' not in source} == set()


def test_the_states_are_those_of_jobs() -> None:
    section = SUBMITTER.partition("\nLook\n")[2]
    shown = re.findall(r"^([a-z]+)  ", section.partition("\nWhat a refusal")[0], re.MULTILINE)
    readme = (TOP / "README.rst").read_text()
    assert set(shown) == set(re.findall(r"^    ([a-z]+) +-> ", readme, re.MULTILINE))
