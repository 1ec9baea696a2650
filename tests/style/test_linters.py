"""ruff, mypy and docutils have nothing to say; a tool that is missing is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.repository import TOP, checked, scripts, tool

DOCUMENTS = sorted(
    p
    for folder in (".", "conf/guide", "conf/remctl", "hooks.d")
    for p in (TOP / folder).glob("*.rst")
)


def sources() -> list[Path]:
    return [TOP / "invirtibuilder", TOP / "tests", *scripts()]


def test_there_are_scripts() -> None:
    names = {str(path.relative_to(TOP)) for path in scripts()}
    assert {"hooks.d/mail", "hooks.d/audit", "hooks.d/webhook", "conf/try-install"} <= names


def test_ruff_check() -> None:
    checked(tool("ruff"), "check", "--no-cache", "--quiet", *sources())


def test_ruff_format() -> None:
    checked(tool("ruff"), "format", "--no-cache", "--check", "--quiet", *sources())


def test_mypy() -> None:
    # What files, how strict: setup.cfg; scripts have no suffix by which mypy would find them.
    checked(tool("mypy"), "--no-error-summary", *sources())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(TOP)))
def test_docutils(path: Path) -> None:
    checked(tool("python"), "-m", "docutils", "--strict", "--writer=null", path)
