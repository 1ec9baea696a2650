"""Control groups (cgroups(7)): bounds on all processes of a run together, where we may make any.

Version 2 where a group was delegated to us, version 1 where our own group can be written; each
resource by itself, as a machine may have both. A resource without one is bound by rlimits of
each process and by sampling, and `lacking` says so.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from invirtibuilder.errors import MachineFault
from invirtibuilder.sandbox.cgroups import (
    delegated,
    enabled,
    is_second,
    number,
    numbers,
    own_groups,
    write,
)

RESOURCES = {"memory": "memory", "processes": "pids", "cpu_time": "cpuacct"}
"""What is bound, by the configuration's word, and the controller (version 1's name)."""

WEAKER = {
    "memory": "of each process by itself only (RLIMIT_AS)",
    "processes": "by RLIMIT_NPROC, and seen by sampling",
    "cpu_time": "of all processes by sampling, of each by RLIMIT_CPU",
}
"""What holds in the place of a control group."""

PREFIX = "invirtibuilder-"
OLD = 60.0
"""Seconds after which an empty group belongs to a worker that was killed."""

BATCH = 1 << 20
"""Bytes by which the kernel's count of used memory may lag behind."""

REMOVAL = 5.0
"""Seconds that the kernel may take to let go of a group whose processes are dead."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Where groups can be made, by resource; `why` says why not for the others."""

    places: Mapping[str, Path] = field(default_factory=dict)
    why: str = ""

    @classmethod
    def find(cls) -> Groups:
        """What this process may use; the processes of a delegated group move to a leaf."""
        places: dict[str, Path] = {}
        whys: list[str] = []
        own = own_groups()
        if (second := own.get("")) is not None:
            place, why = delegated(second)
            if place is not None and (why := why or _unusable(place)) == "":
                there = enabled(place)
                places = {r: place for r, c in RESOURCES.items() if c in (*there, "cpuacct")}
                missing = {"memory", "pids"} - there
                why = f"{place} has no controller {', '.join(sorted(missing))}" if missing else ""
            whys += [why] if why else []
        for resource, controller in RESOURCES.items():
            if resource not in places and controller in own:
                if why := _unusable(own[controller]):
                    whys.append(why)
                else:
                    places[resource] = own[controller]
        return cls(places=places, why="; ".join(dict.fromkeys(whys)) or "no control groups")

    def lacking(self) -> dict[str, str]:
        """What cannot be bound for all processes together, with a line that says what holds."""
        return {
            resource: f"the limit on {resource} is enforced {WEAKER[resource]}: {self.why}"
            for resource in RESOURCES
            if resource not in self.places
        }

    def make(self, *, memory: int | None, processes: int | None, cpu: bool) -> Group:
        """A group for one run that bounds what is given and accounts CPU time if `cpu`.

        Raises MachineFault.
        """
        wanted: dict[str, int | None] = {}
        wanted |= {"memory": memory} if memory is not None else {}
        wanted |= {"processes": processes} if processes is not None else {}
        wanted |= {"cpu_time": None} if cpu else {}
        name = PREFIX + secrets.token_hex(8)
        group = Group({r: self.places[r] / name for r in wanted if r in self.places})
        try:
            for directory in group.directories:
                directory.mkdir()
            for resource, directory in group.by_resource.items():
                _bound(directory, resource, wanted[resource])
        except OSError as error:
            group.remove()
            raise MachineFault(f"no control group: {error}", code="sandbox") from error
        return group

    def sweep(self, *, older: float = OLD) -> None:
        """Remove empty groups that workers have left that were killed."""
        for place in set(self.places.values()):
            for path in place.glob(f"{PREFIX}*"):
                # One with processes in it cannot be removed.
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime >= older:
                        path.rmdir()


@dataclass(frozen=True)
class Group:
    """The control groups of one run: a directory for each resource, or one for all."""

    by_resource: Mapping[str, Path] = field(default_factory=dict)

    @property
    def directories(self) -> list[Path]:
        return list(dict.fromkeys(self.by_resource.values()))

    def join(self) -> None:
        """Put this process, and so all that it starts, into the group."""
        for directory in self.directories:
            write(directory / "cgroup.procs", "0")

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed a process, as all together had the limit on memory."""
        if (directory := self.by_resource.get("memory")) is None:
            return False
        if is_second(directory):
            events = numbers(directory / "memory.events")
            return events.get("oom_kill", 0) > 0 and events.get("oom", 0) > 0
        killed = numbers(directory / "memory.oom_control").get("oom_kill", 0)
        # Its counter of refusals stays 0 where swap is bound, too.
        room = number(directory / "memory.limit_in_bytes") - BATCH
        return killed > 0 and number(directory / "memory.max_usage_in_bytes") >= room

    def forks_refused(self) -> int:
        """How often a process could not be started for the limit on processes."""
        directory = self.by_resource.get("processes")
        return numbers(directory / "pids.events").get("max", 0) if directory else 0

    def cpu_seconds(self) -> float | None:
        """CPU time of all processes, also those that have ended; None when it is not counted."""
        if (directory := self.by_resource.get("cpu_time")) is None:
            return None
        if is_second(directory):
            return numbers(directory / "cpu.stat").get("usage_usec", 0) / 1e6
        return number(directory / "cpuacct.usage") / 1e9

    def kill(self) -> None:
        """Kill all processes at once where the kernel offers that (version 2, Linux 5.14)."""
        for directory in self.directories:
            with suppress(OSError):
                if (directory / "cgroup.kill").exists():
                    write(directory / "cgroup.kill", "1")

    def remove(self) -> None:
        """Remove the group, whose processes are dead; one that the kernel holds is swept later."""
        end = time.monotonic() + REMOVAL
        for directory in self.directories:
            while True:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    if time.monotonic() < end:
                        time.sleep(0.01)
                        continue
                break


def _unusable(place: Path) -> str:
    """Why no groups can be made here and entered, "" when they can (cgroups(7), delegation)."""
    for path in (place, place / "cgroup.procs"):
        if not os.access(path, os.W_OK):
            return f"{path} cannot be written"
    return ""


def _bound(directory: Path, resource: str, limit: int | None) -> None:
    if limit is None:
        return
    if resource == "processes":
        write(directory / "pids.max", str(limit))
    elif is_second(directory):
        write(directory / "memory.max", str(limit))
        if (directory / "memory.swap.max").exists():
            write(directory / "memory.swap.max", "0")
    else:
        write(directory / "memory.limit_in_bytes", str(limit))
        if (directory / "memory.memsw.limit_in_bytes").exists():
            write(directory / "memory.memsw.limit_in_bytes", str(limit))
