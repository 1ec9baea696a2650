"""No giant files, no function that does not fit on a screen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.repository import TOP, modules, scripts, tree

MODULE = 450
FUNCTION = 60
TEST_MODULE = 700
METHODS = 30

SOURCES = [*modules().values(), *scripts()]
TESTS = sorted((TOP / "tests").rglob("*.py"))


def lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


def name_of(path: Path) -> str:
    return str(path.relative_to(TOP))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_module(path: Path) -> None:
    assert lines(path) <= MODULE
    long = {
        node.name: size
        for node in functions(path)
        if (size := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION
    }
    assert not long, f"more than {FUNCTION} lines: {long}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            assert len(methods) <= METHODS, node.name


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_of_tests(path: Path) -> None:
    assert lines(path) <= TEST_MODULE


def says_what_it_is(node: ast.stmt) -> bool:
    """By a docstring or, a subcommand, by its `description`."""
    if isinstance(node, ast.ClassDef):
        targets = [t for n in node.body if isinstance(n, ast.Assign) for t in n.targets]
        if any(isinstance(t, ast.Name) and t.id == "description" for t in targets):
            return True
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if not isinstance(node, kinds) or node.name.startswith("_") or node.name == "main":
        return True
    return bool(ast.get_docstring(node))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_public_thing_of_a_module_says_what_it_is(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), "the module has no docstring"
    # Nobody imports from scripts.
    if path.suffix and "inside" not in path.parts:
        silent = [getattr(n, "name", "") for n in module.body if not says_what_it_is(n)]
        assert not silent, f"without a docstring: {', '.join(silent)}"
