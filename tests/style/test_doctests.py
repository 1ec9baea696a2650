"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.support.repository import modules

# Scripts, which are imported by nobody here.
NAMES = [n for n in modules() if n and n != "__main__" and not n.startswith("inside.export")]


@pytest.mark.parametrize("name", NAMES)
def test_module(name: str) -> None:
    module = importlib.import_module(f"invirtibuilder.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_examples() -> None:
    assert ">>>" in modules()["model"].read_text()
