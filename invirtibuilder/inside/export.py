"""Make a source package of a commit: `python3 -I export.py WORK`, in a sandbox, as anybody.

WORK/in has export.json, repository.bundle and orig/; WORK/out gets the .dsc, its files and
report.json. Exit code 0 means that there is a report, be it a refusal. Commands and progress go
to standard error. What is made depends on nothing but the order and the versions of the tools.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# -I keeps the script's own directory out of the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    from invirtibuilder.inside import export_orig, export_source
    from invirtibuilder.inside.export_base import (
        Refusal,
        alone,
        guard,
        refusal,
        run,
        say,
        scratch_directory,
        shown,
    )
    from invirtibuilder.inside.export_git import (
        LATEST,
        Node,
        Repository,
        Tree,
        blobs,
        digest,
        file_digest,
        opened,
        set_times,
        write_tree,
    )
else:
    import export_orig
    import export_source
    from export_base import (
        Refusal,
        alone,
        guard,
        refusal,
        run,
        say,
        scratch_directory,
        shown,
    )
    from export_git import (
        LATEST,
        Node,
        Repository,
        Tree,
        blobs,
        digest,
        file_digest,
        opened,
        set_times,
        write_tree,
    )

FORMATS = ("1.0", "3.0 (native)", "3.0 (quilt)")
LOCAL = (b"debian/source/local-options", b"debian/source/local-patch-header")


def main(work: Path) -> int:
    """Write the report; the exit code."""
    os.umask(0o022)
    guard()
    out = work / "out"
    order = json.loads((work / "in/export.json").read_text())
    report: dict[str, Any] = {"ok": False, "reasons": [], "differences": [], "orig_from": {}}
    with scratch_directory(work) as scratch:
        report["environment"] = digest(run(["dpkg-query", "-W"], cwd=scratch).out)
        try:
            export(order, work / "in", scratch, out, report)
            report["ok"] = True
        except Refusal as error:
            alone()
            empty(out, scratch)
            report["reasons"] = [reason.as_json() for reason in error.reasons]
            for reason in error.reasons:
                say(f"refused: {shown(reason.message)} [{reason.code}]")
    text = json.dumps(report, indent=1, sort_keys=True) + "\n"
    (out / "report.json").write_text(text)
    return 0


def export(
    order: dict[str, Any], given: Path, scratch: Path, out: Path, report: dict[str, Any]
) -> None:
    """From the order to files in `out`, filling in the report. Raises Refusal."""
    repository = read_bundle(order, given, scratch)
    commit = str(order["commit"])
    report["tree"] = repository.resolve(commit, "tree")
    building = scratch / "build"
    building.mkdir()
    upstream = upstream_version(str(order["version"]))
    top = f"{order['package']}-{upstream}"
    tree = write_tree(repository, blobs(repository, commit), building / top)
    report["format"] = source_format(building / top, tree)
    report["differences"] += prepare(order, building / top, tree)
    report.update(changelog(order, building / top))
    epoch = int(report["source_date_epoch"])
    set_times(building / top, epoch)

    origs = upstream_tarballs(order, repository, given, building, str(report["format"]))
    report["orig_from"] = {orig.name: orig.origin for orig in origs}
    stored = any(orig.origin == "store" for orig in origs)
    hint = export_source.WRITE_ONCE_HINT if stored else ""
    alone()
    dsc = export_source.build(building, top, epoch, hint)
    alone()
    expected = {name: str(report[name.lower()]) for name in ("Source", "Version", "Format")}
    export_source.check_dsc(dsc, building, expected, [orig.name for orig in origs])
    report["dsc"] = dsc.name
    compared = {name: sha256 for name, (_, sha256) in dsc.files.items()}
    compared[dsc.name] = file_digest(building / dsc.name)

    say("comparing the source package with the commit's tree")
    found = export_source.compare(building, dsc, tree, report["format"] == "3.0 (quilt)")
    if not found.faithful:
        raise export_source.unfaithful(found, hint)
    report["differences"] += found.allowed
    alone()
    empty(out, scratch)
    report["files"] = hand_out(building, [dsc.name, *sorted(dsc.files)], out)
    if {file["name"]: file["sha256"] for file in report["files"]} != compared:
        raise refusal("dpkg-source", "the source package changed while it was compared")


def read_bundle(order: dict[str, Any], given: Path, scratch: Path) -> Repository:
    """The bundle's repository, in which the order's ids are what the bundle says. Raises
    Refusal."""
    commit = str(order["commit"])
    repository = opened(given / "repository.bundle", scratch / "repository", len(commit))
    tag = order.get("upstream_tag") or {}
    pairs = [("commit", commit, "commit"), ("pristine-tar", order.get("pristine_tar"), "commit")]
    pairs += [("upstream-tag", tag.get("commit"), "commit")]
    for name, expected, kind in pairs:
        if expected and repository.resolve(f"refs/export/{name}", kind) != expected:
            raise refusal("bad-bundle", f"the bundle's {name} is not {expected}")
    return repository


def upstream_version(version: str) -> str:
    """Without epoch and revision."""
    without_epoch = version.rpartition(":")[2]
    return without_epoch.rpartition("-")[0] or without_epoch


def source_format(top: Path, tree: Tree) -> str:
    """What debian/source/format says, 1.0 without one. Raises Refusal."""
    if tree.get(b"debian/changelog", Node("", False, "")).kind != "file":
        raise refusal("no-changelog", "debian/changelog is missing or not a plain file")
    node = tree.get(b"debian/source/format")
    if node is None:
        return "1.0"
    if node.kind != "file":
        raise refusal("unsupported-format", "debian/source/format is not a plain file")
    with (top / "debian/source/format").open("rb") as file:
        first = file.readline(200).decode("utf-8", "replace").strip()
    found = re.sub(r"\s+\(", " (", first)
    found = {"3.0": "3.0", "1": "1.0"}.get(found, found)
    if found not in FORMATS:
        hint = "debian/source/format: " + ", ".join(FORMATS)
        raise refusal(
            "unsupported-format", f"unsupported source format {shown(found)[:60]!r}", hint
        )
    return found


def prepare(order: dict[str, Any], top: Path, tree: Tree) -> list[str]:
    """Take out what is local to a maintainer and put the order's changelog entry on top, on disk
    and in what is expected to come back; what was done, in words."""
    differences = []
    for path in LOCAL:
        if tree.pop(path, None) is not None:
            (top / path.decode()).unlink()
            differences.append(f"{path.decode()}: not exported")
    if order.get("changelog_entry"):
        file = top / "debian/changelog"
        file.write_bytes(order["changelog_entry"].encode() + file.read_bytes())
        key = b"debian/changelog"
        tree[key] = tree[key]._replace(digest=file_digest(file))
        differences.append(f"debian/changelog: an entry for {order['version']} on top")
    return differences


def changelog(order: dict[str, Any], top: Path) -> dict[str, Any]:
    """Source, version and date of the top entry, as dpkg reads it. Raises Refusal."""
    done = run(["dpkg-parsechangelog", "-l", "debian/changelog"], cwd=top)
    fields = (line.partition(": ") for line in done.text.split("\n") if line[:1] != " ")
    said = {name: value for name, _, value in fields}
    if done.code != 0 or not re.fullmatch(r"[0-9]{1,10}", said.get("Timestamp", "")):
        raise refusal("bad-changelog", "dpkg-parsechangelog cannot read debian/changelog")
    if int(said["Timestamp"]) > LATEST:
        raise refusal("bad-changelog", "the date in debian/changelog is after 2106")
    expected = {"Source": str(order["package"]), "Version": str(order["version"])}
    for field, value in expected.items():
        if said.get(field) != value:
            found = shown(said.get(field, ""))[:200]
            message = f"the {field.lower()} in debian/changelog is {found}, not {value}"
            raise refusal("bad-changelog", message)
    return {
        "source": said["Source"],
        "version": said["Version"],
        "source_date_epoch": int(said["Timestamp"]),
    }


def upstream_tarballs(
    order: dict[str, Any], repository: Repository, given: Path, building: Path, format_: str
) -> list[export_orig.Orig]:
    """Provide what the format needs; nothing for a native package. Raises Refusal."""
    version = str(order["version"])
    if format_ == "3.0 (native)" or (format_ == "1.0" and "-" not in version):
        return []
    tag = order.get("upstream_tag") or {}
    wanted = export_orig.Wanted(
        source=str(order["package"]),
        upstream=upstream_version(version),
        gzip_only=format_ == "1.0",
        compression=order.get("compression") or "",
        components=[] if format_ == "1.0" else list(order.get("components") or []),
        stored=list(order.get("origs") or []),
        pristine_tar=bool(order.get("pristine_tar")),
        upstream_tag=str(tag.get("name") or ""),
    )
    return export_orig.provide(repository, wanted, given / "orig", building)


def empty(out: Path, scratch: Path) -> None:
    """A directory with nothing in it that is not ours."""
    if os.path.lexists(out):
        out.rename(scratch / f"out-{len(os.listdir(scratch))}")
    out.mkdir()


def hand_out(building: Path, names: list[str], out: Path) -> list[dict[str, Any]]:
    """Move the source package's files to `out`; their names, sizes and hashes."""
    files = []
    for name in names:
        shutil.move(str(building / name), str(out / name))
        path = out / name
        path.chmod(0o644)
        files.append({"name": name, "size": path.stat().st_size, "sha256": file_digest(path)})
    return files


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
