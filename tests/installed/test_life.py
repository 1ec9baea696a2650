"""The packages' own tests, debian/tests, on a clean machine: from the installation to the purge."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.run import CLEAN
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
    assert on_the_network(inside) == {}
    program = f"cd {SOURCE} && mkdir -p /tmp/tests && exec debian/tests/{name} 2>&1"
    env = {"AUTOPKGTEST_TMP": "/tmp/tests", "INVIRTIBUILDER_DEBS": DEBS}
    done = inside.run("sh", "-c", program, env=env, check=False)
    assert done.code == 0, done.out.decode("utf-8", "replace")


def on_the_network(inside: Machine) -> dict[str, str]:
    """Who listens at more than the loopback interface."""
    loopback = re.compile(r"\w+ (\w{6}7F|0{24}01000000|0{16}FFFF0000\w{6}7F):")
    return {at: who for at, who in inside.listening().items() if not loopback.match(at)}


def debs(inside: Machine, name: str) -> set[str]:
    files = [path.name for path in (inside.root / DEBS[1:]).glob("*.deb")]
    wanted = [f for f in files if name != "client" or f.startswith("invirtibuilder-client")]
    return {f"{DEBS}/{f}" for f in wanted}


def test_the_client_alone(clean: Machine) -> None:
    as_autopkgtest(clean, "client")
    installed = clean.run("dpkg-query", "-W", "-f", "${Package}\n").text.splitlines()
    assert "invirtibuilder-client" in installed
    assert not {"python3-git", "python3-yaml", "python3-debian", "invirtibuilder"} & set(installed)


def test_nothing_is_recommended_that_listens(clean: Machine) -> None:
    """remctl-server's own recommendation is an inetd, with a remctld at every address."""
    said = clean.run("apt-get", "-s", "install", *sorted(debs(clean, "site"))).text
    new = set(re.findall(r"^Inst (\S+)", said, re.MULTILINE))
    assert {"invirtibuilder", "fakeroot"} <= new  # mmdebstrap recommends the latter
    assert not {
        name for name in new if "inetd" in name or name in ("remctl-server", "openssh-server")
    }


def test_who_listens_is_seen(clean: Machine) -> None:
    """The control: a process there that listens, at an address that does no harm."""
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(flush=True); input()"
    )
    argv = [*clean.before, "python3", "-c", program]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=CLEAN
    ) as process:
        assert process.stdout
        process.stdout.readline()
        (at,) = clean.listening()
        process.communicate(b"\n")
    assert at.startswith("tcp 0100007F:")
    assert on_the_network(clean) == clean.listening() == {}


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
