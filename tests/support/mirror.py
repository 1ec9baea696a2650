"""A small signed APT repository on loopback, and a workshop whose base gets its packages there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from invirtibuilder.apt.mirror import stanza
from invirtibuilder.apt.signer import GpgSigner
from invirtibuilder.order import Limits, Order, PocketSource, Room, write_order
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.run import run
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.ids import Ids, remove_tree
from tests.support import debs
from tests.support.debs import Binary

CODENAME = "dev"


@dataclass(kw_only=True)
class Repository:
    """A repository in a folder, with what is in its pool, signed."""

    folder: Path
    signer: GpgSigner
    publication: str = ""  # where its dists and pool are, below the folder
    serial: int = 0

    @property
    def root(self) -> Path:
        return self.folder / self.publication

    def publish(self, *binaries: Binary) -> None:
        """Add packages, replacing those of a name, and sign what is there now."""
        self.serial += 1
        pool = self.root / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        for binary in binaries:
            for old in pool.glob(f"{binary.name}_*"):
                old.unlink()
            with tempfile.TemporaryDirectory() as made:
                path = debs.deb(Path(made), binary, "source", "1.0")
                shutil.copy(path, pool)
        dist = self.root / "dists" / CODENAME
        indices = dist / "main" / f"binary-{debs.machine_architecture()}"
        indices.mkdir(parents=True, exist_ok=True)
        listed = run(["apt-ftparchive", "packages", "pool"], cwd=self.root)
        (indices / "Packages").write_bytes(listed.out)
        options = {"Codename": CODENAME, "Suite": CODENAME, "Components": "main"}
        options |= {"Description": f"state {self.serial}"}
        argv = [f"-oAPT::FTPArchive::Release::{key}={value}" for key, value in options.items()]
        (dist / "InRelease").unlink(missing_ok=True)
        release = run(["apt-ftparchive", *argv, "release", "."], cwd=dist)
        (dist / "InRelease").write_bytes(self.signer.sign(release.out)[0])
        # Changes within one second are all the same to a web server.
        os.utime(dist / "InRelease", (1.75e9, 1.75e9))

    @property
    def key(self) -> str:
        return self.signer.public_key().decode()

    def as_pocket(self) -> PocketSource:
        """As a build gets to see a pocket's repository."""
        return PocketSource(
            directory=str(self.folder),
            publication=self.publication,
            codename=CODENAME,
            components=("main",),
            key=self.key,
        )

    def next_publication(self) -> None:
        """The same packages in another place, as after a publication."""
        before = self.root
        self.publication = f"publications/{self.serial + 1:08d}"
        shutil.copytree(before, self.root)


@dataclass(kw_only=True)
class Place:
    """A worker's directory, in which orders for one mirror are prepared."""

    directory: Path
    ids: Ids
    base: Base
    uri: str
    key: str
    room: Room = field(init=False)

    def __post_init__(self) -> None:
        self.room = Room(
            suite=CODENAME,
            architecture=debs.machine_architecture(),
            sources=stanza(self.uri, [CODENAME], ["main"], self.key),
            limits=Limits(seconds=120),
        )

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @contextmanager
    def workshop(self, relations: str, pocket: Repository | None = None) -> Iterator[Workshop]:
        """A workshop for a source package with these fields, and an empty log."""
        room = replace(self.room, pocket=pocket.as_pocket() if pocket else None)
        order = Order(kind="build", job="job", attempt="job.build-1", room=room, content={})
        changes = debs.upload(self.directory / "source", "thing", "1.0")
        dsc = changes.with_suffix(".dsc")
        dsc.write_text(dsc.read_text() + relations)
        write_order(self.directory / "order.tar", order, {"thing.dsc": dsc})
        scratch = Path(tempfile.mkdtemp(dir=self.directory))
        scratch.chmod(0o711)
        for name in ("slot", "slot/layers"):
            (self.directory / name).mkdir(exist_ok=True, mode=0o711)
        with (
            (self.directory / "order.tar").open("rb") as content,
            (self.directory / "log").open("w+b") as log,
        ):
            yield Workshop(
                order=order,
                content=content,
                domain_directory=self.directory,
                directory=self.directory / "slot",
                scratch=scratch,
                ids=self.ids,
                log_fd=log.fileno(),
                cancelled=lambda: False,
            )

    def remove(self) -> None:
        """Remove the trees of the sandbox's ids."""
        for pattern in ("slot/lists/*/tree", "slot/layers/*/tree"):
            for tree in self.directory.glob(pattern):
                remove_tree(self.ids, tree)
