"""Faults: every failure says whose it is, which exit code it has, and what to do next.

Exit codes never are 1 or 255: remctl uses those for its own failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, StrEnum


class Blame(StrEnum):
    """Whose fault a failure is: a closed vocabulary."""

    REQUEST = "request"  # what was asked for is not allowed or does not exist
    PACKAGE = "package"  # the commit cannot be exported, built or published
    ROOM = "room"  # the base, the mirror, a dependency that cannot be installed
    MACHINE = "machine"  # this site: disk, configuration, our own defect


DISK_FULL = "disk-full"
"""The code of a fault that ends when the machine has room again: the job waits for that."""


class Exit(IntEnum):
    """Exit codes of every program here; documented in invirtibuilder(1)."""

    OK = 0
    REFUSED = 3  # a submission was refused, all reasons printed
    FAILED = 4  # the job ended without a publication
    CANCELLED = 5
    DRIFT = 6  # fsck: git, the archive and the records differ
    UNHEALTHY = 7  # status --site: there is a trouble
    USAGE = 64  # EX_USAGE
    DATA = 65  # EX_DATAERR: the input is malformed
    NO_INPUT = 66  # EX_NOINPUT: what was named does not exist
    UNAVAILABLE = 69  # EX_UNAVAILABLE: the daemon or a service does not answer
    SOFTWARE = 70  # EX_SOFTWARE: a defect of ours
    MACHINE = 71  # EX_OSERR: this machine cannot do it
    TEMPORARY = 75  # EX_TEMPFAIL: try again later
    DENIED = 77  # EX_NOPERM
    CONFIG = 78  # EX_CONFIG


class Reason:
    """One reason for a refusal or failure, for a machine (`code`) and for a person.

    No dataclass: door programs start at every call, and that import is half of their time.
    """

    __slots__ = ("code", "hint", "message")

    def __init__(self, *, code: str, message: str, hint: str = "") -> None:
        self.code = code
        self.message = message
        self.hint = hint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reason) and self.as_json() == other.as_json()

    def __hash__(self) -> int:
        return hash((self.code, self.message, self.hint))

    def __repr__(self) -> str:
        return f"Reason(code={self.code!r}, message={self.message!r}, hint={self.hint!r})"

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f"\n  hint: {self.hint}" if self.hint else "")

    def as_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


class Fault(Exception):
    """An expected failure. Shown without a traceback, at one place in each program."""

    exit = Exit.SOFTWARE
    blame = Blame.MACHINE
    code = "fault"

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", also: Sequence[Reason] = ()
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code or self.code
        self.also = tuple(also)

    @property
    def reasons(self) -> Sequence[Reason]:
        """All reasons, at least one; what may have been the cause of it comes last."""
        return [Reason(code=self.code, message=str(self), hint=self.hint), *self.also]


class Refused(Fault):
    """A request that is not allowed, with all reasons at once."""

    exit = Exit.REFUSED
    blame = Blame.REQUEST
    code = "refused"

    def __init__(self, reasons: Sequence[Reason]) -> None:
        if not reasons:
            raise ValueError("a refusal needs a reason")
        super().__init__("; ".join(r.message for r in reasons), hint=reasons[0].hint)
        self._reasons = tuple(reasons)
        self.code = reasons[0].code

    @property
    def reasons(self) -> Sequence[Reason]:
        return self._reasons


class PackageFault(Fault):
    """The package is wrong: it cannot be exported, built or published."""

    exit = Exit.FAILED
    blame = Blame.PACKAGE
    code = "package"


class RoomFault(Fault):
    """The build environment is wrong: base, mirror, dependencies."""

    exit = Exit.FAILED
    blame = Blame.ROOM
    code = "room"


class MachineFault(Fault):
    """This machine or site cannot do it."""

    exit = Exit.MACHINE
    blame = Blame.MACHINE
    code = "machine"


class ConfigFault(Fault):
    """The configuration is wrong; the message has all findings, one a line with file:line."""

    exit = Exit.CONFIG
    blame = Blame.MACHINE
    code = "config"


class NotFound(Fault):
    """What was named does not exist."""

    exit = Exit.NO_INPUT
    blame = Blame.REQUEST
    code = "not-found"


class Malformed(Fault):
    """Input that does not parse or is hostile."""

    exit = Exit.DATA
    blame = Blame.REQUEST
    code = "malformed"


class Denied(Fault):
    """The caller may not do this."""

    exit = Exit.DENIED
    blame = Blame.REQUEST
    code = "denied"


class Unavailable(Fault):
    """A service does not answer; trying again later may help."""

    exit = Exit.UNAVAILABLE
    blame = Blame.MACHINE
    code = "unavailable"


class Cancelled(Fault):
    """Somebody asked for this to stop."""

    exit = Exit.CANCELLED
    blame = Blame.REQUEST
    code = "cancelled"


class UsageFault(Fault):
    """The command line is wrong."""

    exit = Exit.USAGE
    blame = Blame.REQUEST
    code = "usage"
