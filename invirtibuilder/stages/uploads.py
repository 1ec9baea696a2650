"""What goes into a pocket's APT repository: the files of one source and its binaries."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, files, model
from invirtibuilder.errors import PackageFault


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A source package with its binaries: `files` lie anywhere, and only the named ones go in.

    `sha256` has what each file's content is to be.
    """

    package: str
    version: str
    files: tuple[Path, ...]
    sha256: Mapping[str, str]
    dsc: str
    binaries: tuple[str, ...]  # file names
    packages: tuple[str, ...]  # the binary packages' names
    urgency: str
    maintainer: str
    changes: tuple[str, ...]

    @property
    def origs(self) -> list[Path]:
        """The upstream tarballs and their signatures."""
        prefix = f"{self.package}_{model.upstream_version(self.version)}.orig"
        return [path for path in self.files if path.name.startswith(prefix)]


def gathered(upload: Upload, folder: Path, distribution: str, date: datetime) -> Path:
    """Put the files together in a new folder, with a .changes of them; that one's path."""
    folder.mkdir()
    for path in upload.files:
        _link_or_copy(path, folder / path.name)
    changes = folder / f"{upload.package}_{model.without_epoch(upload.version)}.changes"
    changes.write_bytes(
        debchanges.changes(
            dsc=folder / upload.dsc,
            binaries=[folder / name for name in upload.binaries],
            distribution=distribution,
            urgency=upload.urgency,
            maintainer=upload.maintainer,
            changed_by=upload.maintainer,
            date=date,
            changes=upload.changes,
        )
    )
    return changes


def held(record: Mapping[str, Any]) -> dict[str, str]:
    """The objects besides the commit from which a record's source was made, by trailer."""
    found = {"Pristine-Tar": record.get("pristine_tar")}
    if record.get("upstream_tag"):
        found["Upstream-Tag"] = record["upstream_tag"]["object"]
    return {name: str(target) for name, target in found.items() if target}


def trailers(record: Mapping[str, Any]) -> dict[str, str]:
    """What a superproject's commit says of a record, for a machine."""
    dsc = next(f for f in record["files"] if f["name"] == record["dsc"])
    return {
        "Principal": str(record["principal"]),
        "Version": str(record["version"]),
        "Commit": str(record["commit"]),
        "Dsc-Sha256": str(dsc["sha256"]),
        **held(record),
    }


def keep_origs(store: Path, upload: Upload | None) -> None:
    """Upstream tarballs are write-once by name for the whole site: the first bytes win.

    The last thing before the commit point: what is not published takes no name.
    """
    for path in upload.origs if upload else ():
        if not (store / path.name).exists():
            beside = store / f".{path.name}.tmp"
            shutil.copyfile(path, beside)
            files.sync_file(beside)
            beside.rename(store / path.name)
            files.sync_directory(store)


def same_origs(store: Path, upload: Upload | None) -> None:
    """What the store has already is what this upload has. Raises PackageFault."""
    store.mkdir(exist_ok=True)
    for path in upload.origs if upload else ():
        name = path.name
        if upload and (store / name).exists() and sha256(store / name) != upload.sha256[name]:
            raise PackageFault(
                f"{name} was published before with other content",
                code="orig-differs",
                hint="use a new upstream version, such as one with +ds, or the first tarball",
            )


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
