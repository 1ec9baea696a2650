"""Throw-away machines over the shared base, and what to run in them."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from invirtibuilder.sandbox.base import Base, BaseSpec
from invirtibuilder.sandbox.contract import Bind, Command, Limits, Outcome
from invirtibuilder.sandbox.ids import Ids, make_tree, remove_tree
from invirtibuilder.sandbox.kit import kit_of
from invirtibuilder.sandbox.kvm import with_accelerator
from invirtibuilder.sandbox.vm import Hardware, Machine


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
class MachineRoom:
    """A machine over the base, a new one for each command."""

    ids: Ids
    hardware: Hardware
    lowers: Sequence[Path]
    scratch: Path | None = None
    binds: Sequence[Bind] = ()
    limits: Limits = field(default_factory=lambda: Limits(seconds=300))
    output: bytes = b""

    def tree(self, name: str) -> Path:
        """A directory of the sandbox's root, removed after the test."""
        path = self.hardware.place / name
        make_tree(self.ids, path)
        return path

    def run(self, *argv: str, user: Literal["root", "build"] = "build", **options: Any) -> Outcome:
        """Boot a machine for a command; what it writes is in `output` afterwards."""
        machine = Machine(
            ids=self.ids,
            hardware=self.hardware,
            lowers=self.lowers,
            scratch=self.scratch,
            binds=self.binds,
            limits=self.limits,
        )
        cancelled = options.pop("cancelled", lambda: False)
        with tempfile.TemporaryFile() as log:
            options = {"stdout": log.fileno(), "stderr": log.fileno(), **options}
            command = Command(argv=argv, user=user, **options)
            try:
                return machine.run(command, cancelled=cancelled)
            finally:
                log.seek(0)
                self.output = log.read()

    def text(self, *argv: str, **options: Any) -> str:
        """What a command that must succeed writes."""
        outcome = self.run(*argv, **options)
        text = self.output.decode("utf-8", "replace")
        assert outcome.code == 0, f"{outcome}\n{text}"
        return text

    def python(self, program: str, *args: str, **options: Any) -> str:
        """What a Python program that must succeed writes, run inside."""
        return self.text("python3", "-c", textwrap.dedent(program), *args, **options)


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
