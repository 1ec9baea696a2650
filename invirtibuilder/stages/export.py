"""Export: from the commit to a source package, made by a worker in a sandbox."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from invirtibuilder import debchanges, files, keptbases, model
from invirtibuilder.errors import Malformed, PackageFault
from invirtibuilder.jobs import Job
from invirtibuilder.stages import again
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.orders import carry_out, texts

MAX_DSC = 1 << 20
MAX_FIELDS = 20
MAX_ORIGS = 200
MAX_DIFFERENCES = 200
MAX_DIFFERENCE = 500


def export(context: Context, job: Job) -> dict[str, Any]:
    """Have the source package made, and check that it is the one that was asked for.

    What was published before is not made again.
    """
    return again.taken(context, job) or made(context, job)


def made(context: Context, job: Job) -> dict[str, Any]:
    """The source package as a worker makes it, whatever is kept of it."""
    pocket = context.pocket(job)
    admitted = job.need("admit")
    origs = _stored(context.site.origs, job.package, admitted)
    bundle = _bundled(context, job, admitted)
    content = {
        "package": job.package,
        "version": admitted["version"],
        "commit": admitted["commit"],
        "pristine_tar": admitted["pristine_tar"],
        "upstream_tag": admitted["upstream_tag"],
        "changelog_entry": admitted["changelog_entry"],
        "compression": admitted["compression"] or None,
        "components": admitted["components"],
        "origs": sorted(origs),
    }
    description = job.directory / "export-order.json"
    files.write_json(description, content)
    manifest = carry_out(
        context,
        job,
        pocket,
        kind="export",
        room=replace(
            context.room(pocket, own_packages=False, package=job.package),
            base=str(admitted.get("base", "")),
        ),
        content=content,
        inputs={
            "export.json": description,
            "repository.bundle": bundle,
            **{f"orig/{name}": path for name, path in origs.items()},
        },
        into=job.directory / "source",
    )
    keptbases.need(context.site, pocket.domain, str(manifest.environment.get("base", "")))
    bundle.unlink()
    description.unlink()
    dsc = _checked(job, admitted, dict(manifest.report))
    return {
        "dsc": dsc,
        "files": [asdict(f) for f in manifest.files],
        "tree": str(manifest.report.get("tree", "")),
        "orig_from": texts(manifest.report.get("orig_from"), MAX_ORIGS),
        "differences": _differences(manifest.report.get("differences")),
        "environment": texts(manifest.environment, MAX_FIELDS),
        "attempt": manifest.attempt,
    }


def _bundled(context: Context, job: Job, admitted: dict[str, Any]) -> Path:
    """The commit, and what the upstream tarball is made from, with all of their history."""
    bundle = job.directory / "repository.bundle"
    files.remove_tree(bundle)
    wanted = {"refs/export/commit": admitted["commit"]}
    if admitted["pristine_tar"]:
        wanted["refs/export/pristine-tar"] = admitted["pristine_tar"]
    if admitted["upstream_tag"]:
        wanted["refs/export/upstream-tag"] = admitted["upstream_tag"]["object"]
    context.repository(job.package).bundle(bundle, wanted)
    return bundle


def _stored(store: Path, package: str, admitted: dict[str, Any]) -> dict[str, Path]:
    """The upstream tarballs of this version that the site has published before, by name."""
    if admitted["native"] or not store.is_dir():
        return {}
    prefix = f"{package}_{model.upstream_version(admitted['version'])}.orig"
    return {
        p.name: p
        for p in sorted(store.iterdir())
        if p.name.startswith(f"{prefix}.tar.") or p.name.startswith(f"{prefix}-")
    }


def _differences(found: object) -> list[str]:
    """What the export left out or changed, for the record: the first of it, and how much more."""
    if not isinstance(found, list):
        return []
    shown = [str(line)[:MAX_DIFFERENCE] for line in found[:MAX_DIFFERENCES]]
    more = len(found) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _checked(job: Job, admitted: dict[str, Any], report: dict[str, Any]) -> str:
    """The name of the `.dsc`; it must be of this package and version, its files all there."""
    if report.get("tree") != admitted["tree"]:
        raise PackageFault("the source is not of the commit's tree", code="wrong-tree")
    folder = job.directory / "source"
    found = sorted(folder.glob("*.dsc"))
    if len(found) != 1:
        raise PackageFault(f"expected one .dsc, got {len(found)}", code="bad-source")
    try:
        dsc = debchanges.parse_dsc(files.read_capped(found[0], limit=MAX_DSC))
    except Malformed as fault:
        raise PackageFault(f"{found[0].name}: {fault}", code="bad-source") from fault
    if (dsc.source, dsc.version) != (job.package, admitted["version"]):
        raise PackageFault(
            f"the source package is {dsc.source} {dsc.version}, not"
            f" {job.package} {admitted['version']}",
            code="bad-source",
        )
    have = {p.name: p.stat().st_size for p in folder.iterdir() if p != found[0]}
    if have != {f.name: f.size for f in dsc.files}:
        raise PackageFault("the .dsc does not name just the files there", code="bad-source")
    return found[0].name
