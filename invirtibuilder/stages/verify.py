"""Verify: the result of the attempt is one that fits the job, or what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, files, model
from invirtibuilder.errors import Fault, PackageFault, Reason
from invirtibuilder.jobs import Job, bounded
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import uploads
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.dependencies import owners

MAX_TEXT = 4 << 20


class Unfit(PackageFault):
    """Artifacts that do not fit the job, with all reasons."""

    def __init__(self, reasons: list[Reason]) -> None:
        super().__init__(
            "; ".join(r.message for r in reasons), hint=reasons[0].hint, code=reasons[0].code
        )
        self._reasons = reasons

    @property
    def reasons(self) -> list[Reason]:
        return self._reasons


def verify(context: Context, job: Job) -> dict[str, Any]:
    """Names, versions, architectures, hashes and the job must fit. Raises Unfit."""
    pocket = context.pocket(job)
    exported, built = job.need("export"), job.need("build")
    folder = job.directory / "artifacts"
    reasons: list[Reason] = []
    dsc = debchanges.parse_dsc(
        files.read_capped(job.directory / "source" / exported["dsc"], limit=MAX_TEXT)
    )
    again = bool(exported.get("again"))
    for file in built["files"]:
        if again and file["name"].endswith(".buildinfo") and not (folder / file["name"]).exists():
            continue  # not every kind of loss leaves it, and what it says was checked then
        if uploads.sha256(folder / file["name"]) != file["sha256"]:
            reasons.append(_reason("bad-hash", f"{file['name']} has changed on disk"))
    names = [f["name"] for f in built["files"]]
    for name in names:
        if name.endswith("deb") and not again:
            control = built["debs"].get(name)
            reasons += _check_binary(name, control, dsc, pocket)
    reasons += _clashes(context, job, pocket, built)
    if not any(n.endswith("deb") for n in names):
        reasons.append(_reason("no-binaries", "the build made no binary package"))
    buildinfo = [n for n in names if n.endswith(".buildinfo")]
    if len(buildinfo) != 1:
        reasons.append(_reason("no-buildinfo", f"expected one .buildinfo, got {len(buildinfo)}"))
    elif not (reasons or again):
        reasons += _check_buildinfo(folder / buildinfo[0], dsc, built)
    if reasons:
        raise Unfit(bounded(reasons))
    return {"buildinfo": buildinfo[0], "binaries": [n for n in names if n.endswith("deb")]}


def _reason(code: str, message: str, hint: str = "") -> Reason:
    return Reason(code=code, message=message, hint=hint)


def _check_binary(
    name: str, control: dict[str, str] | None, dsc: debchanges.Dsc, pocket: Pocket
) -> list[Reason]:
    """One .deb: its name says what it is, and it is of this source (Debian Policy 5.6)."""
    if not control:
        return [_reason("bad-deb", f"{name} has no control fields")]
    try:
        package = model.package_name(control["Package"])
        version = model.version(control["Version"])
        architecture = control["Architecture"]
        expected = f"{package}_{model.without_epoch(version)}_{architecture}."
    except (Fault, KeyError) as error:
        return [_reason("bad-deb", f"{name}: {model.printable(str(error))[:300]}")]
    found = []
    if name not in (f"{expected}deb", f"{expected}udeb"):
        found.append(_reason("bad-name", f"{name} is {package} {version} for {architecture}"))
    if architecture not in (*pocket.architectures, "all"):
        found.append(_reason("bad-architecture", f"{name} is for {architecture}"))
    source, _, of_version = control.get("Source", "").partition(" ")
    if (source or package) != dsc.source:
        found.append(_reason("bad-binary-source", f"{name} says it is of {source or package}"))
    if (of_version.strip("()") or version) != dsc.version:
        message = f"{name} says it is of version {of_version or version}, not {dsc.version}"
        found.append(_reason("bad-source-version", message))
    if package not in dsc.binaries and package.removesuffix("-dbgsym") not in dsc.binaries:
        hint = "add it to debian/control"
        found.append(_reason("unlisted-binary", f"{package} is not in the .dsc's Binary", hint))
    return found


def _clashes(context: Context, job: Job, pocket: Pocket, built: dict[str, Any]) -> list[Reason]:
    """Binary packages that another source of the pocket has."""
    if pocket.allow_takeover:
        return []
    names = sorted({str(control.get("Package")) for control in built["debs"].values()})
    return [
        _reason(
            "binary-owned",
            f"the binary package {name} belongs to {owner}",
            "another name, or allow_takeover in the pocket's configuration",
        )
        for name, owner in owners(context, pocket, names).items()
        if owner != job.package
    ]


def _check_buildinfo(path: Path, dsc: debchanges.Dsc, built: dict[str, Any]) -> list[Reason]:
    """The .buildinfo is of this build: it names each binary with its hash."""
    try:
        info = debchanges.parse_buildinfo(files.read_capped(path, limit=MAX_TEXT))
    except Fault as fault:
        return [_reason("bad-buildinfo", f"{path.name}: {fault}")]
    named = {f.name: f.sha256 for f in info.files}
    found = [
        _reason("bad-buildinfo", f"{path.name} does not have {file['name']} as it is")
        for file in built["files"]
        if file["name"].endswith("deb") and named.get(file["name"]) != file["sha256"]
    ]
    if (info.source, info.source_version) != (dsc.source, dsc.version):
        message = f"{path.name} is of {info.source} {info.source_version}"
        found.append(_reason("bad-buildinfo", message))
    return found
