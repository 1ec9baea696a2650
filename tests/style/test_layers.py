"""Who may import whom. The rows are those of README.rst, from the bottom up."""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from functools import cache

import pytest

from tests.support.repository import TOP, module_name, modules, scripts, tree

# A row imports from the rows above it and, in the order of its own patterns, from itself.
ROWS: dict[str, tuple[str, ...]] = {
    "core": ("errors", "model", "states", "run", "confine", "accounts", "files", "treecopy")
    + ("tarsafe",)
    + ("jsonsafe", "order", "journal", "sockets", "watchdog", "gitcmd", "gitobjects", "gitshared")
    + ("yamlread",),
    "site": ("settings", "configwords", "config", "entries", "spool", "joblog", "pauses")
    + ("keptbases", "aliases", "jobs", "tally", "maintenance"),
    "adapters": (
        "hookcall",
        "notifierclient",
        "acl",
        "gitrepo",
        "superproject",
        "debsource",
        "debchanges",
        "gbpconf",
    )
    + ("apt.*", "hooks", "engine", "remctl"),
    "line": ("stages.*", "pipeline", "hosting", "retention", "fsck.*", "rebuild", "differences")
    + ("keyring", "acts", "acltable", "quotas", "submissions", "answers", "schedule", "runner")
    + ("notifier", "signerservice", "daemon", "health", "metrics", "backup"),
    "work": ("sandbox.*", "phases.*", "worker"),
    "entry": ("door.*", "cli.*", "__main__"),
    "inside": ("inside.*",),
}
ABOVE = {
    "core": (),
    "site": ("core",),
    "adapters": ("core",),
    "line": ("core", "site", "adapters"),
    "work": ("core", "adapters"),
    "entry": ("core", "site", "adapters", "line", "work"),
    "inside": (),
}
# What stages share; they import nothing else of each other.
STAGE_HELPERS = (
    *("stages.context", "stages.events", "stages.orders"),
    *("stages.assess", "stages.dependencies", "stages.uploads", "stages.changes"),
    *("stages.transaction", "stages.finish", "stages.history", "stages.again", "stages.database"),
)
# Each with its reason. An entry that is no longer needed fails.
EXCEPTIONS = {
    ("acl", "settings"): "an ACL's entry is the configuration's own value",
    ("acl", "notifierclient"): "its programs are run here or there, and its users do not care",
    ("hooks", "hookcall"): "one subject in two files: delivery, and one run",
    ("notifierclient", "hookcall"): "a hook is one, whoever runs it",
    ("phases.workshop", "inside"): "only to find the scripts that it hands into the sandbox",
}
# Few modules know a foreign library; none of ours is in the list of the door programs.
FOREIGN = {
    "yaml": {"yamlread", "config"},
    "debian": {"apt.exchange", "apt.packages", "apt.publications", "apt.reprepro", "debsource"},
    "inotify_simple": {"daemon"},
    "seccomp": {"confine", "sandbox.kernel", "sandbox.seccomp_filter"},
    "gssapi": {"remctl"},
}
SLOW = {"yaml", "debian", "git", "gssapi", "seccomp", "inotify_simple"}

# What is imported in a statement of its own: git with a clean environment, gssapi by those only
# who have called `remote`, and of the subcommands the one that is called.
LATE = {
    "gitobjects": "'git'",
    "cli.remote": "'invirtibuilder.remctl'",
    "cli.main": "f'invirtibuilder.cli.{module}'",
}

NAMES = [name for name in modules() if name]


def row_of(name: str) -> str:
    packages = (*(f"{name}.*",), name)
    found = [row for row, ps in ROWS.items() for p in ps if p in packages or fnmatchcase(name, p)]
    assert len(set(found)) == 1, f"{name} belongs to one row, not to {found}"
    return found[0]


def place(name: str) -> int:
    """Where in its row a module is; a package's modules share a place."""
    patterns = ROWS[row_of(name)]
    return next(i for i, p in enumerate(patterns) if fnmatchcase(name, p) or p == f"{name}.*")


@cache
def imports(name: str) -> set[str]:
    """Our own modules that this one imports."""
    found = set()
    known = modules()
    for node in ast.walk(tree(known[name])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("invirtibuilder"):
            base = (node.module or "").removeprefix("invirtibuilder").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in known else base)
        elif isinstance(node, ast.Import):
            ours = (a.name for a in node.names if a.name.startswith("invirtibuilder"))
            found |= {n.removeprefix("invirtibuilder").lstrip(".") for n in ours}
    return found - {""}


def foreign(path_tree: ast.Module) -> set[str]:
    """Top-level modules of others that are imported."""
    found = set()
    for node in ast.walk(path_tree):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found - {"invirtibuilder"}


@cache
def reached(name: str) -> set[str]:
    """Everything that importing this module imports of ours."""
    todo, seen = [name], set()
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            todo += imports(here)
    return seen


def allowed(importer: str, imported: str) -> bool:
    row, other = row_of(importer), row_of(imported)
    if (importer, imported) in EXCEPTIONS or other in ABOVE[row]:
        return True
    if row != other:
        return False
    if importer.startswith("stages."):
        return imported in STAGE_HELPERS
    if row == "adapters":
        return importer.split(".")[0] == imported.split(".")[0] == "apt"
    if row in ("core", "site"):
        return True
    return place(imported) <= place(importer)


def test_the_rule() -> None:
    assert allowed("stages.build", "stages.orders")
    assert allowed("phases.build", "sandbox.contract")
    assert allowed("worker", "engine")
    for importer, imported in (
        ("errors", "config"),
        ("gitrepo", "config"),
        ("gitrepo", "debsource"),
        ("apt.reprepro", "debchanges"),
        ("stages.build", "stages.export"),
        ("stages.build", "pipeline"),
        ("stages.build", "worker"),
        ("worker", "stages.build"),
        ("sandbox.userns", "worker"),
        ("worker", "config"),
        ("daemon", "cli.main"),
        ("inside.collect", "files"),
    ):
        assert not allowed(importer, imported), f"{importer} may import {imported}"


@pytest.mark.parametrize("name", NAMES)
def test_direction(name: str) -> None:
    wrong = sorted(other for other in imports(name) if not allowed(name, other))
    assert not wrong, f"{name} ({row_of(name)}) imports {', '.join(wrong)}"


def test_no_cycle() -> None:
    cycles = [n for n in NAMES if any(n in reached(other) for other in imports(n))]
    assert not cycles, f"import each other: {', '.join(cycles)}"


def test_exceptions_are_needed() -> None:
    assert all(imported in imports(importer) for importer, imported in EXCEPTIONS)


def test_patterns_are_needed() -> None:
    for patterns in ROWS.values():
        for pattern in patterns:
            assert any(fnmatchcase(name, pattern) for name in NAMES), f"no module {pattern}"


def test_one_door_to_processes() -> None:
    users = {n for n in NAMES if foreign(tree(modules()[n])) & {"subprocess", "multiprocessing"}}
    assert {n for n in users if row_of(n) != "inside"} == {"run"}
    for name in NAMES:
        calls = {
            n.attr
            for n in ast.walk(tree(modules()[name]))
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "os"
        }
        forbidden = calls & {"system", "popen", "posix_spawn", "spawnv", "spawnvp"}
        assert not forbidden, f"{name}: os.{forbidden}"


@pytest.mark.parametrize("library", FOREIGN)
def test_foreign_libraries(library: str) -> None:
    users = {name for name in NAMES if library in foreign(tree(modules()[name]))}
    assert users == FOREIGN[library]


def test_inside_needs_only_the_standard_library() -> None:
    for name in NAMES:
        if row_of(name) == "inside":
            strange = foreign(tree(modules()[name])) - sys.stdlib_module_names
            # Scripts beside each other, copied into one directory.
            beside = {n.removeprefix("inside.") for n in NAMES if n.startswith("inside.")}
            assert strange <= beside, f"{name} imports {strange - beside}"


def test_hooks_need_only_the_standard_library() -> None:
    for path in scripts():
        if path.parent.name == "hooks.d":
            assert foreign(tree(path)) <= sys.stdlib_module_names, path


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("door.")])
def test_doors_start_fast(name: str) -> None:
    slow = {n: foreign(tree(modules()[n])) & SLOW for n in reached(name)}
    assert not any(slow.values()), {n: libraries for n, libraries in slow.items() if libraries}


def test_no_import_within_a_function() -> None:
    found = [
        f"{path.relative_to(TOP)}:{inner.lineno}"
        for path in (*modules().values(), *scripts())
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert not found


def test_what_is_imported_late() -> None:
    late = {}
    for name in NAMES:
        for node in ast.walk(tree(modules()[name])):
            if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                late[name] = ast.unparse(node.args[0])
            assert not isinstance(node, ast.Name) or node.id != "__import__", name
    assert late == LATE


def test_no_star_and_no_relative_import() -> None:
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, name
                assert all(alias.name != "*" for alias in node.names), name


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    """A program run from inside the folder would import ours instead."""
    clashes = [n for n in NAMES if n.split(".")[-1] in sys.stdlib_module_names - {"__main__"}]
    assert not clashes


def test_module_names_are_understood() -> None:
    assert "apt.mirror" in NAMES
    assert module_name(modules()["apt"]) == "apt"
    assert "files" in imports("gitrepo")
