"""The man pages have every command, option and exit code, and groff has no complaint.

What comes from the parser is brought up to date by a program: tests/support/manpages.py.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

from invirtibuilder import accounts
from invirtibuilder.cli import main
from invirtibuilder.errors import Exit
from invirtibuilder.run import run
from tests.support import manpages
from tests.support.manpages import FOLDER, OVERVIEW, UPDATE
from tests.support.repository import TOP, modules, tree

PAGES = sorted(FOLDER.iterdir())
COMMANDS = [pytest.param(command, path, id=command) for command, path in manpages.pages().items()]

CHOSEN = {"ACTION": "submit"}
"""Of words in capitals that stand for one of a few: which."""


def man(page: Path, *options: str) -> tuple[str, str]:
    """A page as text, and what man has to say about it."""
    env = {"MANWIDTH": "200", "MANROFFSEQ": "", "LC_ALL": "C.UTF-8"}
    done = run(["man", "--warnings", "--nj", "--nh", "-E", "UTF-8", "-l", *options, page], env=env)
    return done.out.decode(), done.err.decode()


def section(page: Path, name: str) -> str:
    """A section's text, without its heading."""
    found = re.search(rf"^{name}\n(.*?)(?=^\S)", man(page)[0], re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} has no section {name}"
    return found[1]


def by_hand(page: Path, name: str) -> str:
    """What is written in a section, without what comes from the parser."""
    text = manpages.BLOCK.sub(".SH -\n", page.read_text())
    found = re.search(rf"^\.SH {name}\n(.*?)(?=^\.SH|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


@pytest.mark.parametrize(("command", "path"), COMMANDS)
def test_page(command: str, path: Path) -> None:
    name = path.relative_to(TOP)
    assert path.exists(), f"no page for `{command}`: run `{UPDATE}`, then write its DESCRIPTION"
    text = path.read_text()
    assert manpages.updated(text, command) == text, f"{name} is not the parser's: run `{UPDATE}`"
    blocks = [match[1] for match in manpages.BLOCK.finditer(text)]
    assert blocks == ["synopsis", "options"], f"{name}: the parser's parts are {blocks}"
    for heading in ("DESCRIPTION", "EXAMPLES"):
        assert by_hand(path, heading), f"{name}: write its {heading}, what --help does not say"


@pytest.mark.parametrize(("command", "path"), COMMANDS)
def test_examples(command: str, path: Path) -> None:
    """Those of a command are of this command, and the parser takes them."""
    parser = main.make_parser()
    lines = [line.strip() for line in section(path, "EXAMPLES").splitlines() if line.strip()]
    ours = [shlex.split(line)[1:] for line in lines if line.strip().startswith("invirtibuilder ")]
    assert [parser.parse_args(words).command for words in ours] == [command] * len(ours)
    assert ours, f"{path.name}: no example begins with `invirtibuilder {command}`"


@pytest.mark.parametrize(("command", "path"), COMMANDS)
def test_what_is_not_in_brackets_is_enough(command: str, path: Path) -> None:
    """A line of the synopsis without what is in brackets is a command that the parser takes."""
    found = re.sub(r"\s+", " ", section(path, "SYNOPSIS")).strip()
    lines = [line.strip() for line in re.split(r"(?=\binvirtibuilder )", found) if line.strip()]
    assert lines
    for line in lines:
        least = line
        while "[" in least:
            least = re.sub(r"\[[^][]*\]", "", least)
        words = [CHOSEN.get(word, word) for word in shlex.split(least)]
        assert main.make_parser().parse_args(words[1:]).command == command, line


def test_the_overview() -> None:
    """Each command is listed once, in a group that somebody chose."""
    text = OVERVIEW.read_text()
    listed = manpages.grouped(text)
    assert sorted(listed) == sorted(main.COMMANDS), (
        f"name each command once, after `PARSER: commands` in {OVERVIEW.relative_to(TOP)}, "
        f"then run `{UPDATE}`: {set(main.COMMANDS) ^ set(listed)}"
    )
    assert manpages.updated(text) == text, f"{OVERVIEW.name} is not the parser's: run `{UPDATE}`"
    options = {o for a in main.make_parser()._actions for o in a.option_strings}
    assert options <= set(re.findall(r"-{1,2}[a-z]+", section(OVERVIEW, "OPTIONS")))


def test_what_has_no_text_is_found() -> None:
    parser = argparse.ArgumentParser(prog="it")
    parser.add_argument("--silent")
    with pytest.raises(manpages.Undocumented, match="it: --silent needs a help="):
        list(manpages.described(parser, "it"))
    parser = argparse.ArgumentParser(prog="it")
    parser.add_subparsers().add_parser("verb")
    with pytest.raises(manpages.Undocumented, match="the verb verb has no help= in it"):
        manpages.help_of(parser, "verb")


OF_LIBRARIES = {"TMPDIR", "KRB5CCNAME"}
"""Variables that are read by what we use."""
OTHERS = ("door", "inside", "sandbox")
"""What is there are other programs, with an environment of their own."""


def variables(module: ast.AST) -> set[str]:
    """The variables of the environment that a module reads by name."""
    found = set()
    for node in ast.walk(module):
        match node:
            case ast.Call(
                func=ast.Attribute(value=where, attr="get"), args=[ast.Constant(key), *_]
            ):
                pass
            case ast.Subscript(value=where, slice=ast.Constant(key)):
                pass
            case _:
                continue
        if re.search(r"environ(ment)?$", ast.unparse(where)) and str(key).isupper():
            found.add(str(key))
    return found


def test_environment() -> None:
    """What the program reads, and nothing else."""
    ours = [path for name, path in modules().items() if name.partition(".")[0] not in OTHERS]
    read = {name for path in ours for name in variables(tree(path))}
    assert {"INVIRTIBUILDER_CONFIG", "JOURNAL_STREAM", "LISTEN_FDS"} <= read
    text = by_hand(OVERVIEW, "ENVIRONMENT")
    tags = re.findall(r"^\.TP\n\.\w+ (.*\n)", text, re.MULTILINE)
    told = set(re.findall(r"[A-Z][A-Z0-9_]+", "".join(tags)))
    assert told == read | set(accounts.KEPT) | OF_LIBRARIES


def test_exit_codes() -> None:
    text = section(OVERVIEW, "EXIT STATUS")
    codes = {int(n) for n in re.findall(r"^ {7}(\d+)\b", text, re.MULTILINE)}
    assert codes == {*map(int, Exit), 130}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_groff_has_no_complaint(page: Path) -> None:
    _, complaints = man(page, "-Tutf8", "-Z")
    assert not complaints


def test_there_is_no_other_page() -> None:
    known = {OVERVIEW.name, "invirtibuilder.yaml.5", *(p.name for p in manpages.pages().values())}
    assert {page.name for page in PAGES} == known


def test_pages_name_pages_that_there_are() -> None:
    for page in PAGES:
        named = re.findall(r"(invirtibuilder[a-z.-]*) ?\(([15])\)", man(page)[0])
        lacking = {f"{n}.{s}" for n, s in named} - {p.name for p in PAGES}
        assert not lacking, f"{page.name} names {lacking}"
