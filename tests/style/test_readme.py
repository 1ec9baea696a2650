"""README.rst, HACKING.rst and the guides say what is so."""

from __future__ import annotations

import os
import re
import shlex

import pytest

from invirtibuilder import states
from invirtibuilder.cli import main
from tests.style.test_layers import ROWS, row_of
from tests.support.repository import TOP, kept, modules

README = (TOP / "README.rst").read_text()
HACKING = (TOP / "HACKING.rst").read_text()
DOCUMENTS = [
    pytest.param(path.read_text(), id=str(path.relative_to(TOP)))
    for path in (*sorted(TOP.glob("*.rst")), *sorted((TOP / "conf/guide").glob("*.rst")))
]


def table_rows(first: str, text: str = README) -> dict[str, str]:
    """The table whose first cell is `first`: its rows, the lines of a cell joined."""
    found = re.search(rf"^=+  =+\n({re.escape(first)} .*?)^=+  =+$", text, re.M | re.S)
    assert found, f"no table begins with {first}"
    rows: dict[str, str] = {}
    for line in found[1].splitlines():
        name, _, text = line.partition("  ")
        if name:
            rows[name] = text
        else:
            rows[list(rows)[-1]] += " " + text.strip()
    return rows


def test_the_states() -> None:
    shown = "\n".join(f"    {line}" for line in states.diagram().splitlines())
    assert f"\n{shown}\n" in README


def test_the_two_commands() -> None:
    first_screen = "\n".join(README.splitlines()[:24])
    for command in ("conf/quickstart [DIR]", "tests/run [PYTEST-ARGS]"):
        assert f"    sudo {command}\n" in first_screen
        assert os.access(TOP / command.split()[0], os.X_OK)


def test_continuous_integration_runs_the_command_for_the_tests() -> None:
    assert (TOP / ".ci/run").read_text().splitlines()[-1].endswith(" exec tests/run")


def test_folders() -> None:
    there = {f"``{p.relative_to(TOP).parts[0]}/``" for p in kept() if p.parent != TOP}
    assert set(table_rows("``conf/``")) == there


def test_folders_of_tests() -> None:
    below = (p.relative_to(TOP).parts for p in kept())
    there = {f"``tests/{parts[1]}``" for parts in below if parts[0] == "tests" and len(parts) > 2}
    assert set(table_rows("``tests/unit``", HACKING)) == there


def test_folders_of_the_program() -> None:
    there = {f"``{name.split('.')[0]}/``" for name in modules() if "." in name}
    assert set(table_rows("``apt/``", HACKING)) == there


def test_rows_of_modules() -> None:
    rows = table_rows("core")
    assert list(rows) == list(ROWS)
    shown = {row: set(re.findall(r"``([a-z_]+/?)``", text)) for row, text in rows.items()}
    for name, path in modules().items():
        folder, _, rest = name.partition(".")
        if name and not (path.stem == "__init__" and not rest):
            assert (f"{folder}/" if rest else folder) in shown[row_of(name)], name
    there = {n for name in modules() for n in (name, name.split(".")[0] + "/")}
    assert not {n for names in shown.values() for n in names} - there


@pytest.mark.parametrize("text", DOCUMENTS)
def test_commands_exist(text: str) -> None:
    """Each command shown is one that the parser takes."""
    parser = main.make_parser()
    shown = re.findall(r"^ +(?:sudo )?invirtibuilder ([a-z-].*?)(?: &)?(?:  +#.*)?$", text, re.M)
    for line in shown:
        parser.parse_args(shlex.split(line))


@pytest.mark.parametrize("text", DOCUMENTS)
def test_files_exist(text: str) -> None:
    names = re.findall(
        r"(?:conf|debian|hooks\.d|tests|door|cli|sandbox|phases)/[a-z][a-z._/0-9-]*[a-z0-9]", text
    )
    for name in set(names) - {"debian/changelog", "debian/gbp.conf", "debian/rules"}:  # a package's
        assert (TOP / name).exists() or (TOP / "invirtibuilder" / name).exists(), name


@pytest.mark.parametrize("text", DOCUMENTS)
def test_pages_exist(text: str) -> None:
    for name, number in re.findall(r"``(invirtibuilder[a-z.-]*)\(([1-8])\)``", text):
        assert (TOP / f"debian/man/{name}.{number}").exists(), name


def test_what_hacking_names_is_there() -> None:
    """A name that is said to be in a file, or of one."""
    pairs = re.findall(r"``([A-Za-z_.]+)``\s+(?:in|of)\s+``([a-z_/]+\.py)``", HACKING)
    assert len(pairs) > 5
    for name, file in pairs:
        path = next(p for p in (TOP / file, TOP / "invirtibuilder" / file) if p.exists())
        found = re.search(rf"\b{name.split('.')[-1]}\b", path.read_text())
        assert found, f"HACKING.rst: {file} has no {name}"
