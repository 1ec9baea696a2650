"""The commands that a document shows, and a shell to type them into.

What is shown as a literal block is a line of commands each; anything else is `.. code::`, as lines
for cron are. Words in capitals stand for something, and a program has to be known: what is neither
fails. A command within a sentence is a part of one that is shown, or it is in NOT_RUN.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

from invirtibuilder.run import CLEAN, Done, run, started_group
from tests.support.kdc import Realm
from tests.support.place import until
from tests.support.repository import TOP

README = TOP / "README.rst"
SUBMITTER = TOP / "conf/guide/submitter.rst"
ADMINISTRATOR = TOP / "conf/guide/administrator.rst"
DOORS = TOP / "conf/remctl/README.rst"
DOCUMENTS = (README, SUBMITTER, ADMINISTRATOR, DOORS)
CLEAN_MACHINE = "on a clean machine, by tests/installed/test_life.py"
"""What commands of apt-get are marked with: they would change this machine."""
FIRST = "Invirtibuilder"
CLONE = "From a clone"
BACKUP = "Backup, and what comes back without one"
INSTALLED = (
    *("An installed system", "Services"),
    *("The doors: Kerberos", "The doors: ssh", "Pushes over ssh"),
)
APART = {README: (FIRST,), ADMINISTRATOR: (CLONE, *INSTALLED)}
"""Sections that have a test of their own, at a place of their own."""
PROGRAMS = {
    *("cd", "export", "git", "invirtibuilder", "kadmin.local", "kinit", "python3", "remctl"),
    *("ssh", "sshd", "sudo", "systemctl", "install", "echo", "cat", "apt-get", "rm", "journalctl"),
    *("adduser", "ln", "sed", "update-inetd", "cp", "make", "gbp", "stdbuf", "unshare", "remctld"),
    *("conf/quickstart", "tests/run", "/usr/share/invirtibuilder/without-systemd"),
    *("/usr/share/invirtibuilder/subordinate-ids", "/usr/share/invirtibuilder/fsck/nightly"),
    *("/etc/invirtibuilder/build-keys", "/usr/bin/invirtibuilder"),
}
NO_SYSTEMD = "there is no systemd: tests/style/test_guide.py looks for the unit"
NO_SELINUX = "it needs a kernel with SELinux; tests/component/test_profiles.py compiles the module"
OF_A_CLIENT = "of a client's root: tests/system/test_clients.py"
NOT_RUN = {
    "man invirtibuilder": "a page to read",
    "man -l debian/man/…": "a page to read",
    "dpkg-buildpackage -b": "what a worker does",
    "apt-get update": OF_A_CLIENT,
    "apt-get install hello": OF_A_CLIENT,
    "apt-get upgrade": OF_A_CLIENT,
    "dch --release": "what a refusal asks for, with an editor",
    "systemctl status invirtibuilder": NO_SYSTEMD,
    "systemctl edit invirtibuilder-fsck-mail": NO_SYSTEMD,
    "systemctl reload invirtibuilder-worker@trusted": NO_SYSTEMD,
    "semodule -i invirtibuilder.pp": NO_SELINUX,
    "restorecon -R": NO_SELINUX,
    "krb5_newrealm": "it asks for a password and starts services; see tests/support/kdc.py",
    "sources dev --keyring": "it needs `archive_keyring`: tests/system/test_keyring.py",
    "setarch -R": "what fails in a sandbox: tests/escape",
    "ssh -o GSSAPIAuthentication=yes": "an option: tests/component/test_door_tickets.py",
}
"""Commands within sentences that are not shown by themselves, and why."""
CRON = re.compile(r"(?:[\d*/,-]+ ){5}([a-z][a-z0-9-]*) (.*)")
"""A line for cron: when, as whom, what."""
PLACEHOLDER = re.compile(r"(?<![\w$./@=-])([A-Z][A-Z-]{2,})(?![\w=.-])|(?<=[/=@])([A-Z]{3,})\b")
CAPITALS = {"HEAD", "EXAMPLE", "END"}
"""Words in capitals that stand for themselves."""
SENTENCE = re.compile(r"[\w/][^\s:]* (?!=)")
"""How a command begins, unlike an option, a key with its value, and a setting."""
HERE = re.compile(r"<<(\w+)\n.*?^\1$", re.MULTILINE | re.DOTALL)
"""A document within a command."""
JOINED = "\0"
WORDS = frozenset(
    ("DIR", "HOST", "JOB", "WHEN", "FILE", "KEYTAB", "REPOSITORY", "PYTEST-ARGS")
    + ("BACKUPS", "TIME", "SITE", "CODE", "PORT", "DIRECTORY", "DSC", "TARBALL")
)
"""Placeholders; a test says what each stands for."""
SHELL = {"bash", "console", "sh", "shell"}
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
        lines = HERE.sub(lambda m: m[0].replace("\n", JOINED), text).splitlines()
        found.append(
            Block(
                section=section.next_node(nodes.title).astext(),
                lines=tuple(
                    line.strip().replace(JOINED, "\n") for line in lines if is_command(line)
                ),
                mark=comment.removeprefix("not run: ") if comment.startswith("not run: ") else "",
            )
        )
    return found


def is_command(line: str) -> bool:
    """Whether a line is more than a comment."""
    return bool(line.strip()) and not line.strip().startswith("#")


def elsewhere(path: Path) -> list[str]:
    """The sections that have no test of their own."""
    found = dict.fromkeys(block.section for block in blocks(path))
    return [section for section in found if section not in APART.get(path, ())]


def shown(path: Path, sections: Sequence[str]) -> list[str]:
    """The commands of these sections that are to be run, in order."""
    found = [block for block in blocks(path) if block.section in sections]
    assert {block.section for block in found} == set(sections), "a section without a command"
    return [line for block in found if not block.mark for line in block.lines]


def marked(path: Path, mark: str) -> list[str]:
    """The commands that are marked so."""
    return [line for block in blocks(path) if block.mark == mark for line in block.lines]


def programs(folder: Path, lines: Mapping[str, str]) -> Path:
    """A directory of programs, each a line of shell."""
    folder.mkdir()
    for name, line in lines.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def connects(port: int) -> bool:
    """Whether somebody listens on this port of this machine's."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def kadmin(realm: Realm, query: str) -> None:
    """Have the realm's administrator do something."""
    run(["kadmin.local", "-q", query], env=realm.env)


def cron(path: Path) -> list[tuple[str, str]]:
    """The lines for cron that are shown as code: the account and the command of each."""
    lines = (line for node in _code(path) for line in lines_of(node))
    return [(found[1], found[2]) for line in lines if (found := CRON.fullmatch(line))]


def inline(path: Path) -> list[str]:
    """The commands within sentences: those with words after the program, and those of NOT_RUN."""
    tree = publish_doctree(path.read_text(), settings_overrides={"report_level": 3})
    texts = [" ".join(node.astext().split()) for node in tree.findall(nodes.literal)]
    return [text for text in texts if text in NOT_RUN or SENTENCE.match(text)]


def typed(path: Path, text: str) -> bool:
    """Whether a command is one that the document shows, or a part of one."""
    shown = [checked(line) for block in blocks(path) for line in block.lines]
    return any(f" {text} " in f" {line} " for line in [*shown, *(what for _, what in cron(path))])


def hidden(path: Path) -> list[str]:
    """Lines that are commands, or look like them, but are shown as something else."""
    code = _code(path)
    shell = {line for node in code if SHELL & set(node["classes"]) for line in lines_of(node)}
    lines = (line for node in code for line in lines_of(node) if ARROW not in line)
    return [line for line in lines if line in shell or line.partition(" ")[0] in PROGRAMS]


def _code(path: Path) -> list[nodes.literal_block]:
    return [node for node in _literal(path) if "code" in node["classes"]]


def lines_of(node: nodes.literal_block) -> list[str]:
    """The lines of a literal block."""
    return [line.strip() for line in node.astext().splitlines()]


def _literal(path: Path) -> list[nodes.literal_block]:
    tree = publish_doctree(path.read_text(), settings_overrides={"report_level": 3})
    return list(tree.findall(nodes.literal_block))


def checked(line: str) -> str:
    """A line without its comment. Fails for a program or a placeholder that nobody knows."""
    line = re.sub(r"(^| +)#.*$", "", line)
    program = next(word for word in shlex.split(line.split("\n")[0]) if "=" not in word)
    assert program in PROGRAMS, f"{program}: say in {__name__} that it can be run: {line}"
    replaced(line, lambda name: name)
    return line.replace("[", "").replace("]", "")


def replaced(line: str, value: Callable[[str], str]) -> str:
    """A line with something in place of its placeholders."""

    def one(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name in CAPITALS:
            return found[0]
        assert name in WORDS, f"{name}: say in {__name__} that it stands for something: {line}"
        return value(name)

    return PLACEHOLDER.sub(one, line)


@dataclass(kw_only=True)
class Shell:
    """Where commands are typed: environment and directory last from one to the next.

    `words` says what a placeholder stands for now. `instead` are texts of a line in whose place
    another stands here, such as a port of the tests' own.
    """

    folder: Path
    words: Mapping[str, Callable[[], str]]
    environment: dict[str, str]
    instead: Sequence[tuple[str, str]] = ()
    ready: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    """Of commands in the background: when one that has this text is there."""
    codes: Mapping[str, int] = field(default_factory=dict)
    """Exit codes that are right here, of commands that have this text."""
    before: Sequence[str] = ()
    """The words that start a command elsewhere."""
    root: Path = Path("/")
    """Where, seen from here, the folder's path begins."""
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
        line = checked(line)
        for old, new in self.instead:
            line = line.replace(old, new)
        return replaced(line, lambda name: self.words[name]())

    def type(self, line: str) -> None:
        """Run it; fails when it does."""
        meant = self.meant(line)
        if meant.endswith("&"):
            self._start(meant.rstrip("& "))
            return
        done = self._bash(meant)
        said = done.out.decode(errors="replace") + done.err.decode(errors="replace")
        code = next((code for text, code in self.codes.items() if text in line), 0)
        assert done.code == code, f"{line}\n$ {meant}\nexit code {done.code}\n{said}"

    def _bash(self, line: str) -> Done:
        state = self.folder / "state"
        seen = self.root / state.relative_to("/")
        script = f'cd "{self.cwd}"\n{line}\ncode=$?\n{{ pwd; env -0; }} >"{state}"; exit $code'
        argv = [*self.before, "bash", "-c", script]
        done = run(argv, env=self.environment, check=False, timeout=LONG)
        where, _, variables = seen.read_bytes().partition(b"\n")
        self.cwd = Path(os.fsdecode(where))
        pairs = (os.fsdecode(v).partition("=") for v in variables.split(b"\0") if v)
        self.environment = {k: v for k, _, v in pairs if k not in ("_", "SHLVL", "PWD", "OLDPWD")}
        return done

    def _start(self, line: str) -> None:
        found = [there for text, there in self.ready.items() if text in line]
        assert found, f"how does one see that it runs? {line}"
        log = self._background.enter_context((self.folder / "background.log").open("ab"))
        env = {**CLEAN, **self.environment}
        argv = [*self.before, "bash", "-c", f"exec {line}"]
        self._background.enter_context(
            started_group(argv, cwd=self.cwd, env=env, stdout=log, stderr=log)
        )
        until(found[0], f"it never came: {line}")
