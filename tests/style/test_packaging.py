"""What debian/ says twice, or says of the program, is so."""

from __future__ import annotations

import configparser
import re

import invirtibuilder
from invirtibuilder.run import run
from tests.style.test_layers import SLOW, foreign, reached
from tests.support.repository import TOP, modules, tree

CLIENT = ("__main__", "cli.remote", "remctl")
"""What the client starts with: `remctl` is imported late."""
MODULES = "usr/lib/python3*/dist-packages/invirtibuilder/"


def client() -> set[str]:
    """The modules that the client needs, with the packages that they are in."""
    found = {name for start in CLIENT for name in reached(start)}
    return found | {""} | {name.rpartition(".")[0] for name in found}


def debian(name: str) -> str:
    return (TOP / "debian" / name).read_text()


def depends(package: str) -> set[str]:
    paragraph = re.search(rf"^Package: {package}\n(.*?)(?:\n\n|\Z)", debian("control"), re.M | re.S)
    assert paragraph
    fields = re.findall(r"^Depends:(.*(?:\n .*)*)", paragraph[1], re.MULTILINE)
    return {word.split()[0] for word in ",".join(fields).split(",") if word.strip()}


def test_the_client_has_what_it_imports_and_no_more() -> None:
    lines = debian("invirtibuilder-client.install").splitlines()
    listed = {line.removeprefix(MODULES) for line in lines if line.startswith(MODULES)}
    assert listed == {str(modules()[n].relative_to(TOP / "invirtibuilder")) for n in client()}


def test_the_client_needs_no_library_but_gssapi() -> None:
    assert {lib for n in client() for lib in foreign(tree(modules()[n])) & SLOW} == {"gssapi"}
    assert {n for n in depends("invirtibuilder-client") if n[0] != "$"} == {"python3-gssapi"}


def test_one_version() -> None:
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    changelog = run(["dpkg-parsechangelog", "-l", TOP / "debian/changelog", "-S", "Version"]).text
    assert {changelog, setup["metadata"]["version"]} == {invirtibuilder.__version__}


def test_inotify_simple_is_of_one_version() -> None:
    folder = TOP / "conf/inotify-simple"
    changelog = run(["dpkg-parsechangelog", "-l", folder / "debian/changelog", "-S", "Version"])
    pinned = re.findall(
        r"^inotify-simple==(\S+) --hash=sha256:[0-9a-f]{64}$",
        (folder / "upstream.txt").read_text(),
        re.M,
    )
    assert pinned == [changelog.text.rpartition("-")[0]]
