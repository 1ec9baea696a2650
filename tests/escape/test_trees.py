"""What hostile content leaves in a worker's trees: nobody on the machine gets at it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from invirtibuilder.sandbox import userns
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.contract import Bind, Command, Limits
from invirtibuilder.sandbox.ids import make_tree, remove_tree
from invirtibuilder.sandbox.slots import Slot, taken
from tests.escape.machine import Machine
from tests.support.base import Room


@pytest.fixture
def slot(machine: Machine) -> Iterator[Slot]:
    """A slot whose directory could be reached by all, but for what it does itself."""
    domain = machine.directory / "domain"
    domain.mkdir(mode=0o755)
    with taken(domain, (1,)) as made:
        yield made
    remove_tree(made.ids, made.directory / "layers/tree")
    shutil.rmtree(domain)


@pytest.mark.root
def test_a_set_user_id_program_in_a_layer(machine: Machine, slot: Slot, base: Base) -> None:
    """Started by a user of this machine it would run as the owner of all bases and layers."""
    tree = slot.directory / "layers/tree"
    make_tree(slot.ids, tree)
    program = machine.place(machine.directory / "given", machine.inside)
    room = userns.UserNamespace(
        ids=slot.ids,
        lowers=[base.root],
        scratch=tree,
        binds=[Bind(source=program, target="/run/program")],
        limits=Limits(seconds=60),
    )
    give = "cp /run/program /usr/bin/gift; chmod 4755 /usr/bin/gift"
    assert room.run(Command(argv=("sh", "-ec", give), user="root")).code == 0
    gift = userns.upper_of(tree) / "usr/bin/gift"
    assert gift.stat().st_mode & 0o4000

    def started() -> str:
        argv = [str(gift), "identity"]
        nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
        return str(subprocess.check_output(argv, text=True, **nobody))

    with pytest.raises(PermissionError):
        started()
    slot.directory.chmod(0o711)
    (slot.directory / "layers").chmod(0o711)
    assert started() == f"{slot.ids.first_uid}\n", "the program is none: this shows nothing"


def test_every_way_into_a_slot_is_closed(slot: Slot) -> None:
    assert slot.directory.stat().st_mode & 0o077 == 0
    assert slot.directory.stat().st_uid == os.geteuid()


def test_one_that_was_open_is_closed(machine: Machine) -> None:
    domain = machine.directory / "open-domain"
    for path in (domain, domain / "slot-1"):
        path.mkdir()
        path.chmod(0o755)
    with taken(domain, (1,)) as made:
        assert Path(made.directory).stat().st_mode & 0o077 == 0
    shutil.rmtree(domain)


INTERPRETER = """#!/proc/self/exe
import errno, os

handle = os.open("/proc/self/exe", os.O_PATH)
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
    try:
        os.open(f"/proc/self/fd/{handle}", flags)
        print("open")
    except OSError as error:
        print(errno.errorcode[error.errno])
for change in (os.chmod, os.utime):
    try:
        change(f"/proc/self/fd/{handle}", 0o777 if change is os.chmod else (0, 0))
        print("changed")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("user", ["root", "build"])
def test_the_interpreter_of_the_worker_cannot_be_changed(
    room: Room, user: Literal["root", "build"]
) -> None:
    """What becomes the command was the worker's interpreter; a layer whose programs ask for
    /proc/self/exe is given it to run, as others who may read it."""
    room.with_scratch()
    room.binds = (Bind(source=room.directory / "script", target="/run/script"),)
    (room.directory / "script").write_text(INTERPRETER)
    (room.directory / "script").chmod(0o755)
    lines = room.text("/run/script", user=user).split()
    assert lines == ["EACCES", "EACCES", "EACCES", "EPERM", "EPERM"]
