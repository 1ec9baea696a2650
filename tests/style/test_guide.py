"""The guides name what there is: tests of threats, codes of refusals."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

from invirtibuilder import journal
from tests.support import documents, units
from tests.support.repository import TOP, modules, tree

GUIDE = (TOP / "conf/guide/administrator.rst").read_text()
SUBMITTER = (TOP / "conf/guide/submitter.rst").read_text()
THREATS = {
    *(f"Excess of {what}" for what in ("CPU", "memory", "disk", "log", "network")),
    *(f"Attack on {what}" for what in ("network hosts", "the build host", "other builds")),
    *(f"Attack on {what}" for what in ("the archive", "the record")),
    "A subverted account of a submitter",
    "A subverted worker",
    "A subverted hook, or program of an ACL",
    "A subverted web server, or a network between",
}


def threats() -> dict[str, str]:
    """Each threat with what is said of it."""
    text = GUIDE.partition("\nThreats\n-------\n")[2]
    found = re.findall(r"^(\S.*)\n((?:   .*\n|\n)+)", text, re.MULTILINE)
    return {name: said for name, said in found if said.startswith("   ")}


@pytest.mark.parametrize("path", documents.DOCUMENTS, ids=lambda p: p.name)
def test_commands_can_be_run(path: Path) -> None:
    """Whether they do what is promised is for tests/system/test_documents*.py."""
    lines = [line for block in documents.blocks(path) for line in block.lines if not block.mark]
    assert lines
    for line in (*lines, *(command for _, command in documents.cron(path))):
        documents.checked(line)
    assert not documents.hidden(path), "commands belong into a plain literal block"


def test_commands_within_sentences() -> None:
    """Each is a part of one that is shown, and so run, in any of the documents."""
    paths = documents.DOCUMENTS
    found = {text for path in paths for text in documents.inline(path)}
    assert {"invirtibuilder check-config", "krb5_newrealm", "restorecon -R"} <= found
    unknown = {text for text in found if not any(documents.typed(path, text) for path in paths)}
    assert unknown - set(documents.NOT_RUN) == set(), "show it, or say in NOT_RUN why not"
    assert set(documents.NOT_RUN) - unknown == set(), "these are shown, or no longer there"


def test_a_command_within_a_sentence_is_found(tmp_path: Path) -> None:
    words = ("git push x", "frob --all", "/usr/bin/frob it", "git", "--all x", "a: b", "a = b")
    said = " ".join(f"``{text}``" for text in words)
    (tmp_path / "it.rst").write_text(f"It\n==\n\n{said}::\n\n    git push x main\n")
    found = documents.inline(tmp_path / "it.rst")
    assert found == ["git push x", "frob --all", "/usr/bin/frob it"]
    assert [documents.typed(tmp_path / "it.rst", text) for text in found] == [True, False, False]


def test_lines_for_cron() -> None:
    """They do what the timers do, as the same account, and are where they are run from."""
    lines = documents.cron(documents.ADMINISTRATOR)
    assert lines == [line for path in documents.DOCUMENTS for line in documents.cron(path)]
    assert {account for account, _ in lines} == {"invirtibuilder"}
    mailing = ("/usr/share/invirtibuilder/fsck/nightly root", "/usr/bin/invirtibuilder fsck")
    told = sorted(command.replace(*mailing) for _, command in lines)
    # conf/metrics is put in its place by who wants it, and says how.
    timers = (n for n in units.units() if n.endswith(".timer") and "metrics" not in n)
    services = (name.replace(".timer", ".service") for name in timers)
    starts = [units.units()[name].all("Service.ExecStart") for name in services]
    assert told == sorted(map(" ".join, starts))


def test_what_systemctl_is_told_of_exists() -> None:
    texts = [text for path in documents.DOCUMENTS for text in documents.inline(path)]
    texts += [
        line for path in documents.DOCUMENTS for b in documents.blocks(path) for line in b.lines
    ]
    told = {text for text in texts if text.startswith("systemctl ")} - {"systemctl daemon-reload"}
    assert len(told) > 4
    for text in told:
        _, verb, *_, name = text.split()
        if name != "ssh.service":
            unit = units.units()[installed_as(name)]
            assert verb != "reload" or unit.all("Service.ExecReload"), text


def installed_as(name: str) -> str:
    """The unit that is meant: of a service the suffix may be left out."""
    name = name if re.search(r"\.(service|socket|timer)$", name) else f"{name}.service"
    return re.sub(r"@[a-z]+", "@", name)


def test_units_exist() -> None:
    """Those that the guides name, as debhelper installs them."""
    text = GUIDE + SUBMITTER
    named = set(
        re.findall(r"\b(invirtibuilder[a-z-]*)(?:@[a-zA-Z]+)?\.(service|socket|timer)", text)
    )
    assert len(named) > 2
    for name, kind in named:
        forms = (
            f"{name}.{kind}",
            f"invirtibuilder.{name}.{kind}",
            f"invirtibuilder@.{name}.{kind}",
        )
        assert any((TOP / "debian" / form).exists() for form in forms), f"no unit {name}.{kind}"


def wrong_in(command: str) -> list[str]:
    """What a journalctl command names that there is not; it ends with 0 all the same."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-u", dest="unit", required=True)
    parser.add_argument("matches", nargs="+")
    words = parser.parse_args(shlex.split(command)[1:])
    wrong = [] if f"{words.unit}.service" in units.units() else [words.unit]
    known = {"PRIORITY": {str(p) for p in (journal.ERROR, journal.WARNING, journal.INFO)}}
    for match in words.matches:
        name, _, value = match.partition("=")
        if not (value in known[name] if name in known else name.lower() in journal.FIELDS):
            wrong.append(match)
    return wrong


def test_what_is_looked_for_in_the_journal_can_be_there() -> None:
    page = (TOP / "debian/man/invirtibuilder-daemon.1").read_text().replace("\\-", "-")
    lines = re.findall(r"^ *(journalctl .*)", GUIDE + page, re.MULTILINE)
    assert len(lines) == 2
    assert [wrong for line in lines for wrong in wrong_in(line)] == []
    told = "journalctl -u invirtibuildr POCKT=prod CODE=x PRIORITY=9"
    assert wrong_in(told) == ["invirtibuildr", "POCKT=prod", "PRIORITY=9"]


def test_the_fields_of_the_journal() -> None:
    fields = {name.upper() for name in journal.FIELDS}
    guide = re.search(r"in the journal with fields, (.*?);", GUIDE, re.DOTALL)
    page = (TOP / "debian/man/invirtibuilder-daemon.1").read_text()
    told = re.search(r"goes there with fields:(.*?)as far as", page, re.DOTALL)
    assert guide
    assert told
    assert set(re.findall(r"``(\w+)``", guide[1])) == fields
    assert set(re.findall(r"\b[A-Z]{3,}\b", re.sub(r"\\f[BP]", " ", told[1]))) == fields


def test_every_threat_is_there() -> None:
    assert set(threats()) == THREATS


@pytest.mark.parametrize("threat", sorted(THREATS))
def test_the_tests_of_a_threat_exist(threat: str) -> None:
    named = re.findall(r"``(tests/[a-z/_]+\.py)::(\w+)``", threats()[threat])
    assert named
    for file, test in named:
        defined = {n.name for n in ast.walk(tree(TOP / file)) if isinstance(n, ast.FunctionDef)}
        assert test in defined, f"{file} has no {test}"


def test_the_codes_of_refusals_exist() -> None:
    section = SUBMITTER.partition("\nWhat a refusal means\n")[2].partition("\nFetch\n")[0]
    codes = set(re.findall(r"``([a-z]+(?:-[a-z]+)+)``", section)) - {"pristine-tar"}
    assert {"not-permitted", "too-many-submissions"} <= codes
    source = "".join(path.read_text() for path in modules().values())
    assert {code for code in codes if f'"{code}"' not in source} == set()


def test_the_states_are_those_of_jobs() -> None:
    section = SUBMITTER.partition("\nLook\n")[2]
    shown = re.findall(r"^([a-z]+)  ", section.partition("\nWhat a refusal")[0], re.MULTILINE)
    readme = (TOP / "README.rst").read_text()
    assert set(shown) == set(re.findall(r"^    ([a-z]+) +-> ", readme, re.MULTILINE))
