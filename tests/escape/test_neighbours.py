"""Within one worker's account: what hostile content of one order gets of another's, and leaves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.sandbox import helper, userns
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.contract import Command, Limits
from invirtibuilder.sandbox.ids import Ids, finish, make_tree, remove_tree
from invirtibuilder.sandbox.slots import Slot, taken
from tests.escape.machine import Machine

KINDS = ("scratch", "layers", "bases")
"""What a slot has."""
SECRET = "a neighbour's"

# Root in a sandbox, with all that it may: the paths as they are on the machine, what the mount
# table tells of them, and a look everywhere.
LOOK = """
for path in "$@" $(tr ',:=' '\\n\\n\\n' </proc/self/mountinfo | grep ^/var/tmp); do
    cat "$path/secret" "/proc/1/root$path/secret" "/proc/self/cwd/../../../..$path/secret" || :
    mkdir "$path/planted" || :
done 2>/dev/null
find / -name secret -o -name planted 2>/dev/null | grep -v ^/proc | xargs -r cat || :
"""
POISON = """
echo poison >>/etc/debian_version
echo poison >/usr/bin/dpkg-buildpackage
mkdir -p /etc/apt/apt.conf.d && echo poison >/etc/apt/apt.conf.d/99poison
chmod 777 / /etc /usr/bin
cat /etc/debian_version
"""


def done(ids: Ids, program: str, *trees: Path) -> str:
    """What a program says, as root of these ids, with the trees at /tmp/0 and so on."""
    reader, writer = os.pipe()
    argv = ["/bin/sh", "-uc", program]
    directories = {str(number): tree for number, tree in enumerate(trees)}
    begun = helper.start(
        ids, argv, directories=directories, files={}, output=writer, errors=writer, env={}
    )
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    finish(begun, seconds=60)
    return text


@pytest.fixture
def neighbours(machine: Machine) -> Iterator[tuple[Slot, Slot]]:
    """Two slots of one account; each has a tree of every kind, with a secret in it."""
    domain = machine.directory / "neighbours"
    domain.mkdir(mode=0o711)
    with taken(domain, (1,)) as one, taken(domain, (2,)) as two:
        for slot in (one, two):
            for tree in trees(slot):
                tree.parent.mkdir(exist_ok=True)
                make_tree(slot.ids, tree)
                done(slot.ids, f'echo "{SECRET}" >/tmp/0/secret; chmod 600 /tmp/0/secret', tree)
        yield one, two
        for slot in (one, two):
            for tree in trees(slot):
                remove_tree(slot.ids, tree)
    shutil.rmtree(domain)


def trees(slot: Slot) -> list[Path]:
    return [slot.directory / kind / "other" for kind in KINDS]


def hostile(slot: Slot, lowers: list[Path], script: str, *words: str) -> str:
    """What hostile content of an order in a slot prints, as root in its sandbox."""
    scratch = slot.directory / "scratch/hostile"
    make_tree(slot.ids, scratch)
    room = userns.UserNamespace(
        ids=slot.ids, lowers=lowers, scratch=scratch, limits=Limits(seconds=60)
    )
    with tempfile.TemporaryFile() as output:
        argv = ("sh", "-c", script, "sh", *words)
        outcome = room.run(Command(argv=argv, user="root", stdout=output.fileno()))
        remove_tree(slot.ids, scratch)
        output.seek(0)
        assert outcome.code == 0
        return output.read().decode()


def test_a_neighbour_is_not_there(neighbours: tuple[Slot, Slot], base: Base) -> None:
    """Neither the slot beside nor what another order has left in the same one."""
    one, two = neighbours
    paths = [str(tree) for slot in (one, two) for tree in trees(slot)]
    assert SECRET not in hostile(one, [base.root], LOOK, *paths)
    for slot in (one, two):
        for tree in trees(slot):
            assert done(slot.ids, "ls /tmp/0", tree).split() == ["secret"]
    # The control: what is handed to an order it finds.
    assert SECRET in hostile(one, [trees(one)[1], base.root], LOOK, *paths)


def test_a_neighbours_ids_are_others(neighbours: tuple[Slot, Slot]) -> None:
    """Whatever shows one the other's files, they are closed."""
    one, two = neighbours
    for tree in trees(two):
        assert SECRET not in done(one.ids, "cat /tmp/0/secret; rm -f /tmp/0/secret", tree)
        assert done(two.ids, "cat /tmp/0/secret", tree) == f"{SECRET}\n"


def test_what_was_poisoned_goes_with_the_order(neighbours: tuple[Slot, Slot], base: Base) -> None:
    slot, _ = neighbours
    version = (base.root / "etc/debian_version").read_bytes()
    assert "poison" in hostile(slot, [base.root], POISON)
    assert (base.root / "etc/debian_version").read_bytes() == version
    after = "cat /etc/debian_version /usr/bin/dpkg-buildpackage /etc/apt/apt.conf.d/*"
    assert "poison" not in hostile(slot, [base.root], after)
