"""The commands that a document shows, and a shell to type them into.

What is shown as a literal block is a line of commands each; anything else is `.. code::`. Words in
capitals stand for something, and a program has to be known: what is neither fails.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

from invirtibuilder.run import CLEAN, Done, run, started_group
from tests.support.place import until
from tests.support.repository import TOP

PROGRAMS = {
    *("cd", "export", "git", "invirtibuilder", "kadmin.local", "kinit", "python3", "remctl"),
    *("ssh", "sudo", "conf/quickstart", "tests/run"),
}
PLACEHOLDER = re.compile(r"(?<![\w$./@=-])([A-Z][A-Z-]{2,})(?![\w=.-])|(?<=[/=@])([A-Z]{3,})\b")
CAPITALS = {"HEAD", "EXAMPLE", "ORG"}
"""Words in capitals that stand for themselves."""
ARROW = "─►"
"""Of pictures."""
LONG = 600.0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Commands of one literal block; `mark` says why they are not run, if they are not."""

    section: str
    lines: tuple[str, ...]
    mark: str


def blocks(path: Path) -> list[Block]:
    """The commands of a document, in order."""
    found = []
    for node in _literal(path):
        if "code" in node["classes"]:
            continue
        section = node.parent
        while not isinstance(section, nodes.section | nodes.document):
            section = section.parent
        before = node.parent[node.parent.index(node) - 1] if node.parent.index(node) else None
        comment = before.astext() if isinstance(before, nodes.comment) else ""
        text = node.astext().replace("\\\n", "")
        found.append(
            Block(
                section=section.next_node(nodes.title).astext(),
                lines=tuple(line.strip() for line in text.splitlines() if line.strip()),
                mark=comment.removeprefix("not run: ") if comment.startswith("not run: ") else "",
            )
        )
    return found


def hidden(path: Path) -> list[str]:
    """Lines that look like commands, but are shown as something else."""
    code = (node.astext() for node in _literal(path) if "code" in node["classes"])
    lines = (line.strip() for text in code for line in text.splitlines() if ARROW not in line)
    return [line for line in lines if line.partition(" ")[0] in PROGRAMS]


def _literal(path: Path) -> list[nodes.literal_block]:
    tree = publish_doctree(path.read_text(), settings_overrides={"report_level": 3})
    return list(tree.findall(nodes.literal_block))


@dataclass(kw_only=True)
class Shell:
    """Where commands are typed: environment and directory last from one to the next.

    `words` says what a placeholder stands for now. `instead` are texts of a line in whose place
    another stands here, such as a port of the tests' own. `before` is called with each line.
    """

    folder: Path
    words: Mapping[str, Callable[[], str]]
    environment: dict[str, str]
    instead: Sequence[tuple[str, str]] = ()
    ready: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    """Of commands in the background: when one that has this text is there."""
    cwd: Path = TOP

    def __post_init__(self) -> None:
        self._background = contextlib.ExitStack()

    @contextlib.contextmanager
    def opened(self) -> Iterator[Shell]:
        """What was started in the background ends with it."""
        with self._background:
            yield self

    def meant(self, line: str) -> str:
        """A line as it is typed here. Fails for what nobody knows."""
        line = re.sub(r"(^| +)#.*$", "", line)
        program = next(word for word in shlex.split(line) if "=" not in word)
        assert program in PROGRAMS, f"{program}: say in {__name__} that it can be run: {line}"
        for old, new in self.instead:
            line = line.replace(old, new)
        line = line.replace("[", "").replace("]", "")

        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2]
            if name in CAPITALS:
                return found[0]
            assert name in self.words, f"what does {name} stand for? {line}"
            return self.words[name]()

        return PLACEHOLDER.sub(value, line)

    def type(self, line: str) -> None:
        """Run it; fails when it does."""
        meant = self.meant(line)
        if meant.endswith("&"):
            self._start(meant.rstrip("& "))
            return
        done = self._bash(meant)
        said = done.out.decode(errors="replace") + done.err.decode(errors="replace")
        assert done.code == 0, f"{line}\n$ {meant}\nexit code {done.code}\n{said}"

    def _bash(self, line: str) -> Done:
        state = self.folder / "state"
        script = f'{line}\ncode=$?\n{{ pwd; env -0; }} >"{state}"; exit $code'
        argv = ["bash", "-c", script]
        done = run(argv, cwd=self.cwd, env=self.environment, check=False, timeout=LONG)
        where, _, variables = state.read_bytes().partition(b"\n")
        self.cwd = Path(os.fsdecode(where))
        pairs = (os.fsdecode(v).partition("=") for v in variables.split(b"\0") if v)
        self.environment = {k: v for k, _, v in pairs if k not in ("_", "SHLVL", "PWD", "OLDPWD")}
        return done

    def _start(self, line: str) -> None:
        found = [there for text, there in self.ready.items() if text in line]
        assert found, f"how does one see that it runs? {line}"
        log = self._background.enter_context((self.folder / "background.log").open("ab"))
        env = {**CLEAN, **self.environment}
        argv = ["bash", "-c", f"exec {line}"]
        self._background.enter_context(
            started_group(argv, cwd=self.cwd, env=env, stdout=log, stderr=log)
        )
        until(found[0], f"it never came: {line}")
