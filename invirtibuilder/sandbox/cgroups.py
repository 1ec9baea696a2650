"""Where control groups (cgroups(7)) may be made: our own group, whose it is, its controllers."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

LEAF = "invirtibuilder"
"""Where the processes of a delegated group go: one with controllers may have none itself."""

# mount(8)'s escapes of space, tab, newline and backslash.
_ESCAPE = re.compile(r"\\([0-7]{3})")


def own_groups(process: Path = Path("/proc/self")) -> dict[str, Path]:
    """The directory of our own group, by controller of version 1, and "" for version 2."""
    mounted: dict[str, tuple[str, str]] = {}
    for line in (process / "mountinfo").read_text().splitlines():
        fields = [_ESCAPE.sub(lambda m: chr(int(m[1], 8)), f) for f in line.split(" ")]
        kind, _, options = fields[fields.index("-") + 1 :]
        if kind == "cgroup2":
            mounted.setdefault("", (fields[3], fields[4]))
        elif kind == "cgroup":
            for option in options.split(","):
                mounted.setdefault(option, (fields[3], fields[4]))
    found = {}
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            root, point = mounted.get(controller, ("", ""))
            below = os.path.relpath(path, root) if root else ".."
            # What is mounted may be another part of the tree than we are in.
            if point and below.split("/")[0] != "..":
                found[controller] = Path(point, below)
    return found


def delegated(own: Path) -> tuple[Path | None, str]:
    """Where groups may be made below our own one of version 2, and why not.

    On a machine of systemd only in a group that it has handed over (its attribute, or an owner
    that is not the parent's): any other is systemd's, or another's, to arrange.
    """
    if own.name == LEAF and _handed_over(own.parent):
        return own.parent, ""
    if _handed_over(own):
        if not _available(own) - _subtree(own):
            return own, ""
        try:
            _settle(own)
        except OSError as error:
            return None, f"our processes cannot be moved within {own}: {error}"
        return own, ""
    if Path("/run/systemd/system").exists():
        return None, f"{own} is not delegated to us (Delegate=yes in the unit)"
    return own, ""


def _handed_over(own: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(own, name) == b"1":
                return True
    mine = os.getuid()
    return mine != 0 and own.stat().st_uid == mine != own.parent.stat().st_uid


def _settle(own: Path) -> None:
    """Move all processes of a delegated group to a leaf: those with controllers have none."""
    leaf = own / LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(20):
        pids = (own / "cgroup.procs").read_text().split()
        if not pids:
            break
        for pid in pids:
            with suppress(ProcessLookupError):
                write(leaf / "cgroup.procs", pid)


def _available(place: Path) -> set[str]:
    return {"memory", "pids"} & set((place / "cgroup.controllers").read_text().split())


def _subtree(place: Path) -> set[str]:
    return set((place / "cgroup.subtree_control").read_text().split())


def enabled(place: Path) -> set[str]:
    """The controllers that groups below this one of version 2 have."""
    for controller in _available(place) - _subtree(place):
        # Refused when processes are in the group itself, and it is not the root.
        with suppress(OSError):
            write(place / "cgroup.subtree_control", f"+{controller}")
    return _subtree(place)


def is_second(group: Path) -> bool:
    """Whether this group is one of version 2."""
    return (group / "cgroup.controllers").exists()


def write(path: Path, value: str) -> None:
    """Write to a file of a group in one call, never making one. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number; empty when the kernel has none."""
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in path.read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    return {}


def number(path: Path) -> int:
    """The file's one number, 0 when there is none."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return 0
