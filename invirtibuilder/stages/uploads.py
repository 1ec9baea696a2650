"""What goes into a pocket's APT repository: the files of one source and its binaries."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, debsource, files, model
from invirtibuilder.errors import PackageFault, Reason, Refused
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Context

RECORD = 1


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
    packages: Mapping[str, str]  # the binary packages, with their versions
    urgency: str
    maintainer: str
    changes: tuple[str, ...]

    @property
    def origs(self) -> list[Path]:
        """The upstream tarballs and their signatures."""
        prefix = f"{self.package}_{model.upstream_version(self.version)}.orig"
        return [path for path in self.files if path.name.startswith(prefix)]


def upgrades(upload: Upload, record: Mapping[str, Any]) -> bool:
    """Whether reprepro replaces all that is recorded of a source when it includes this upload:
    the same binary packages, for the same architectures, each in a higher version."""
    old = [str(file["name"]) for file in published_files(record)]
    before, now = record["binaries"], upload.packages
    return (
        _kinds(n for n in old if n.endswith("deb")) == _kinds(upload.binaries)
        and before.keys() == now.keys()
        and debsource.compare(upload.version, str(record["version"])) > 0
        and all(debsource.compare(now[name], before[name]) > 0 for name in now)
    )


def _kinds(names: Iterable[str]) -> set[tuple[str, str]]:
    """Package, and architecture with suffix, of each binary package's file."""
    return {(name.partition("_")[0], name.rpartition("_")[2]) for name in names}


def made_upload(job: Job) -> Upload:
    """The source package and the binaries that a job has made."""
    admitted, built, verified = job.need("admit"), job.need("build"), job.need("verify")
    made = [*job.need("export")["files"], *built["files"]]
    folders = (job.directory / "source", job.directory / "artifacts")
    return Upload(
        package=job.package,
        version=admitted["version"],
        files=tuple(path for folder in folders for path in sorted(folder.iterdir())),
        sha256={file["name"]: file["sha256"] for file in made},
        dsc=job.need("export")["dsc"],
        binaries=tuple(verified["binaries"]),
        packages={control["Package"]: control["Version"] for control in built["debs"].values()},
        urgency=admitted["urgency"],
        maintainer=admitted["maintainer"],
        changes=tuple(admitted["changes"]),
    )


def made_record(job: Job, pocket: Pocket) -> dict[str, Any]:
    """All from which this publication can be re-created; `built` has the files."""
    admitted, exported = job.need("admit"), job.need("export")
    built, verified = job.need("build"), job.need("verify")
    if before := exported.get("again"):
        # What it was made from is what it was made from then.
        again = record_again(before, job, pocket)
        return {**again, "built": job.id, "reused": built["reused"]}
    return {
        "v": RECORD,
        "job": job.id,
        "built": job.id,
        "principal": job.request.principal,
        "via": job.request.via,
        "requested": job.request.time,
        "pocket": pocket.name,
        "package": job.package,
        "commit": admitted["commit"],
        "tree": admitted["tree"],
        "version": admitted["version"],
        "changelog_version": admitted["changelog_version"],
        "changelog_entry": admitted["changelog_entry"],
        "stamp": admitted["stamp"],
        "pristine_tar": admitted["pristine_tar"],
        "upstream_tag": admitted["upstream_tag"],
        "orig_from": exported["orig_from"],
        "differences": exported["differences"],
        "dsc": exported["dsc"],
        "files": _sorted(exported["files"], built["files"]),
        "binaries": {
            built["debs"][name]["Package"]: built["debs"][name]["Version"]
            for name in verified["binaries"]
        },
        "buildinfo": verified["buildinfo"],
        "environment": {"export": exported["environment"], "build": built["environment"]},
        "reused": built["reused"],
        "backtracking": pocket.allow_backtracking,
    }


def record_again(record: Mapping[str, Any], job: Job, pocket: Pocket, **why: str) -> dict[str, Any]:
    """A record of the same files, published once more because this job asked for it."""
    dropped = ("publication", "published", "promoted_from", "rolled_back_to")
    return {
        **{key: value for key, value in record.items() if key not in dropped},
        "job": job.id,
        "built": str(record.get("built", record["job"])),
        "principal": job.request.principal,
        "via": job.request.via,
        "requested": job.request.time,
        "pocket": pocket.name,
        **why,
    }


def record_without(record: Mapping[str, Any], taken: Mapping[str, str]) -> dict[str, Any]:
    """A record without binary packages that other sources (by name) have taken over."""
    return {
        **record,
        "files": [
            file
            for file in record["files"]
            if not (str(file["name"]).endswith("deb") and file["name"].partition("_")[0] in taken)
        ],
        "binaries": {n: version for n, version in record["binaries"].items() if n not in taken},
        "taken": {**record.get("taken", {}), **taken},
    }


def _sorted(*lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((file for files_ in lists for file in files_), key=lambda f: str(f["name"]))


def published_files(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of a record's files that APT is to have."""
    return [file for file in record["files"] if not str(file["name"]).endswith(".buildinfo")]


def kept_upload(context: Context, pocket: Pocket, record: Mapping[str, Any]) -> Upload:
    """The very files that a record names: from the job that made them, or the pocket's pool.

    Raises Refused (code files-gone) when one is no longer kept.
    """
    package, version = str(record["package"]), str(record["version"])
    directory = context.site.jobs / str(record.get("built", record["job"]))
    pool = context.archive(pocket).publications.root / "pool"
    folders = [directory / "source", directory / "artifacts"]
    folders += pool.glob(f"*/{pool_folder(package)}")
    found, gone = [], []
    wanted = {f["name"]: f["sha256"] for f in published_files(record)}
    for name, expected in wanted.items():
        there = (files.contained(folder, name) for folder in folders)
        path = next((p for p in there if p.is_file() and sha256(p) == expected), None)
        found += [path] if path else []
        gone += [] if path else [name]
    if gone:
        message = f"{package} {version}: {', '.join(gone)} is no longer kept"
        hint = f"pockets: {pocket.name}: retention says how long; submit its commit again"
        raise Refused([Reason(code="files-gone", message=message, hint=hint)])
    told = (Job(directory).fact("admit") if (directory / "request.json").is_file() else None) or {}
    dsc = debchanges.parse_dsc(next(p for p in found if p.name == record["dsc"]).read_bytes())
    return Upload(
        package=package,
        version=version,
        files=tuple(found),
        sha256=wanted,
        dsc=str(record["dsc"]),
        binaries=tuple(n for n in wanted if n.endswith("deb")),
        packages=record["binaries"],
        urgency=str(told.get("urgency", "medium")),
        maintainer=str(told.get("maintainer", dsc.maintainer)),
        changes=tuple(told.get("changes", ())),
    )


def pool_folder(package: str) -> str:
    """Where below a component reprepro has a source's files.

    >>> pool_folder("libc"), pool_folder("alpha")
    ('libc/libc', 'a/alpha')
    """
    initial = package[:4] if package.startswith("lib") else package[0]
    return f"{initial}/{package}"


def gathered(upload: Upload, folder: Path, distribution: str, date: datetime) -> Path:
    """Put the files together in a new folder, with a .changes of them; that one's path."""
    folder.mkdir()
    for path in upload.files:
        link_or_copy(path, folder / path.name)
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

    The last thing before the commit point: what is not published takes no name. Another pocket may
    have taken one since `same_origs` looked. Raises PackageFault.
    """
    same_origs(store, upload)
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


def link_or_copy(source: Path, target: Path) -> None:
    """Have the same content at `target`, which is not there yet."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
