"""Throw-away machines over the shared base, and what to run in them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from invirtibuilder.sandbox.base import Base, BaseSpec
from invirtibuilder.sandbox.contract import Limits
from invirtibuilder.sandbox.ids import Ids, remove_tree
from invirtibuilder.sandbox.kit import kit_of
from invirtibuilder.sandbox.kvm import with_accelerator
from invirtibuilder.sandbox.vm import Hardware, Machine
from tests.support.base import Tried


@pytest.fixture(scope="session")
def hardware(
    base: Base, base_spec: BaseSpec, base_directory: Path, layers: Path, ids: Ids
) -> Iterator[Hardware]:
    """What the run's machines are made of; with KVM where it works."""
    place = Path(tempfile.mkdtemp(prefix="invirtibuilder-kvm-", dir="/var/tmp"))
    place.chmod(0o711)
    with (
        (base_directory / "base.log").open("ab") as log,
        kit_of(
            base, base_spec, layers, ids, most=8 << 30, log=log.fileno(), say=lambda _: None
        ) as kit,
    ):
        made = Hardware(base=base, kit=kit, place=place)
        yield with_accelerator(made, ids, answer=place / "kvm.json", emulation=True)
    (place / "kvm.json").unlink(missing_ok=True)
    place.rmdir()


@dataclass(kw_only=True)
class MachineRoom(Tried):
    """A machine over the base, booted for each command."""

    hardware: Hardware
    lowers: Sequence[Path]
    limits: Limits = field(default_factory=lambda: Limits(seconds=300))

    @property
    def place(self) -> Path:
        return self.hardware.place

    def sandbox(self) -> Machine:
        return Machine(
            ids=self.ids,
            hardware=self.hardware,
            lowers=self.lowers,
            scratch=self.scratch,
            binds=self.binds,
            limits=self.limits,
        )


@pytest.fixture
def machine(hardware: Hardware, ids: Ids, tmp_path: Path) -> Iterator[MachineRoom]:
    """A machine with a read-only root, with the tools."""
    place = tmp_path / "machines"
    place.mkdir()
    place.chmod(0o711)
    base = hardware.base
    yield MachineRoom(
        ids=ids, hardware=replace(hardware, place=place), lowers=(base.tools, base.root)
    )
    left = [path.name for path in place.iterdir() if path.name.startswith(("machine-", "control-"))]
    for path in place.iterdir():
        remove_tree(ids, path)
    assert not left
