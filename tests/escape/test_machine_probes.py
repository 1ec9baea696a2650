"""The same probes in a throw-away machine: what is left of them where the kernel is another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from invirtibuilder.sandbox.contract import Bind
from invirtibuilder.sandbox.ids import Ids, remove_tree
from invirtibuilder.sandbox.vm import Hardware
from tests.escape.expected import OWN_KERNEL, PROBES
from tests.escape.machine import Machine, results
from tests.support.machines import MachineRoom


@pytest.mark.parametrize("user", ["root", "build"])
def test_nothing_of_the_machine_is_open_in_a_guest(
    machine: Machine,
    hardware: Hardware,
    ids: Ids,
    tmp_path: Path,
    user: Literal["root", "build"],
) -> None:
    """`test_a_probe_succeeds_on_the_machine` is the control of each."""
    tmp_path.chmod(0o711)
    machine.place(tmp_path / "probes", machine.inside)
    room = MachineRoom(
        ids=ids,
        hardware=replace(hardware, place=tmp_path),
        lowers=(hardware.base.root,),
        binds=(Bind(source=tmp_path / "probes", target="/run/escape"),),
    )
    room.scratch = room.tree("scratch")
    label = f"machine/{user}/probes"
    try:
        room.text("/run/escape/probes", label, user=user)
    finally:
        remove_tree(ids, room.scratch)
    found = results(room.output)[label]
    assert found.keys() == PROBES.keys()
    tried = [n for n, p in PROBES.items() if n not in OWN_KERNEL and p.belongs(label)]
    assert len(tried) > 110
    assert not {n: found[n] for n in tried if found[n] not in PROBES[n].answers}


def test_what_is_left_out_is_known() -> None:
    assert PROBES.keys() >= OWN_KERNEL
