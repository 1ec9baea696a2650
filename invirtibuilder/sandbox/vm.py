"""The sandbox as a throw-away machine: qemu without a network card, in the rootless sandbox.

Whatever breaks out of the machine is in that sandbox, as an unprivileged user of subordinate ids
and without a capability. A file system that a guest has written is only ever mounted by another
guest: here it is a file of bytes.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import stat
import string
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from invirtibuilder import tarsafe
from invirtibuilder.errors import MachineFault
from invirtibuilder.sandbox import guest
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.contract import Bind, Command, Limits, Outcome, never
from invirtibuilder.sandbox.ids import Ids, make_tree, remove_tree
from invirtibuilder.sandbox.kit import DISK
from invirtibuilder.sandbox.limits import Groups
from invirtibuilder.sandbox.userns import UserNamespace, upper_of

MEMORY = 2 << 30
"""Bytes of memory of a machine whose command has no limit on it."""
OWN_MEMORY = 256 << 20
"""What the machine's kernel gets besides."""
SIZE = 32 << 30
"""Bytes of a disk when there is no limit; only what is written takes space."""
PREPARE_SECONDS = 1800.0
TAIL = 65536
CRASHES = frozenset(-n for n in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL))
"""How a program ends that is at fault itself."""
STARTED = b"started"
STATUS = re.compile(rb"^status (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)\r?$", re.MULTILINE)
OWN = "/disks/own"
CONTROL = "/disks/control"
FILE = "disk"
QEMU = (
    *("qemu-system-x86_64", "-M", "q35", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-monitor", "none", "-nic", "none", "-no-reboot", "-kernel", "/machine/vmlinuz"),
    *("-initrd", "/machine/initrd.gz", "-append", "console=ttyS0 reboot=t panic=-1 quiet"),
    *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    # The kernel's complaints go to the log; status has a line of its own.
    *("-chardev", "file,id=console,path=/dev/stdout", "-device", "isa-serial,chardev=console"),
    *("-chardev", "file,id=status,path=/dev/stderr", "-device", "isa-serial,chardev=status"),
    *("-device", "virtio-serial-pci", "-chardev", "file,id=log,path=/dev/stdout"),
    *("-device", "virtserialport,chardev=log"),
)
ACCELERATORS = {"kvm": ("-accel", "kvm", "-cpu", "host"), "tcg": ("-accel", "tcg", "-cpu", "max")}

PREPARE = f"""umask 022
[ -z "$1" ] || {{ cat >/disks/own/stdin; truncate -s %512 /disks/own/stdin; }}
[ -z "$2" ] || {{ truncate -s "$2" /disks/own/result; chown 1000:1000 /disks/own/result; }}
size=$3; shift 3
while [ $# -gt 0 ]; do
  disk=$1 content=$2; shift 2
  mkdir -p "${{disk%/*}}"
  if [ -f "$content" ]; then
    mkdir "$disk.file"; cp "$content" "$disk.file/{guest.FILE}"; content=$disk.file
  fi
  if [ ! -e "$disk" ]; then
    owner=$(stat -c %u:%g "${{content:-/}}")
    {" ".join(DISK)} -E "lazy_itable_init=1,nodiscard,root_owner=$owner" \\
      ${{content:+-d "$content"}} "$disk" "${{size}}k"
    chown 1000:1000 "$disk"
  fi
done
"""
"""A constant program: make the disks that are not there yet, from trusted content or empty."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What machines are made of: a base, what `kit_of` gives, a directory of ours for disks.

    `accelerator` is kvm or tcg, which is emulation.
    """

    base: Base
    kit: Path
    place: Path
    accelerator: str = "tcg"


class Machine:
    """A machine over `lowers` (topmost first): the base's trees, and layers that machines made.

    `scratch` is a directory of `make_tree`; what is written goes to a disk in
    its `upper`. A bind goes in as a copy; a writable one becomes a disk, in a tree beside its
    source, which from then on is what machines find there. Each `run` boots a new machine over
    the same disks; one at a time for what is writable.

    Of the limits, `memory` and `disk` (each disk for itself) are the machine's size, `processes`
    and `file_size` hold inside it, and the others are those of qemu as a whole. A code over 128
    is taken for a signal, as the machine's shell reports it.
    """

    def __init__(
        self,
        *,
        ids: Ids,
        hardware: Hardware,
        lowers: Sequence[Path],
        scratch: Path | None,
        binds: Sequence[Bind] = (),
        limits: Limits,
        groups: Groups | None = None,
    ) -> None:
        self.ids = ids
        self.hardware = hardware
        self.lowers = tuple(lowers)
        self.scratch = scratch
        self.binds = tuple(binds)
        self.limits = limits
        self.groups = groups

    def run(self, command: Command, *, cancelled: Callable[[], bool] = never) -> Outcome:
        """Boot, run to the end, switch off. Raises MachineFault when it cannot start."""
        with self._own_tree() as own, tempfile.TemporaryFile() as status:
            plan = self._plan(command, own)
            self._prepare(plan, command.stdin)
            with self._control(plan, command) as control:
                qemu = Command(
                    argv=self._argv(plan),
                    user="build",
                    stdout=command.stderr,
                    stderr=status.fileno(),
                )
                binds = (*plan.binds, Bind(source=control, target=CONTROL))
                outcome = self._sandbox(binds).run(qemu, cancelled=cancelled)
                if _crashed(outcome, status):
                    # Under emulation it was seen to.
                    outcome = self._sandbox(binds).run(qemu, cancelled=cancelled)
            outcome, written = _judged(outcome, status)
            if plan.devices.result and command.stdout is not None:
                if written > plan.result_size:
                    return replace(outcome, code=-signal.SIGKILL, limit="output")
                _copy(own / "result", command.stdout, written)
            return outcome

    @contextmanager
    def _own_tree(self) -> Iterator[Path]:
        own = self.hardware.place / f"machine-{secrets.token_hex(4)}"
        make_tree(self.ids, own)
        try:
            yield own
        finally:
            remove_tree(self.ids, own)

    def _sandbox(self, binds: Sequence[Bind], **limits: Any) -> UserNamespace:
        """The rootless sandbox that everything of this machine is in."""
        bounds = replace(
            self.limits, memory=None, processes=None, file_size=None, disk=None, **limits
        )
        return UserNamespace(
            ids=self.ids,
            lowers=(self.hardware.kit, self.hardware.base.root),
            scratch=None,
            binds=binds,
            limits=bounds,
            groups=self.groups,
            devices=("kvm",) if self.hardware.accelerator == "kvm" else (),
        )

    def _plan(self, command: Command, own: Path) -> _Plan:
        plan = _Plan()
        plan.binds.append(Bind(source=own, target=OWN, writable=True))
        plan.add(CONTROL)
        base = plan.add("/machine/base.ext4")
        trees = {self.hardware.base.root: "base/root", self.hardware.base.tools: "base/tools"}
        layers = [trees.get(path) or plan.layer(path) for path in self.lowers]
        scratch = plan.scratch(self.scratch) if self.scratch else ""
        binds = [self._bound(plan, number, bind) for number, bind in enumerate(self.binds)]
        plan.stdin = 0 if command.stdin is None else os.fstat(command.stdin).st_size
        stdin = plan.add(f"{OWN}/stdin") if command.stdin is not None else ""
        result = ""
        if command.stdout not in (None, command.stderr):
            result = plan.add(f"{OWN}/result", writable=True)
            plan.result_size = -(-(self.limits.output or SIZE) // 512) * 512
        plan.devices = guest.Disks(
            base=base, layers=layers, scratch=scratch, binds=binds, stdin=stdin, result=result
        )
        return plan

    def _bound(self, plan: _Plan, number: int, bind: Bind) -> str:
        disks = bind.source.with_name(f"{bind.source.name}.disk")
        content, place = f"/content/{number}", f"/disks/bind{number}"
        if disks.exists():
            plan.binds.append(Bind(source=disks, target=place, writable=bind.writable))
            return plan.add(f"{place}/{FILE}", writable=bind.writable)
        plan.binds.append(Bind(source=bind.source, target=content))
        if bind.writable:
            make_tree(self.ids, disks)
            plan.binds.append(Bind(source=disks, target=place, writable=True))
            path = f"{place}/{FILE}"
        else:
            path = f"{OWN}/bind{number}"
        plan.made += [path, content]
        return plan.add(path, writable=bind.writable)

    def _prepare(self, plan: _Plan, stdin: int | None) -> None:
        sizes = [str(stdin is not None or ""), str(plan.result_size or "")]
        sizes.append(str((self.limits.disk or SIZE) >> 10))
        with tempfile.TemporaryFile() as log:
            command = Command(
                argv=("/bin/sh", "-euc", PREPARE, "prepare", *sizes, *plan.made),
                user="root",
                stdin=stdin,
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
            sandbox = self._sandbox(plan.binds, seconds=PREPARE_SECONDS, idle_seconds=None)
            outcome = sandbox.run(command)
            if outcome.code != 0:
                log.seek(0)
                said = log.read(4096).decode("utf-8", "replace")
                raise MachineFault(f"the machine's disks cannot be made: {said}", code="vm")

    @contextmanager
    def _control(self, plan: _Plan, command: Command) -> Iterator[Path]:
        """The control disk: a tar."""
        files = guest.control(command, plan.devices, self.binds, self.limits, plan.stdin)
        with tempfile.NamedTemporaryFile(prefix="control-", dir=self.hardware.place) as file:
            writer = tarsafe.Writer(file)
            for name, content in files.items():
                writer.add_bytes(name, content)
            writer.close()
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            yield Path(file.name)

    def _argv(self, plan: _Plan) -> tuple[str, ...]:
        memory = (self.limits.memory or MEMORY) + OWN_MEMORY
        return (
            *QEMU,
            *ACCELERATORS[self.hardware.accelerator],
            *("-smp", str(len(os.sched_getaffinity(0))), "-m", f"{memory >> 20}M"),
            *plan.options,
        )


@dataclass
class _Plan:
    """The machine's disks, what qemu's sandbox sees of ours, and which disks are yet to make."""

    options: list[str] = field(default_factory=list)
    binds: list[Bind] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    stdin: int = 0
    result_size: int = 0
    devices: guest.Disks = field(default_factory=guest.Disks)

    def add(self, path: str, *, writable: bool = False) -> str:
        """One more disk, a file of qemu's sandbox; the name of its device in the guest."""
        number = len(self.options) // 4
        mode = "cache=unsafe" if writable else "readonly=on"
        drive = f"if=none,id=d{number},file={path},format=raw,werror=report,{mode}"
        self.options += ["-drive", drive, "-device", f"virtio-blk-pci,drive=d{number}"]
        return f"vd{string.ascii_lowercase[number]}"

    def layer(self, path: Path) -> str:
        place = f"/disks/layer{len(self.binds)}"
        self.binds.append(Bind(source=path, target=place))
        return self.add(f"{place}/{FILE}")

    def scratch(self, path: Path) -> str:
        self.binds.append(Bind(source=path, target="/disks/scratch", writable=True))
        disk = f"/disks/scratch/{upper_of(path).name}/{FILE}"
        self.made += [disk, ""]
        return self.add(disk, writable=True)


def _crashed(outcome: Outcome, status: IO[bytes]) -> bool:
    """Whether qemu died of itself, before anything of the guest's had begun."""
    return not outcome.limit and outcome.code in CRASHES and STARTED not in _said(status)


def _said(status: IO[bytes]) -> bytes:
    status.seek(0, os.SEEK_END)
    status.seek(max(0, status.tell() - TAIL))
    return status.read(TAIL)


def _judged(outcome: Outcome, status: IO[bytes]) -> tuple[Outcome, int]:
    """What the machine says of its command unless it was killed, and the length of its output."""
    said = _said(status)
    words = STATUS.findall(said)
    if outcome.limit:
        return replace(outcome, code=-signal.SIGKILL), 0
    if not words:
        if STARTED in said:
            # Its kernel gave up, or somebody with the right to switched it off.
            return replace(outcome, code=-signal.SIGKILL), 0
        raise MachineFault(
            f"the machine does not start: {said.decode('utf-8', 'replace')[-1000:]}",
            hint="its console is in the log",
            code="vm",
        )
    code, count, killed, refused, large, full = map(int, words[-1])
    hits = {"processes": refused, "file_size": large if code else 0}
    limit = "memory" if killed else "disk" if full else ""
    ended = Outcome(
        code=128 - code if code > 128 else code,
        limit=limit if code else "",
        hits={key: number for key, number in hits.items() if number},
        seconds=outcome.seconds,
    )
    return ended, count


def _copy(source: Path, target: int, length: int) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise MachineFault("the machine's result is no file", code="vm")
        while length > 0 and (data := file.read(min(length, 1 << 20))):
            length -= len(data)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(target, rest) :]
