"""A worker by itself: orders to build packages that are made on the fly, and what is left of them.

The worker runs in control groups of the yard's own, where there are any to be had, so that what
it leaves there is seen whatever else runs on the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from invirtibuilder.order import (
    Limits,
    Manifest,
    Order,
    Room,
    read_order,
    read_result,
    write_order,
)
from invirtibuilder.run import run
from invirtibuilder.sandbox import cgroups
from invirtibuilder.sandbox.base import Base, BaseSpec
from invirtibuilder.sandbox.ids import Ids
from invirtibuilder.sandbox.layers import discard
from tests.support import packages

TOP = Path(__file__).parents[2]

ENTER = """for group in $groups; do echo 0 >"$group/cgroup.procs"; done
exec "$@"
"""
"""A constant program: join these control groups, as a unit's processes are put into its own."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What an order came to, and its log."""

    manifest: Manifest
    log: str
    files: Mapping[str, bytes]

    @property
    def codes(self) -> list[str]:
        """Of all reasons."""
        return [reason.code for reason in self.manifest.reasons]

    @property
    def message(self) -> str:
        return "\n".join(reason.message for reason in self.manifest.reasons)

    @property
    def whole(self) -> frozenset[str]:
        """The limits that the worker could enforce by control groups."""
        told = ("memory", "processes", "cpu_time")
        return frozenset(r for r in told if f"the limit on {r} is enforced" not in self.log)


@dataclass(frozen=True, kw_only=True)
class Yard:
    """A worker's directory, which shares the run's base, and the room that orders ask for."""

    directory: Path
    room: Room
    groups: tuple[Path, ...]

    def source(self, name: str, **options: object) -> Path:
        """The source package (its .dsc) of `packages.native` with these options."""
        folder = Path(tempfile.mkdtemp(dir=self.directory))
        repo = packages.native(folder / name, name, "1.0", **options)  # type: ignore[arg-type]
        shutil.rmtree(repo.path / ".git")
        run(["dpkg-source", "-b", name], cwd=folder)
        return folder / f"{name}_1.0.dsc"

    def build(self, dsc: Path, *, limits: Limits, extra_sources: str = "") -> Ended:
        """Have it built by a worker in a process of its own."""
        folder = dsc.parent
        room = replace(self.room, limits=limits, extra_sources=extra_sources)
        name = dsc.name.partition("_")[0]
        content = {"dsc": dsc.name, "package": name, "version": "1.0"}
        order = Order(kind="build", job="job", attempt="job.build-1", room=room, content=content)
        inputs = {path.name: path for path in folder.iterdir() if path.is_file()}
        write_order(folder / "order", order, inputs)
        argv = ["worker", "--directory", str(self.directory / "work"), "--slots", "1"]
        with (
            (folder / "order").open("rb") as stream,
            (folder / "result").open("wb") as result,
            (folder / "log").open("wb") as log,
        ):
            run(
                ["sh", "-ec", ENTER, "enter", sys.executable, "-m", "invirtibuilder", *argv],
                env={"PYTHONPATH": str(TOP), "groups": " ".join(map(str, self.groups))},
                stdin=stream,
                stdout=result,
                stderr=log,
                check=False,
                timeout=300,
            )
            log.flush()
        (folder / "out").mkdir()
        with (folder / "order").open("rb") as stream:
            read = read_order(stream)
        manifest = read_result(folder / "result", folder / "out", read)
        log_text = (folder / "log").read_text(errors="replace")
        files = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
        return Ended(manifest=manifest, log=log_text, files=files)

    def remains(self, marker: str) -> list[str]:
        """What an order has left: processes with the marker, mounts, files, control groups."""
        found = [str(path) for path in (self.directory / "work/slot-1/scratch").iterdir()]
        found += [str(p) for p in (self.directory / "work/slot-1/layers").glob(".new-*")]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [line for line in mounts if str(self.directory) in line]
        for group in self.groups:
            found += [str(path) for path in group.glob("*/") if path.name != cgroups.LEAF]
            found += (group / "cgroup.procs").read_text().split()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(f"process {entry.name}")
        return found


@contextmanager
def yard(base: Base, spec: BaseSpec) -> Iterator[Yard]:
    """A new one; the shared base belongs to the account's first block of ids."""
    directory = Path(tempfile.mkdtemp(prefix="invirtibuilder-yard-", dir="/var/tmp"))
    directory.chmod(0o755)
    slot = directory / "work/slot-1"
    for made in (slot.parent, slot, slot / "layers"):
        made.mkdir()
        made.chmod(0o711)
    (slot / "bases").symlink_to(base.directory.parents[1])
    (slot / "lists").symlink_to(base.directory.parents[1] / "lists")
    (slot.parent / "downloads").symlink_to(base.directory.parents[1] / "downloads")
    room = Room(suite=spec.suite, architecture=spec.architecture, sources=spec.sources)
    try:
        with _own_groups() as groups:
            yield Yard(directory=directory, room=room, groups=groups)
    finally:
        for layer in (slot / "layers").iterdir():
            discard(layer, Ids.of_user())
        shutil.rmtree(directory)


@contextmanager
def _own_groups() -> Iterator[tuple[Path, ...]]:
    """Groups below our own, one delegated as systemd does it; none where we may make none."""
    name = f"yard-{secrets.token_hex(4)}"
    own = cgroups.own_groups()
    places = {own[c] for c in ("", "memory", "pids", "cpuacct") if c in own}
    made = []
    for place in sorted(places):
        if os.access(place, os.W_OK) and os.access(place / "cgroup.procs", os.W_OK):
            if cgroups.is_second(place):
                cgroups.enabled(place)
            (place / name).mkdir()
            made.append(place / name)
            if cgroups.is_second(place):
                os.setxattr(place / name, "user.delegate", b"1")
    try:
        yield tuple(made)
    finally:
        for group in made:
            with suppress(FileNotFoundError):
                (group / cgroups.LEAF).rmdir()
            group.rmdir()


def repository(folder: Path, name: str, postinst: str) -> str:
    """A repository in `folder` with one package of this maintainer script; its APT source, to be
    completed with the URL at which the folder is served."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    tree.chmod(0o755)
    (tree / "DEBIAN").chmod(0o755)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\n"
        f"Maintainer: {packages.PERSON}\nDescription: a bad one\n"
    )
    (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\n{postinst}")
    (tree / "DEBIAN/postinst").chmod(0o755)
    run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, folder / f"{name}.deb"])
    shutil.rmtree(tree)
    (folder / "Packages").write_bytes(run(["apt-ftparchive", "packages", "."], cwd=folder).out)
    (folder / "Release").write_bytes(run(["apt-ftparchive", "release", "."], cwd=folder).out)
    return "Types: deb\nURIs: {}\nSuites: ./\nTrusted: yes\n"
