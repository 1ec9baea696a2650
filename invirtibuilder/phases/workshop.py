"""What every phase needs: the order, the base, scratch trees, sandboxes and the log."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO

from invirtibuilder import files, inside, model, tarsafe
from invirtibuilder.errors import Fault, Malformed, PackageFault
from invirtibuilder.order import Limits as PocketLimits
from invirtibuilder.order import Order
from invirtibuilder.phases.verdicts import empty, full, judge
from invirtibuilder.run import quoted
from invirtibuilder.sandbox.base import Base, BaseSpec
from invirtibuilder.sandbox.contract import Bind, Command, Limits, Proxy, Sandbox
from invirtibuilder.sandbox.ids import Ids, make_tree
from invirtibuilder.sandbox.kit import kit_of
from invirtibuilder.sandbox.kvm import DESCRIPTION, with_accelerator
from invirtibuilder.sandbox.limits import Groups
from invirtibuilder.sandbox.slotbase import old_base, slot_base
from invirtibuilder.sandbox.userns import UserNamespace
from invirtibuilder.sandbox.vm import MEMORY, SIZE, Hardware, Machine

NOTHING = 1 << 20
"""Bytes: with fewer left, a command that failed had no room, where no reserve was to be kept."""
RECEIVE = 'tar -xf - -C "$1" && chown -R 1000:1000 "$1"'
"""A constant program: unpack what comes in, for the unprivileged user."""


@dataclass(kw_only=True)
class Workshop:
    """One order's place of work.

    `directory` is the slot's, with bases and layers of its ids. `domain_directory`, above it, is
    what all slots of the worker's trust domain can read: several orders at once use it. What is
    in `held` is given back when the order has ended.
    """

    order: Order
    content: IO[bytes]
    domain_directory: Path
    directory: Path
    scratch: Path
    ids: Ids
    log_fd: int
    cancelled: Callable[[], bool]
    groups: Groups = field(default_factory=Groups)
    environment: dict[str, str] = field(default_factory=dict)
    held: ExitStack = field(default_factory=ExitStack)

    def stage(self, text: str) -> None:
        """A line of the log: what begins now, with UTC time."""
        os.write(self.log_fd, f"== {model.iso(model.utcnow())} {text}\n".encode())

    def base(self, *, refresh: bool = False) -> Base:
        """The base that the order's room asks for; made when there is none yet."""
        room = self.order.room
        place = (self.domain_directory, self.directory, self.ids)
        try:
            base = None
            if room.base:
                base = old_base(room.base, *place, log=self.log_fd, say=self.stage)
            base = base or slot_base(
                self._spec,
                *place,
                log=self.log_fd,
                say=self.stage,
                refresh=refresh,
                keep=room.keep,
                most=room.bases_size,
            )
        except Fault:
            self.check_room()
            raise
        self.environment["base"] = base.digest
        return base

    @property
    def _spec(self) -> BaseSpec:
        room = self.order.room
        return BaseSpec(
            suite=room.suite, architecture=room.architecture, sources=room.sources, keys={}
        )

    @property
    def limits(self) -> PocketLimits:
        """What a build may use: a machine has a size, also where nothing is limited."""
        limits = self.order.room.limits
        if self.order.room.isolation != "vm":
            return limits
        return replace(limits, memory=limits.memory or MEMORY, disk=limits.disk or SIZE)

    @cached_property
    def _hardware(self) -> Hardware:
        """What machines are made of, where the order's isolation is `vm`."""
        base = self.base()
        store = self.directory / "layers"
        kit = self.held.enter_context(
            kit_of(
                base,
                self._spec,
                store,
                self.ids,
                most=self.order.room.layers_size,
                log=self.log_fd,
                say=self.stage,
            )
        )
        hardware = Hardware(base=base, kit=kit, place=self.scratch)
        hardware = with_accelerator(
            hardware,
            self.ids,
            answer=self.directory / "kvm.json",
            emulation=self.order.room.emulation,
        )
        self.environment["machine"] = hardware.accelerator
        self.stage(f"machine: {DESCRIPTION[hardware.accelerator]}")
        return hardware

    def tree(self, name: str) -> Path:
        """A new scratch directory that belongs to the sandbox's root."""
        path = self.scratch / name
        make_tree(self.ids, path)
        return path

    def sandbox(
        self,
        lowers: Sequence[Path],
        *,
        upper: Path | None = None,
        binds: Sequence[Bind] = (),
        trusted: bool = False,
        native: bool = False,
        output: int | None = None,
    ) -> Sandbox:
        """A sandbox over these layers (topmost first); read-only without an upper.

        `trusted` is for our own and Debian's programs on the bare base: they get the pocket's
        time and leave the machine its reserve, but have not its bounds on what a build may use.
        With `native` nothing that was submitted is run or parsed: that is done without a machine,
        whatever the isolation. `output` is for results instead of a log, in bytes.
        """
        room = self.limits
        limits = Limits(seconds=room.seconds, output=output or room.log_size, reserve=room.reserve)
        if not trusted:
            limits = replace(
                limits,
                idle_seconds=room.idle_seconds,
                memory=room.memory,
                processes=room.processes,
                file_size=room.file_size,
                cpu_seconds=room.cpu_seconds,
                disk=room.disk,
            )
        if self.order.room.isolation == "vm" and not native:
            return Machine(
                ids=self.ids,
                hardware=self._hardware,
                lowers=lowers,
                scratch=upper,
                binds=binds,
                limits=limits,
                groups=self.groups,
            )
        return UserNamespace(
            ids=self.ids,
            lowers=tuple(lowers),
            scratch=upper,
            binds=tuple(binds),
            limits=limits,
            groups=self.groups,
        )

    def run(
        self,
        sandbox: Sandbox,
        argv: Sequence[str],
        *,
        user: str = "build",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: int | None = None,
        stdout: int | None = None,
        proxy: Proxy | None = None,
        fault: type[Fault] = PackageFault,
        what: str = "",
    ) -> None:
        """Run one command in a sandbox, its output in the log.

        Raises `fault` when it fails, with the end of the output, and Cancelled.
        """
        os.write(self.log_fd, f"+ {quoted(argv)}\n".encode())
        with self.watched() as (output, tail):
            command = Command(
                argv=tuple(argv),
                user="root" if user == "root" else "build",
                env=env or {},
                cwd=cwd,
                stdin=stdin,
                stdout=stdout if stdout is not None else output,
                stderr=output,
                proxy=proxy,
            )
            outcome = sandbox.run(command, cancelled=self.cancelled)
        if outcome.code != 0 and not outcome.limit and self._left() < NOTHING:
            raise empty(what or argv[0])
        judge(
            outcome,
            what=what or argv[0],
            fault=fault,
            limits=self.limits,
            package=str(self.order.content.get("package", "PACKAGE")),
            output=tail(),
            result=stdout is not None,
        )

    def check_room(self) -> None:
        """Raises MachineFault when the worker's file system has no more than its reserve."""
        limits = self.limits
        if limits.reserve is not None and self._left() < limits.reserve:
            raise full("nothing is begun", limits)

    def _left(self) -> int:
        """Bytes that are free on the worker's file system."""
        status = os.statvfs(self.scratch)
        return status.f_bavail * status.f_frsize

    @contextmanager
    def watched(self) -> Iterator[tuple[int, Callable[[], str]]]:
        """The log's descriptor, and what was written to the log since, at most its last 4 KiB."""
        if not stat.S_ISREG(os.fstat(self.log_fd).st_mode):
            yield self.log_fd, lambda: ""
            return
        start = os.fstat(self.log_fd).st_size
        reader = os.open(f"/proc/self/fd/{self.log_fd}", os.O_RDONLY)

        def tail() -> str:
            end = os.fstat(self.log_fd).st_size
            begin = max(start, end - 4096)
            data = os.pread(reader, end - begin, begin)
            os.close(reader)
            return data.decode("utf-8", "replace")

        yield self.log_fd, tail

    def receive(self, lowers: Sequence[Path], tree: Path) -> None:
        """Unpack the order's content into a tree, inside a sandbox, for the build user."""
        self.content.seek(0)
        os.lseek(self.content.fileno(), 0, os.SEEK_SET)
        room = self.sandbox(
            lowers,
            binds=[Bind(source=tree, target="/mnt", writable=True)],
            trusted=True,
            native=True,
        )
        argv = ["/bin/sh", "-ec", RECEIVE, "receive", "/mnt"]
        self.run(room, argv, user="root", stdin=self.content.fileno(), what="unpacking the order")

    def member(self, name: str, limit: int) -> bytes:
        """A member of the order, of at most `limit` bytes. Raises Malformed."""
        # A buffer of its own: sandboxes have moved the offset that the other one goes by.
        with open(self.content.fileno(), "rb", closefd=False) as stream:
            stream.seek(0)
            for found, size, content in tarsafe.members(stream, tarsafe.Limits()):
                if found == name and size <= limit:
                    return content.read()
        raise Malformed(f"the order has no {name} of at most {limit} bytes")

    def filled(self, name: str, content: Mapping[str, bytes]) -> Path:
        """A new scratch directory with these files, which a sandbox can read but not write."""
        tree = self.scratch / name
        for path, data in content.items():
            file = files.contained(tree, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            file.chmod(0o644)
            for folder in file.relative_to(self.scratch).parents[:-1]:
                (self.scratch / folder).chmod(0o755)
        return tree

    def programs(self) -> Bind:
        """Our own programs for inside, as a read-only directory at /inside."""
        source = Path(inside.__file__).parent
        programs = {p.name: p.read_bytes() for p in source.glob("*.py")}
        return Bind(source=self.filled("inside", programs), target="/inside")
