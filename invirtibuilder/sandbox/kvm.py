"""Whether KVM works here: /dev/kvm alone is no proof, a machine that boots is."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import replace
from pathlib import Path

from invirtibuilder.errors import MachineFault, Malformed
from invirtibuilder.files import read_json, write_json
from invirtibuilder.sandbox.contract import Command, Limits
from invirtibuilder.sandbox.ids import Ids
from invirtibuilder.sandbox.vm import Hardware, Machine

DEVICE = Path("/dev/kvm")
BOOT_SECONDS = 30.0
"""Within this a machine must come up. Emulated, one takes a few seconds."""
DESCRIPTION = {"kvm": "KVM works", "tcg": "KVM does not work: it is emulated, and slow"}


def with_accelerator(hardware: Hardware, ids: Ids, *, answer: Path, emulation: bool) -> Hardware:
    """The same with kvm, or else with tcg where `emulation` allows it.

    The file `answer` keeps what was found out. Raises MachineFault with the reason when KVM does
    not work and emulation is not asked for.
    """
    problem = kvm_problem(hardware, ids, answer)
    if problem and not emulation:
        raise MachineFault(
            f"isolation `vm` needs KVM, which does not work here: {problem}",
            hint="`vm: {emulation: true}` in the pocket's configuration does without, much slower",
            code="no-kvm",
        )
    return replace(hardware, accelerator="tcg" if problem else "kvm")


def kvm_problem(hardware: Hardware, ids: Ids, answer: Path) -> str:
    """Why KVM does not work, "" when it does. Tried once a boot, and when access changes."""
    try:
        device = DEVICE.stat()
    except FileNotFoundError:
        return f"there is no {DEVICE}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    circumstances = [
        *(boot, platform.release(), str(hardware.kit), ids.first_uid),
        *(device.st_mode, device.st_uid, device.st_gid, device.st_ctime),
    ]
    try:
        known = read_json(answer)
        if known["circumstances"] == circumstances:
            return str(known["problem"])
    except (FileNotFoundError, Malformed, KeyError, TypeError):
        pass
    problem = _trial(replace(hardware, accelerator="kvm"), ids)
    write_json(answer, {"circumstances": circumstances, "problem": problem})
    return problem


def _trial(hardware: Hardware, ids: Ids) -> str:
    machine = Machine(
        ids=ids,
        hardware=hardware,
        lowers=(hardware.base.root,),
        scratch=None,
        limits=Limits(seconds=BOOT_SECONDS),
    )
    with tempfile.TemporaryFile() as log:
        try:
            command = Command(
                argv=("true",), user="build", stdout=log.fileno(), stderr=log.fileno()
            )
            outcome = machine.run(command)
        except MachineFault as fault:
            return str(fault)
    if outcome.limit:
        return f"a machine did not come up within {BOOT_SECONDS:.0f} s"
    return f"`true` ends with {outcome.code} in it" if outcome.code else ""
