"""Faults: each kind has its own code, each exit code is one that remctl leaves to us."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from invirtibuilder import errors
from invirtibuilder.errors import Exit, Fault
from tests.support.repository import modules, tree

# Codes that more than one module gives, and what they mean there.
SHARED = {
    "base": "a base cannot be made, read or copied",
    "no-pocket": "a pocket that is not configured",
    "set-aside": "a request that the daemon did not take up, with its reason",
    "no-repository": "no git repository at that path",
    "no-state": "no state of a pocket goes by these words",
    "no-job": "no job of that name, or none that the asker may see",
    "not-permitted": "the ACL does not let the principal, at the door or at the daemon",
    "not-in-pocket": "a package that the pocket does not have, or did not have then",
    "overtaken": "somebody published in between what the job had looked at",
    "not-over": "a job that still runs cannot be tried again",
    "bad-ref": "git allows no ref of that name",
    "tag-elsewhere": "the version's tag is at another commit, at admission or by publication",
    "not-the-site": "a service is asked by who is neither the site's own account nor root",
    "sandbox": "a sandbox cannot be set up or ended",
}

FAULTS = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Fault)]


def given() -> Iterator[tuple[str, str]]:
    """Every code that is written somewhere, with its module."""
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.keyword) and node.arg == "code":
                if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                    yield node.value.value, name
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                first = node.args[0] if node.func.attr == "_refuse" and node.args else None
                if isinstance(first, ast.Constant):
                    yield str(first.value), name


def test_codes() -> None:
    users: dict[str, set[str]] = defaultdict(set)
    for code, name in given():
        if not code.isdigit():  # of HTTP
            users[code].add(name)
    assert len(users) > 40
    odd = [code for code in users if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", code)]
    assert not odd, f"codes are lower case words with hyphens: {odd}"
    shared = {code: sorted(names) for code, names in users.items() if len(names) > 1}
    unexplained = {code: names for code, names in shared.items() if code not in SHARED}
    assert not unexplained, f"one code, several modules; one meaning? {unexplained}"
    assert users.keys() >= SHARED.keys()


def test_kinds_of_fault_have_codes_of_their_own() -> None:
    codes = [fault.code for fault in FAULTS]
    assert len(set(codes)) == len(codes)


def test_exit_codes() -> None:
    assert not {1, 2, 255} & {int(code) for code in Exit}, "remctl's and argparse's own"
    assert all(0 <= code < 128 for code in Exit), "those above are signals"
    used = {fault.exit for fault in FAULTS} | {Exit.OK, Exit.TEMPORARY, Exit.DRIFT, Exit.UNHEALTHY}
    assert used == set(Exit), f"nothing ends with {set(Exit) - used}"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda c: c.__name__)
def test_every_kind_of_fault_has_a_blame(fault: type[Fault]) -> None:
    assert fault.blame in errors.Blame
    assert fault.__doc__
