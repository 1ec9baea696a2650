"""What a command's end in a sandbox means: whose fault it is, and which limit it exceeded."""

from __future__ import annotations

from invirtibuilder.errors import (
    DISK_FULL,
    Cancelled,
    Fault,
    MachineFault,
    PackageFault,
    Reason,
    RoomFault,
)
from invirtibuilder.order import Limits
from invirtibuilder.sandbox.contract import Outcome

LINES = 12
"""Lines of output that a fault quotes."""


def judge(
    outcome: Outcome,
    *,
    what: str,
    fault: type[Fault],
    limits: Limits,
    package: str,
    output: str,
    result: bool,
) -> None:
    """Raise what the end of a command means, if it was not a good one.

    `output` is the end of its log; with `result` its output was a result. A limit that was
    exceeded is named by its key in the configuration, with its value; it is the room's fault
    where a failure would be, as when a maintainer script of a build dependency runs wild.
    """
    if outcome.limit == "cancelled":
        raise Cancelled("the order was cancelled")
    if outcome.limit == "reserve":
        raise full(what, limits)
    if outcome.limit:
        key = ("result" if result else "log") if outcome.limit == "output" else outcome.limit
        kind = RoomFault if issubclass(fault, RoomFault) else PackageFault
        raise kind(
            f"{what} exceeded the limit on {key} ({value(limits, key)})"
            f" after {outcome.seconds:.0f} s",
            code=f"limit-{key.replace('_', '-')}",
            hint=f"the log says what it was doing; {_raising(key, package)}",
            also=_hit(outcome, limits, package),
        )
    if outcome.code != 0:
        lines = [line for line in output.splitlines() if not line.startswith("== ")][-LINES:]
        raise fault(
            "\n".join([f"{what} failed with exit code {outcome.code}", *lines]),
            hint="the log has it all",
            also=_hit(outcome, limits, package),
        )


def full(what: str, limits: Limits) -> MachineFault:
    """The worker's file system has less room than it is to keep."""
    return MachineFault(
        f"{what}: less than {value(limits, 'reserve')} is left on the worker's file system",
        hint="make room there; `reserve` in the configuration says how much must be free",
        code=DISK_FULL,
    )


def empty(what: str) -> MachineFault:
    """There was no room at all for what has failed."""
    return MachineFault(
        f"{what}: nothing is left on the worker's file system",
        hint="make room there; with a `reserve` in the configuration it does not come to this",
        code=DISK_FULL,
    )


def _hit(outcome: Outcome, limits: Limits, package: str) -> list[Reason]:
    """Limits that kill nobody: what may be why the command failed."""
    messages = {
        "processes": "the limit on processes ({}) was hit{}",
        "file_size": "a file reached the limit on file_size ({})",
    }
    return [
        Reason(
            code=f"limit-{key.replace('_', '-')}",
            message=messages[key].format(value(limits, key), f" {n} times" if n > 1 else ""),
            hint=_raising(key, package),
        )
        for key, n in outcome.hits.items()
    ]


def _raising(key: str, package: str) -> str:
    return (
        f"`limits: {key}` of the pocket raises it, for this package alone"
        f" `packages: {package}: limits: {key}`"
    )


def value(limits: Limits, key: str) -> str:
    """A limit's value as a person reads it, by its key in the configuration."""
    seconds = {"time": limits.seconds, "idle": limits.idle_seconds, "cpu_time": limits.cpu_seconds}
    if key in seconds:
        return f"{seconds[key]:g} s"
    if key == "processes":
        return str(limits.processes)
    sizes = {"log": limits.log_size, "result": limits.result_size}
    return size(sizes.get(key) or getattr(limits, key))


def size(number: int) -> str:
    """Bytes in the largest unit that leaves a whole number.

    >>> size(512 << 20), size(1536), size(1000), size(3 << 40)
    ('512 MiB', '1536 B', '1000 B', '3 TiB')
    """
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number and number % (1 << shift) == 0:
            return f"{number >> shift} {unit}"
    return f"{number} B"
