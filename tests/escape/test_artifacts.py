"""What a build leaves behind is hostile: how its results come out, and what does not."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.errors import PackageFault
from invirtibuilder.order import Limits, Order, ResultWriter, Room
from invirtibuilder.phases.build import ARTIFACT
from invirtibuilder.phases.collect import collect
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.contract import Bind
from invirtibuilder.sandbox.ids import Ids, remove_tree

MIB = 1 << 20
DEB = """mkdir -p p/DEBIAN
printf 'Package: p\\nVersion: 1\\nArchitecture: all\\n' >p/DEBIAN/control
printf 'Maintainer: T <t@example.org>\\nDescription: p\\n' >>p/DEBIAN/control
dpkg-deb -Znone --build p good_1_all.deb >/dev/null
"""


@pytest.fixture
def workshop(ids: Ids, base: Base, tmp_path: Path) -> Iterator[Workshop]:
    room = Room(
        suite="x", architecture="x", sources="", limits=Limits(seconds=60, result_size=4 * MIB)
    )
    order = Order(kind="build", job="j", attempt="a", room=room, content={})
    with (tmp_path / "log").open("w+b") as log:
        yield Workshop(
            order=order,
            content=io.BytesIO(),
            domain_directory=tmp_path,
            directory=tmp_path,
            scratch=tmp_path,
            ids=ids,
            log_fd=log.fileno(),
            cancelled=lambda: False,
        )
    for path in tmp_path.iterdir():
        if path.is_dir() and path.stat().st_uid == ids.first_uid:
            remove_tree(ids, path)


def collected(workshop: Workshop, base: Base, program: str) -> tuple[list[str], dict[str, Any]]:
    """The files that come out of a tree in which the program was run, and the report."""
    tools = (base.tools, base.root)
    tree = workshop.tree("build")
    writable = Bind(source=tree, target="/build", writable=True)
    room = workshop.sandbox(tools, binds=[writable])
    workshop.run(room, ["sh", "-ec", "chown 1000:1000 /build"], user="root")
    workshop.run(room, ["sh", "-ec", DEB + program], cwd="/build")
    stream = io.BytesIO()
    writer = ResultWriter(stream)
    programs = workshop.programs()
    report = collect(workshop, tools, programs, tree, "binary", ARTIFACT, writer)
    assert not (workshop.scratch / "collected.tar").exists()
    return [file.name for file in writer.files], report


PROBLEMS = {
    "link": ("ln -s /etc/passwd x_1_all.deb", "Too many levels of symbolic links"),
    "link to a good one": ("ln -s good_1_all.deb x_1_all.deb", "symbolic links"),
    "FIFO": ("mkfifo x_1_all.deb", "not a regular file"),
    "directory": ("mkdir x_1_all.deb", "not a regular file"),
    "socket": (
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"x_1_all.deb\")'",
        "No such device or address",
    ),
    "device": ("ln -s /dev/zero x_1_all.buildinfo", "symbolic links"),
    "no package": ("echo text >x_1_all.deb", "not a Debian package"),
    "empty": (": >x_1_all.deb", "not a Debian package"),
    "closed": ("cp good_1_all.deb x_1_all.deb; chmod 0 x_1_all.deb", ""),
    "hole": ("truncate -s 5G x_1_all.buildinfo", "a hole"),
    "hole behind a package": (
        "cp good_1_all.deb x_1_all.deb; truncate -s 5G x_1_all.deb",
        "a hole",
    ),
    "hole between data": (
        "echo a >x.buildinfo; truncate -s 1M x.buildinfo; echo z >>x.buildinfo",
        "a hole",
    ),
    "too large": ("head -c 5M /dev/urandom >x.buildinfo", "larger than"),
    "too large together": (
        "for i in 1 2 3; do head -c 2M /dev/urandom >x$i.buildinfo; done",
        "larger than",
    ),
    "too many": ("for i in $(seq 3000); do : >$i.buildinfo; done", "more than"),
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_a_bad_artifact_is_named(workshop: Workshop, base: Base, what: str) -> None:
    program, problem = PROBLEMS[what]
    names, report = collected(workshop, base, program)
    assert any(problem in text for text in report["problems"]), report
    assert all(len(text) <= 500 for text in report["problems"])
    assert "x_1_all.deb" not in names
    assert os.fstat(workshop.log_fd).st_size < MIB


HOSTILE_NAMES = ["new\nline.deb", "-rf.deb", "a b.deb", "\x1b[2J.deb", "\u202e.deb", "$(id).deb"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_is_refused(workshop: Workshop, base: Base, name: str) -> None:
    with pytest.raises(PackageFault) as caught:
        collected(workshop, base, f"cp good_1_all.deb './{name}'")
    assert caught.value.code == "bad-result"
    assert str(caught.value).isprintable()


def test_what_does_not_look_like_a_result_stays(workshop: Workshop, base: Base) -> None:
    secret = secrets.token_hex(8)
    program = f"echo {secret} >.hidden.deb; echo {secret} >core; mkdir -p d; : >d/x.deb"
    names, report = collected(workshop, base, program)
    assert names == ["good_1_all.deb"]
    assert report["problems"] == []
    assert report["debs"]["good_1_all.deb"]["Package"] == "p"


def test_a_second_name_of_a_file_is_a_file(workshop: Workshop, base: Base) -> None:
    names, report = collected(workshop, base, "ln good_1_all.deb x_1_all.deb")
    assert names == ["good_1_all.deb", "x_1_all.deb"]
    assert report["problems"] == []
