"""The man pages have every command, option and exit code, and groff has no complaint."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from invirtibuilder.cli import main
from invirtibuilder.errors import Exit
from invirtibuilder.run import run
from tests.support.repository import TOP

PAGES = sorted((TOP / "debian").glob("*.[1-8]"))
MANUAL = TOP / "debian/invirtibuilder.1"
GLOBAL = {"--help", "--config", "--json", "--version", "-h"}


def man(page: Path, *options: str) -> tuple[str, str]:
    """A page as text, and what man has to say about it."""
    env = {"MANWIDTH": "200", "MANROFFSEQ": "", "LC_ALL": "C.UTF-8"}
    done = run(["man", "--warnings", "--nj", "--nh", "-E", "UTF-8", "-l", *options, page], env=env)
    return done.out.decode(), done.err.decode()


def section(name: str) -> list[str]:
    text, _ = man(MANUAL)
    text = re.sub(r"^( {7}\S+)  .*$", r"\1", text, flags=re.MULTILINE)  # a short one's own line
    found = re.search(rf"^{name}\n(.*?)(?=^\S)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {name}"
    return found[1].splitlines()


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command, and verb of a command, that can be typed."""
    found: dict[str, argparse.ArgumentParser] = {}

    def walk(words: tuple[str, ...], parser: argparse.ArgumentParser) -> None:
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if below:  # what comes before a verb: `remote HOST submit`
            shown = [str(a.metavar) for a in parser._actions if not a.option_strings]
            words += tuple(shown[:-1])
        for action in below:
            for name, inner in action.choices.items():
                walk((*words, name), inner)
        if not below:
            found[" ".join(words)] = parser

    walk((), main.make_parser())
    return found


def words_of(parser: argparse.ArgumentParser) -> set[str]:
    """Options and arguments as they are shown."""
    shown = [a for a in parser._actions if a.help != argparse.SUPPRESS]
    options = {o for action in shown for o in action.option_strings} - GLOBAL
    taken = [a for a in shown if a.nargs != 0 and not GLOBAL & set(a.option_strings)]
    return options | {str(a.metavar or a.dest.upper()) for a in taken}


def documented(command: str) -> set[str]:
    """The words after a command in its synopses."""
    lines = [line for line in section("COMMANDS") if re.match(rf" {{7}}{command}( |$)", line)]
    assert lines, f"invirtibuilder(1) has no {command}"
    return {w for line in lines for w in re.split(r"[][|\s]+", line.replace(command, "", 1)) if w}


@pytest.mark.parametrize("command", commands())
def test_command(command: str) -> None:
    assert documented(command) == words_of(commands()[command])


def test_no_other_command() -> None:
    text = "\n".join(section("COMMANDS"))
    known = commands()
    shown = re.findall(
        r"^ {7}([a-z][a-z-]*(?: (?:HOST )?[a-z]+)?)(?: [A-Z[]|$)", text, re.MULTILINE
    )
    assert set(shown) == set(known)


def test_exit_codes() -> None:
    codes = {int(n) for n in re.findall(r"^ {7}(\d+)$", "\n".join(section("EXIT STATUS")), re.M)}
    assert codes == {*map(int, Exit), 130}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_groff_has_no_complaint(page: Path) -> None:
    _, complaints = man(page, "-Tutf8", "-Z")
    assert not complaints


def test_there_are_pages() -> None:
    assert [p.name for p in PAGES] == ["invirtibuilder.1", "invirtibuilder.yaml.5"]
