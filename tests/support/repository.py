"""The repository itself, as the style tests look at it."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from invirtibuilder.run import Done, run

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "invirtibuilder"
SCRIPTS = ("conf", "conf/remctl", "hooks.d")
"""Folders with Python programs that have no suffix."""


def tool(name: str) -> Path:
    """A program installed beside the Python that runs the tests."""
    path = Path(sys.prefix) / "bin" / name
    assert path.exists(), f"{path} is missing; tests/run installs it"
    return path


def checked(*argv: str | Path) -> Done:
    """Run a checker over the repository; the test fails with what it says."""
    done = run(argv, cwd=TOP, check=False, timeout=300)
    assert done.code == 0, done.out.decode() + done.err.decode()
    return done


def scripts() -> list[Path]:
    """Python programs without a suffix."""
    return [
        path
        for folder in SCRIPTS
        for path in sorted((TOP / folder).iterdir())
        if path.is_file() and _shebang(path).startswith("#!") and "python3" in _shebang(path)
    ]


def _shebang(path: Path) -> str:
    return path.read_bytes().split(b"\n", 1)[0].decode("utf-8", "replace")


def kept() -> Iterator[Path]:
    """Every file that belongs to the repository, committed yet or not."""
    done = run(
        ["git", "-c", "safe.directory=*", "ls-files", "-zco", "--exclude-standard"],
        cwd=TOP,
        env={"HOME": os.devnull},
    )
    for name in done.out.decode().split("\0"):
        if name and (TOP / name).is_file():
            yield TOP / name


@cache
def tree(path: Path) -> ast.Module:
    """A module, parsed."""
    return ast.parse(path.read_bytes(), str(path))


def module_name(path: Path) -> str:
    """`apt.mirror` for invirtibuilder/apt/mirror.py; `apt` for its __init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name below it; the package itself is ''."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
