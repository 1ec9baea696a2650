"""The packages' own tests, debian/tests, on a clean machine: from the installation to the purge."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.sandbox.base import BaseSpec
from tests.support import documents
from tests.support.debian import build, inotify_simple, needed_by_test, source_tree
from tests.support.documents import Shell
from tests.support.roots import Machine, machine, new_root

pytestmark = pytest.mark.root

DEBS = "/debs"
SOURCE = "/source"
INSTALL = ("apt-get", "-q", "-y", "--no-install-recommends", "install")


@pytest.fixture(scope="module")
def clean(base_spec: BaseSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine as it is after Debian's installation, with the packages in a directory."""
    made = build(source_tree(tmp_path_factory.mktemp("ours") / "source"), "-b")
    needed = build(inotify_simple(tmp_path_factory.mktemp("inotify")), "-b")
    with new_root(base_spec.suite) as root:
        (root / DEBS[1:]).mkdir()
        for deb in (*made.debs, *needed.debs):
            shutil.copy(deb, root / DEBS[1:])
        source_tree(root / SOURCE[1:])
        with machine(root) as inside:
            inside.run("apt-get", "-q", "update")
            yield inside


def as_autopkgtest(inside: Machine, name: str) -> None:
    """Run one of debian/tests as autopkgtest does: its dependencies, then itself in the source."""
    inside.run(*INSTALL, *needed_by_test(name), *sorted(debs(inside, name)))
    program = f"cd {SOURCE} && mkdir -p /tmp/tests && exec debian/tests/{name} 2>&1"
    env = {"AUTOPKGTEST_TMP": "/tmp/tests", "INVIRTIBUILDER_DEBS": DEBS}
    done = inside.run("sh", "-c", program, env=env, check=False)
    assert done.code == 0, done.out.decode("utf-8", "replace")


def debs(inside: Machine, name: str) -> set[str]:
    files = [path.name for path in (inside.root / DEBS[1:]).glob("*.deb")]
    wanted = [f for f in files if name != "client" or f.startswith("invirtibuilder-client")]
    return {f"{DEBS}/{f}" for f in wanted}


def test_the_client_alone(clean: Machine) -> None:
    as_autopkgtest(clean, "client")
    installed = clean.run("dpkg-query", "-W", "-f", "${Package}\n").text.splitlines()
    assert "invirtibuilder-client" in installed
    assert not {"python3-git", "python3-yaml", "python3-debian", "invirtibuilder"} & set(installed)


def test_a_site(clean: Machine) -> None:
    for name in ("subuid", "subgid"):
        with (clean.root / "etc" / name).open("a") as file:
            file.write("somebody:165536:65536\n")
    as_autopkgtest(clean, "site")


def test_the_guides_commands(clean: Machine) -> None:
    """What the administrator's guide says of apt-get, after all has been purged once."""
    (clean.root / "tmp/guide").mkdir()
    shell = Shell(
        folder=Path("/tmp/guide"),
        words={},
        environment={"DEBIAN_FRONTEND": "noninteractive", "HOME": "/root"},
        instead=(("apt-get ", "apt-get -q -y --no-install-recommends "),),
        before=clean.before,
        root=clean.root,
        cwd=Path(DEBS),
    )
    lines = documents.marked(documents.ADMINISTRATOR, documents.CLEAN_MACHINE)
    for line in lines:
        shell.type(line)
    assert lines[-1].startswith("apt-get purge")
    assert not (clean.root / "usr/bin/invirtibuilder").exists()
