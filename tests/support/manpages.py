r"""What of the man pages comes from the parser: `.venv/bin/python -m tests.support.manpages`.

debian/man has a page for each command. In it, what is between a line `.\" PARSER: …` and the next
`.\" END` is made here; the rest is written by hand. The program brings these parts up to date, and
begins a page for a command that has none. tests/style/test_man.py finds what was forgotten.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from invirtibuilder.cli import main
from tests.support.repository import TOP

FOLDER = TOP / "debian/man"
OVERVIEW = FOLDER / "invirtibuilder.1"
UPDATE = ".venv/bin/python -m tests.support.manpages"
GLOBAL = frozenset({"--help", "-h", "--config", "--json", "--version"})
BLOCK = re.compile(r'^\.\\" PARSER: (.*)\n(?:.*\n)*?\.\\" END\n', re.MULTILINE)
NEW_PAGE = """\
.\\" PARSER: synopsis
.\\" END
.SH DESCRIPTION
.\\" PARSER: options
.\\" END
.SH EXAMPLES
.SH SEE ALSO
.BR invirtibuilder (1)
"""


class Undocumented(Exception):
    """The parser does not say what a page needs."""


def page_of(command: str) -> Path:
    """The page of a command."""
    return FOLDER / f"invirtibuilder-{command}.1"


def pages() -> dict[str, Path]:
    """The pages that there have to be, by command."""
    return {command: page_of(command) for command in main.COMMANDS}


def updated(text: str, command: str = "") -> str:
    """A page with the parser's parts as they have to be."""

    def made(found: re.Match[str]) -> str:
        what, *names = found[1].split()
        if what == "commands":
            lines = [line for name in names for line in _entry(name)]
        else:
            lines = list({"synopsis": _synopsis, "options": _options}[what](command))
        return "\n".join([f'.\\" PARSER: {found[1]}', *lines, '.\\" END', ""])

    return BLOCK.sub(made, text)


def grouped(text: str) -> list[str]:
    """The commands that the overview lists, in its order."""
    found = (m[1].split() for m in BLOCK.finditer(text))
    return [name for what, *names in found if what == "commands" for name in names]


def parsers(command: str) -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """The parser of a command, by (), and of each of its verbs."""
    top = _below(main.make_parser(command))[command]
    return {(): top, **{(verb,): parser for verb, parser in _below(top).items()}}


def _below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What is typed, but for what every command takes, and hidden things."""
    return [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and not GLOBAL & set(action.option_strings)
        and not isinstance(action, argparse._SubParsersAction)
    ]


def _entry(command: str) -> list[str]:
    """A command in the overview."""
    return [".TP", f".BR {_roff(f'invirtibuilder-{command}')} (1)", _text(_description(command))]


def _description(command: str) -> str:
    return main.command(command).description


def _synopsis(command: str) -> Iterator[str]:
    name = f"invirtibuilder-{command}"
    yield f'.TH {name.upper()} 1 "" "invirtibuilder" "Invirtibuilder"'
    yield from (".SH NAME", f"{_roff(name)} \\- {_text(_description(command))}", ".SH SYNOPSIS")
    found = parsers(command)
    own = found.pop(())
    for verb, parser in (found or {(): own}).items():
        yield f'.SY "invirtibuilder {_roff(command)}"'
        if verb:
            if any(action.option_strings for action in _shown(own)):
                yield r"[\fIOPTION\fP ...]\&"
            yield from (*_arguments_of(own), f".B {_roff(*verb)}")
        yield from (*_arguments_of(parser), *_options_of(parser), ".YS")


def _arguments_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in _shown(parser):
        if not action.option_strings:
            name = _metavar(action)
            some = rf"[{name}\ ...]\&"  # which ends no sentence
            more = {"?": f"[{name}]", "*": some, "+": rf"{name}\ {some}"}
            yield f".I {more.get(str(action.nargs), name)}"


def _options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options in brackets unless one has to be there, those that exclude each other together."""
    done: set[str] = set()
    for action in _shown(parser):
        if action.option_strings and action.dest + str(action.option_strings) not in done:
            together = [action]
            for group in parser._mutually_exclusive_groups:
                if action in group._group_actions:
                    together = group._group_actions
            done |= {a.dest + str(a.option_strings) for a in together}
            text = " | ".join(_option(a, " | ") for a in together)
            yield text if action.required else f"[{text}]"


def _option(action: argparse.Action, between: str) -> str:
    names = between.join(rf"\fB{_roff(name)}\fP" for name in action.option_strings)
    return names if action.nargs == 0 else rf"{names}\ \fI{_metavar(action)}\fP"


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper())


def _options(command: str) -> Iterator[str]:
    found = parsers(command)
    own = found.pop(())
    if found:
        yield ".SH VERBS"
        for (verb,), parser in found.items():
            yield f'.SS "{_roff(verb)}"'
            yield _text(help_of(own, verb))
            yield from described(parser, f"{command} {verb}")
    yield ".SH OPTIONS"
    yield from described(own, command)
    yield from (".TP", r"\fB\-\-config\fP \fIFILE\fP, \fB\-\-json\fP, \fB\-\-help\fP")
    yield from ("As for every command: see", r".BR invirtibuilder (1).")


def help_of(parser: argparse.ArgumentParser, verb: str) -> str:
    """What a verb is for."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                if choice.dest == verb and choice.help:
                    return choice.help
    raise Undocumented(f"the verb {verb} has no help= in {parser.prog}")


def described(parser: argparse.ArgumentParser, words: str) -> Iterator[str]:
    """Each option, and arguments of which there is more to say than their name."""
    for action in _shown(parser):
        if action.option_strings and not action.help:
            raise Undocumented(f"{words}: {action.option_strings[0]} needs a help=")
        if action.help:
            name = _option(action, ", ") if action.option_strings else rf"\fI{_metavar(action)}\fP"
            yield from (".TP", name, _text(_expanded(action)))


def _expanded(action: argparse.Action) -> str:
    """The help text; a default in somebody's home is in anybody's."""
    values = {**vars(action), "default": re.sub(f"^{Path.home()}/", "~/", str(action.default))}
    return str(action.help) % values


def _roff(*words: str) -> str:
    return " ".join(words).replace("-", r"\-")


def _text(text: str) -> str:
    """Text of the program as a line of roff."""
    text = text.replace("\\", r"\e")
    text = re.sub(r"(?<!\w)--?(?=\w)", lambda m: _roff(m[0]), text)
    return rf"\&{text}" if text.startswith((".", "'")) else text


def update() -> Sequence[Path]:
    """Bring all pages up to date; those that were changed or begun."""
    changed = []
    for command, path in {**pages(), "": OVERVIEW}.items():
        before = path.read_text() if path.exists() else ""
        after = updated(before or NEW_PAGE, command)
        if after != before:
            path.write_text(after)
            changed.append(path)
    return changed


if __name__ == "__main__":
    for each in update():
        print(each.relative_to(TOP))
