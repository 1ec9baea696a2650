"""Each probe's answers: on the machine, and in every phase of an export and a build."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.order import Limits, Order, Room, write_order
from invirtibuilder.run import run
from invirtibuilder.sandbox import layers
from invirtibuilder.sandbox.base import Base, BaseSpec
from invirtibuilder.sandbox.ids import Ids
from tests.escape.expected import ISOLATIONS
from tests.escape.machine import Machine, prepared, results, served
from tests.support import packages
from tests.support.exporting import bundle

DEPENDENCY = "escape-dependency"
SCRIPT = """#!/bin/sh
set -e
cd /usr/lib/escape
./probes install/root/maintainer-script
cp probes setuid
chmod 4755 setuid
cp probes capable
./probes give capable
./probes daemon
"""
RULES = "\t/usr/lib/escape/probes build/build/debian-rules\n"

Answers = dict[str, dict[str, str]]


@pytest.fixture(scope="session")
def machine(base_spec: BaseSpec) -> Iterator[Machine]:
    """This machine, with all that probes look for."""
    (uri, *_) = [w for w in base_spec.sources.split() if w.startswith(("http:", "https:"))]
    with prepared(uri) as made:
        yield made


@pytest.fixture(scope="session")
def controls(machine: Machine) -> dict[str, str]:
    """What the probes say on the machine itself."""
    program = machine.place(machine.directory / "control", machine.here)
    with tempfile.TemporaryFile() as log:
        with machine.started([str(program), "control"], log.fileno()) as process:
            assert process.wait(120) == 0
        log.seek(0)
        return results(log.read())["control"]


@pytest.fixture(scope="session", params=ISOLATIONS)
def isolation(request: pytest.FixtureRequest) -> str:
    """Each isolation that a pocket may have."""
    return str(request.param)


@pytest.fixture(scope="session")
def answers(log: bytes) -> Answers:
    """What the probes say in the sandboxes of one export and one build, by PHASE/USER/COMMAND."""
    return results(log)


@pytest.fixture(scope="session")
def log(
    isolation: str, machine: Machine, base: Base, base_spec: BaseSpec, ids: Ids
) -> Iterator[bytes]:
    """The log of one export and one build with the probes."""
    work = machine.directory / isolation
    slot = work / "worker/slot-1"
    for name in (work, work / "worker", slot, slot / "layers", work / "archive"):
        name.mkdir()
        name.chmod(0o711)
    slot.chmod(0o700)
    (slot / "bases").symlink_to(base.directory.parents[1])
    machine.place(work / "probes", machine.inside)
    _archive(machine, work)
    repo = packages.native(work / "repo", "escape", "1.0", build=RULES, build_depends=DEPENDENCY)
    said = {
        "package": repo.name,
        "version": repo.version,
        "commit": repo.commit,
        "changelog_entry": None,
        "compression": None,
        "components": [],
        "origs": [],
        **bundle(repo, work / "bundle", ""),
    }
    (work / "export.json").write_text(json.dumps(said))
    with served(work / "archive") as url:
        room = Room(
            suite=base_spec.suite,
            architecture=base_spec.architecture,
            sources=base_spec.sources,
            extra_sources=f"Types: deb\nURIs: {url}\nSuites: ./\nTrusted: yes\n",
            isolation=isolation,
            limits=Limits(seconds=300),
        )
        order = Order(kind="export", job="escape", attempt="1", room=room, content=said)
        inputs = {"export.json": work / "export.json", "repository.bundle": work / "bundle"}
        write_order(work / "export.tar", order, inputs)
        with (work / "log").open("w+b") as output:
            argv = [sys.executable, "-m", "tests.escape.launcher", str(work)]
            try:
                with machine.started(argv, output.fileno()) as process:
                    code = process.wait(600)
                output.seek(0)
                text = output.read()
                assert code == 0, text[-5000:].decode("utf-8", "replace")
                yield text
            finally:
                for kept in (*(slot / "layers").iterdir(), *(slot / "lists").glob("*")):
                    layers.discard(kept, ids)


def _archive(machine: Machine, work: Path) -> None:
    """A repository with the package whose maintainer script tries the probes."""
    tree = work / "package"
    machine.place(tree / "usr/lib/escape", machine.inside)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN").chmod(0o755)
    control = (
        f"Package: {DEPENDENCY}\nVersion: 1\nArchitecture: all\n"
        f"Maintainer: {packages.PERSON}\nDescription: tries to get out\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    (tree / "DEBIAN/postinst").write_text(SCRIPT)
    (tree / "DEBIAN/postinst").chmod(0o755)
    deb = work / "archive" / f"{DEPENDENCY}_1_all.deb"
    run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, deb])
    data = deb.read_bytes()
    index = f"{control}Filename: ./{deb.name}\nSize: {len(data)}\n"
    index += f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
    (work / "archive/Packages").write_text(index)
    digest = hashlib.sha256(index.encode()).hexdigest()
    (work / "archive/Release").write_text(f"SHA256:\n {digest} {len(index)} Packages\n")
