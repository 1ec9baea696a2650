"""`invirtibuilder acl`: the real `main()`, real files and programs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import acl, files
from invirtibuilder.cli.main import main
from invirtibuilder.run import run
from invirtibuilder.settings import ACTIONS
from tests.support import place as places
from tests.support.place import ME, ROOT, Place

ALICE = "alice@EXAMPLE.ORG"
ACL = """    acl:
      submit:
        - {me}
        - file: developers
        - command: who
      cancel: [root/admin@EXAMPLE.ORG, {me}]
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Place]:
    """A site whose dev has one source of each kind; tests change nothing."""
    with places.place() as made:
        arrange(made)
        yield made


@pytest.fixture
def own() -> Iterator[Place]:
    with places.place() as made:
        arrange(made)
        yield made


def arrange(place: Place) -> None:
    (place.directory / "developers").write_text(f"# staff\n{ALICE}\nsp ace@EXAMPLE.ORG\n")
    program(place, f"echo carol@EXAMPLE.ORG; echo {ALICE}")
    head, key, rest = place.config.read_text().partition("    acl:\n")
    rest = rest[rest.index("  staging:") :]
    place.config.write_text(head + ACL.format(me=ME) + rest)
    assert key


def program(place: Place, script: str, name: str = "who") -> Path:
    path = place.directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def call(place: Place, *args: str | Path) -> tuple[int, str, str]:
    """`main()` in this process: exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["--config", str(place.config), "acl", *map(str, args)])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def run_cli(place: Place, *args: str) -> int:
    return place.cli(*args).code


def data(place: Place, *args: str | Path) -> tuple[int, Any]:
    code, out, _ = call(place, *args, "--json")
    return code, json.loads(out)


def line_of(place: Place, text: str) -> str:
    """Where in the configuration this stands first."""
    lines = place.config.read_text().splitlines()
    return f"{place.config}:{next(n for n, line in enumerate(lines, 1) if text in line)}"


def test_show(shared: Place) -> None:
    code, value = data(shared, "show", "dev")
    assert (code, value["troubles"]) == (0, [])
    listed, who = f"{shared.directory}/developers", f"`{shared.directory}/who dev submit`"
    assert value["grants"] == [
        {"pocket": "dev", "action": action, "principal": principal, "by": by}
        for action, principal, by in (
            ("submit", ALICE, [f"{listed}:2", f"{who}:2"]),
            ("submit", "carol@EXAMPLE.ORG", [f"{who}:1"]),
            ("submit", "sp ace@EXAMPLE.ORG", [f"{listed}:3"]),
            ("submit", ME, [line_of(shared, f"- {ME}")]),
            ("cancel", "root/admin@EXAMPLE.ORG", [line_of(shared, "root/admin")]),
            ("cancel", ME, [line_of(shared, "root/admin")]),
        )
    ]
    _, text, _ = call(shared, "show", "dev")
    lines = text.splitlines()
    assert lines[0].split() == ["POCKET", "ACTION", "PRINCIPAL", "BY"]
    assert lines[1].split() == ["dev", "submit", ALICE, f"{listed}:2,", *f"{who}:2".split()]
    assert len(lines) == 7
    _, everything = data(shared, "show")
    assert {g["pocket"] for g in everything["grants"]} == {"dev", "staging", "prod"}
    assert call(shared, "show", "nonesuch")[0] == 66


def test_show_of_nothing(own: Place) -> None:
    text = own.config.read_text()
    own.config.write_text(text.replace(ACL.format(me=ME), ""))
    assert call(own, "show", "dev")[:2] == (0, "nobody may do anything\n")


@pytest.mark.parametrize(
    ("action", "principal", "by"),
    [
        ("submit", ALICE, ["developers:2", "who dev submit`:2"]),
        ("submit", "sp ace@EXAMPLE.ORG", ["developers:3"]),
        ("submit", "carol@EXAMPLE.ORG", ["who dev submit`:1"]),
        ("cancel", "root/admin@EXAMPLE.ORG", ["invirtibuilder.yaml:"]),
        ("submit", "Alice@EXAMPLE.ORG", []),
        ("submit", "alice@example.org", []),
        ("submit", "alice@ELSEWHERE.ORG", []),
        ("submit", "alice/admin@EXAMPLE.ORG", []),
        ("submit", "alice", []),
        ("submit", "# staff", []),
        ("submit", "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", []),
        ("submit", "", []),
        ("submit", f"{ALICE}\n", []),
        ("cancel", ALICE, []),
        ("read", ALICE, []),
    ],
)
def test_explain(shared: Place, action: str, principal: str, by: list[str]) -> None:
    code, value = data(shared, "explain", "dev", action, principal)
    assert code == (0 if by else 77)
    assert value["allowed"] == bool(by)
    assert len(value["by"]) == len(by)
    assert all(part in place for part, place in zip(by, value["by"], strict=True))
    assert (value["pocket"], value["action"], value["principal"]) == ("dev", action, principal)
    assert len(value["looked"]) == {"submit": 3, "cancel": 2, "read": 0}[action]
    code, out, _ = call(shared, "explain", "dev", action, principal)
    lines = out.splitlines()
    assert (code, lines[0].split(":")[0]) == ((0, "yes") if by else (77, "no"))
    assert len(lines) == 1 + (len(by) or len(value["looked"]) or 1)
    if by:
        assert lines[1:] == [f"  by {place}" for place in value["by"]]


def test_explain_says_why_never(shared: Place) -> None:
    for principal in ("", "a\nb"):
        _, value = data(shared, "explain", "dev", "submit", principal)
        assert value["troubles"][0]["code"] == "bad-principal"
        assert "[bad-principal]" in call(shared, "explain", "dev", "submit", principal)[2]


def test_explain_names_what_could_not_be_read(own: Place) -> None:
    program(own, f"echo {ALICE}; echo no route >&2; exit 4")
    (own.directory / "developers").write_bytes(b"\xff\n")
    code, out, err = call(own, "explain", "dev", "submit", ALICE)
    assert code == 77
    assert out.startswith("no: alice@EXAMPLE.ORG may not submit in dev\n")
    assert err.count("[acl-unreadable]") == 2
    assert "no route" in err
    assert "developers" in err
    code, value = data(own, "explain", "dev", "submit", ME)
    assert (code, len(value["troubles"])) == (0, 2)


def test_usage(shared: Place) -> None:
    for words in ((), ("explain", "dev"), ("explain", "dev", "destroy", ALICE), ("compile", "x")):
        assert call(shared, *words)[0] == 64, words
    assert call(shared, "explain", "nonesuch", "submit", ALICE)[0] == 66


def test_compile(own: Place) -> None:
    table, submitters = own.directory / "run/door.json", own.directory / "run/submitters"
    table.unlink(missing_ok=True)
    code, value = data(own, "compile")
    assert code == 0
    assert (value["table"], value["submitters"]) == (str(table), str(submitters))
    assert value["expires"]
    assert len(value["troubles"]) == 1
    assert "sp ace@EXAMPLE.ORG" in value["troubles"][0]
    dev = json.loads(table.read_text())["pockets"]["dev"]
    assert dev["expires"] == value["expires"]
    assert sorted(dev["actions"]) == sorted(ACTIONS)
    assert dev["actions"]["submit"] == sorted(
        [ALICE, "carol@EXAMPLE.ORG", "sp ace@EXAMPLE.ORG", ME]
    )
    assert submitters.read_text().splitlines() == [
        *(f"princ:{n}" for n in (ALICE, "carol@EXAMPLE.ORG", "root/admin@EXAMPLE.ORG"))
    ]
    code, out, err = call(own, "compile")
    assert (code, out.split()) == (0, [str(table), str(submitters)])
    assert err.startswith("warning: pocket dev: ")


def test_compile_stops_waiting_for_a_program(own: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the time that a program has cut short; others' rights are untouched."""
    monkeypatch.setattr(acl, "TIMEOUT", 0.3)
    program(own, "echo eve@R; exec sleep 20")
    code, value = data(own, "compile")
    assert code == 0
    assert "no end after 0.3 s" in value["troubles"][0]
    dev = json.loads((own.directory / "run/door.json").read_text())["pockets"]["dev"]
    assert dev["actions"]["submit"] == sorted([ALICE, "sp ace@EXAMPLE.ORG", ME])
    assert dev["expires"] is None


@pytest.mark.root
def test_compile_is_for_the_sites_account(own: Place) -> None:
    """Files of another account would be in the daemon's way."""
    os.chown(own.directory / "run", 65534, -1)
    code, _, err = call(own, "compile")
    assert code == 77
    assert "unix/nobody" in err
    assert not (own.directory / "run/acl.lock").exists()
    # A new package is no reason to write them, either.
    assert run_cli(own, "package", "create", "greet") == 0
    assert not (own.directory / "run/acl.lock").exists()


def test_a_new_package_is_known_to_the_doors_at_once(own: Place) -> None:
    assert call(own, "compile")[0] == 0
    before = json.loads((own.directory / "run/door.json").read_text())
    program(own, "exec sleep 20")
    assert run_cli(own, "package", "create", "greet") == 0
    after = json.loads((own.directory / "run/door.json").read_text())
    assert (before["packages"], after["packages"]) == ([], ["greet"])
    # Programs are not asked for that: what they said still counts, as long as before.
    assert after["pockets"] == before["pockets"]
    # Nor is another writer waited for.
    with files.locked(own.directory / "run/acl.lock"):
        assert run_cli(own, "package", "create", "other") == 0


def expect(place: Place, text: str) -> Path:
    path = place.directory / "expectations.yaml"
    path.write_text(text)
    return path


GOOD = f"""
- {{pocket: dev, action: submit, principal: {ALICE}, allowed: true}}
- {{pocket: dev, action: submit, principal: sp ace@EXAMPLE.ORG, allowed: yes}}
- {{pocket: dev, action: submit, principal: alice@OTHER, allowed: false}}
- {{pocket: dev, action: cancel, principal: {ALICE}, allowed: false}}
- pocket: prod
  action: read
  principal: WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS
  allowed: false
- {{pocket: dev, action: read, principal: "", allowed: false}}
"""


def test_expectations_that_are_met(shared: Place) -> None:
    file = expect(shared, GOOD)
    assert call(shared, "test", file)[:2] == (0, "6 expectations, 0 failures\n")
    assert data(shared, "test", file) == (0, {"ok": True, "expectations": 6, "failures": []})


def test_all_failures_at_once(shared: Place) -> None:
    text = GOOD.replace("true", "TRUE").replace("allowed: false", "allowed: true")
    file = expect(shared, text.replace("allowed: TRUE", "allowed: false"))
    code, out, err = call(shared, "test", file)
    assert (code, out) == (65, "6 expectations, 5 failures\n")
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{file}:{n}" for n in (2, 4, 5, 6, 10)]
    assert lines[0] == (
        f"{file}:2: {ALICE} may submit in dev, but should not; by"
        f" {shared.directory}/developers:2, `{shared.directory}/who dev submit`:2"
    )
    assert lines[1] == f"{file}:4: alice@OTHER may not submit in dev, but should"
    assert "the principal is empty" in lines[4]
    code, value = data(shared, "test", file)
    assert (code, value["ok"], value["expectations"]) == (65, False, 6)
    assert [f["line"] for f in value["failures"]] == [2, 4, 5, 6, 10]
    assert {f["file"] for f in value["failures"]} == {str(file)}


def test_what_cannot_be_known_is_a_failure(own: Place) -> None:
    """A `no` for want of an answer is no `no`; a `yes` of another source is one."""
    program(own, "exit 1")
    file = expect(own, GOOD)
    code, _, err = call(own, "test", file)
    assert code == 65
    (line,) = err.splitlines()
    assert line.startswith(f"{file}:4: nobody knows whether alice@OTHER may submit in dev")
    assert "exit code 1" in line


def test_a_program_is_asked_once(own: Place) -> None:
    program(own, f"echo asked >>{own.directory}/asked; echo {ALICE}")
    assert call(own, "test", expect(own, GOOD))[0] == 0
    assert (own.directory / "asked").read_text() == "asked\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {1: "no expectations"}),
        ("[]", {1: "no expectations"}),
        ("pocket: dev", {1: "must be a list"}),
        ("- dev", {1: "must be a mapping"}),
        ("- {pocket: dev", {1: ""}),
        (
            "- {pocket: nope, action: submit, principal: a, allowed: true}\n"
            "- {pocket: dev, action: destroy, principal: a, allowed: true}\n"
            "- {pocket: dev, action: submit, principal: [a], allowed: maybe}\n"
            "- {pocket: dev, action: submit, allowed: true, who: x}\n",
            {
                1: "must be one of dev, staging, prod",
                2: "must be one of submit, ",
                3: "must be true or false",
                4: "principal is missing",
            },
        ),
    ],
)
def test_expectations_that_are_none(shared: Place, text: str, found: dict[int, str]) -> None:
    file = expect(shared, text)
    code, _, err = call(shared, "test", file)
    assert code == 65
    for number, message in found.items():
        assert any(f"{file}:{number}: " in ln and message in ln for ln in err.splitlines()), err
    assert call(shared, "test", "nonesuch")[0] == 65


def test_the_example_fits_the_example(tmp_path: Path) -> None:
    """conf/expectations.yaml is true of conf/invirtibuilder.yaml."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    conf = tmp_path / "conf"
    for name in ("acl", "hooks.d", "gnupg"):
        (conf / name).mkdir()
    for name in ("acl/developers", "hooks.d/webhook", "internal-archive.asc", "pbuilderrc"):
        (conf / name).write_text("")
    (conf / "acl/from-ldap").write_text("#!/bin/sh\n")
    (conf / "acl/from-ldap").chmod(0o755)
    argv: list[str | Path] = [sys.executable, "-m", "invirtibuilder", "--config"]
    argv.append(conf / "invirtibuilder.yaml")
    env = {"PYTHONPATH": str(ROOT)}
    argv += ["acl", "test", conf / "expectations.yaml"]
    done = run(argv, env=env, cwd="/", check=False)
    assert (done.code, done.text) == (0, "8 expectations, 0 failures"), done.err.decode()
